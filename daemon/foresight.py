"""What a node brings while its trainers start: their ranks' images, where only parity can give them.

A replacement at a lost place decodes them into its slots. Where a spare takes the seat, or the others go on without it, its
trainers would wait for the decoding when they ask. All others need no more of them than what is written at their beginning.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.manifest import file_name
from ckptd.ckpt.model import Image, Table, Version
from ckptd.ckpt.recovery import holders, plan, survey
from ckptd.ckpt.rounds import Place
from ckptd.daemon.fetch import Fetcher
from ckptd.daemon.restored import Restored

log = logging.getLogger(__name__)


def needed(ledger: Ledger, place: Place) -> tuple[Table, tuple[Image, ...]] | None:
    """Of the version that the next life will begin from: the images of this place's ranks that no live node holds.

    With another number of nodes than captured it, so many as the place will read of.

    None when there are none.
    """
    version = plan(ledger, (), ledger.barred).version if ledger.lost else None
    table = survey(ledger).get(version) if version else None
    if table is None:
        return None
    mine = [rank for rank in range(table.world) if rank * place.size // table.world == place.rank]
    images = [table.holder(rank)[1] for rank in mine]
    lost = tuple(image for image in images if not holders(ledger, table.version, image))
    return (table, lost) if lost else None


class Foresight:
    """Brings them, one after the other. `seated` and `take` may be called from any thread."""

    def __init__(self, fetcher: Fetcher, files: Restored) -> None:
        self._fetcher, self._files = fetcher, files
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "foresight")
        self._order = (0, "")
        self._coming: dict[tuple[Version, Image], Future[Path]] = {}

    def seated(self, place: Place, look: Callable[[], Ledger | None]) -> None:
        """The node's agent has this place; `look` is asked for the ledger, once for each round."""
        order = place.number, place.key
        with self._lock:
            if order == self._order:
                return
            self._order = order
        self.forget()
        ledger = look()
        found = None if ledger is None else needed(ledger, place)
        if ledger is None or found is None:
            return
        table, images = found
        with self._lock:
            for image in images if order == self._order else ():
                coming = self._pool.submit(self._bring, ledger, table, image)
                self._coming[table.version, image] = coming

    def take(self, version: Version, image: Image, to: Path) -> Found | None:
        """The image, moved to `to`, verified when it came; None if it was not foreseen. Waits for one that is on its way."""
        with self._lock:
            coming = self._coming.get((version, image))
        if coming is None or coming.cancel():
            return None
        try:
            coming.result().rename(to)
        except (CkptdError, OSError) as error:
            log.info("rank %d of %s did not come before it was asked for: %s", image.rank, version, error)
            return None
        return Found(image.rank, to, image.size, "parity")

    def forget(self) -> None:
        """What was brought and not taken is not needed, and must not fill the memory."""
        with self._lock:
            for (version, _), coming in self._coming.items():
                coming.cancel()
                self._files.release(version)
            self._coming.clear()

    def close(self) -> None:
        self.forget()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bring(self, ledger: Ledger, table: Table, image: Image) -> Path:
        path = self._files.directory_of(table.version) / file_name(image.rank)
        try:
            self._fetcher.image(ledger, table, image.rank, self._files.make(path, image.size))
        finally:
            with self._lock:
                if (table.version, image) not in self._coming:  # forgotten meanwhile
                    self._files.release(table.version)
        return path
