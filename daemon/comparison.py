"""What a parity in the making has in common with one that stands here already.

What has changed is told by the sums of the capture, which the holders list. No peer has to be believed: an image's digest is
of its sums, and tables name images by their digests.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from ckptd.ckpt.errors import CkptdError, CorruptionError
from ckptd.ckpt.groups import groups_in
from ckptd.ckpt.inventory import Ledger, Parity
from ckptd.ckpt.model import Image, Version
from ckptd.daemon.segments import Segments, Stretch
from ckptd.daemon.symbols import Stripe, Symbols
from ckptd.daemon.transport import NotHeld
from ckptd.daemon.unchanged import Prospects, Run, Sums, alike, changes, images_of, runs
from ckptd.daemon.windows import WINDOW

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Older:
    """A parity that stands here, of the same stripe at another version, or under another map."""

    stripe: Stripe
    stretch: Stretch


class Comparer:
    """Finds older parities, and what has changed since. Used from one thread."""

    def __init__(self, segments: Segments, symbols: Symbols, pool: Executor) -> None:
        self._segments, self._symbols, self._pool = segments, symbols, pool
        self._sums: dict[str, Sums] = {}
        """Of the images that were compared last, by digest: 8 bytes a piece, so 32 KiB a GiB."""
        self._prospects = Prospects()

    def older(self, stripe: Stripe, parity: Parity) -> Older | None:
        """The parity to start from: this very one if it stands here damaged, else the newest whose data lies alike."""
        found: list[tuple[bool, Version, Older]] = []
        for kept, stretch in self._segments.parity_entries():
            group = groups_in(kept.table.map)[kept.parity.group]
            same = (kept.parity.stripe, kept.parity.row) == (parity.stripe, parity.row)
            if same and alike(stripe.table, stripe.group, kept.table, group):
                version = kept.parity.version
                older = Older(Stripe(stripe.ledger, kept.table, group, parity.stripe), stretch)
                found.append((version == parity.version, version, older))
        return max(found, key=lambda item: item[:2])[2] if found else None

    def plan(self, stripe: Stripe, older: Older | None, place: tuple[int, int]) -> list[Run]:
        """How to make the parity whose (stripe, row) is `place`: as much as can be of the older one.

        The others are not asked what has changed when that has not been worth it of late.
        """
        k, units = stripe.group.layout.k, stripe.group.units(stripe.table)
        whole = runs(np.ones((k, units), np.bool_), WINDOW)
        if older is None:
            return whole
        pairs = list(zip(images_of(stripe), images_of(older.stripe), strict=True))
        differ = [(now, then) for now, then in pairs if now[1].digest != then[1].digest]
        if differ and not self._prospects.is_worth_it(place):
            return whole
        self._learn(stripe, older.stripe, differ)
        planned = runs(changes(stripe, older.stripe, self._sums), WINDOW)
        if differ:
            saved = 1 - sum(run.count * run.reads(k) for run in planned) / (k * units)
            self._prospects.compared(place, saved)
        return planned

    def _learn(
        self, stripe: Stripe, older: Stripe, differ: Sequence[tuple[tuple[int, Image], tuple[int, Image]]]
    ) -> None:
        """Have the sums of these images (each with its node, and what it was before) listed, as far as they can be had."""
        payloads = (*stripe.table.payloads, *older.table.payloads)
        known = {image.digest for payload in payloads for image in payload.images}
        self._sums = {digest: sums for digest, sums in self._sums.items() if digest in known}
        lacking: dict[int, list[tuple[Version, Image]]] = {}
        for column, version in enumerate((stripe.table.version, older.table.version)):
            for node, image in (both[column] for both in differ):
                if image.digest not in self._sums:
                    lacking.setdefault(node, []).append((version, image))
        for listed in self._pool.map(lambda item: self._listed(stripe.ledger, *item), lacking.items()):
            self._sums |= listed

    def _listed(self, ledger: Ledger, node: int, images: Sequence[tuple[Version, Image]]) -> dict[str, Sums]:
        listed = {}
        for version, image in images:
            try:
                listed[image.digest] = np.array(self._symbols.sums(ledger, node, version, image), np.uint64)
            except (NotHeld, CorruptionError) as error:  # of an older version that has made way, for example
                log.debug("%s; what it holds counts as changed", error)
            except CkptdError as error:
                log.debug("%s; what it holds counts as changed", error)
                break
        return listed
