"""What a rank shows to its daemon's watcher while it trains: a page of memory, and torch's own handlers on a unix socket.

Nothing here costs a training step more than a few stores, and nothing that fails here reaches it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd.ckpt.beat import PHASES, BeatWriter
from ckptd.ckpt.errors import CkptdError, UsageError
from ckptd.ckpt.shm import private_dir
from ckptd.ckpt.sighting import runs_of
from ckptd.ckpt.tables import STEP_MAX
from ckptd.integrations import torch_private
from ckptd.integrations.journal import logger

_remark = torch_private.prepare(torch_private.environment())
"""At import: what torch reads when the process group is made can only be set before."""


class Signals:
    """Used in the trainer's thread. Silent before `begin`, and where there is no daemon of this machine to look."""

    def __init__(self) -> None:
        self._beat: BeatWriter | None = None
        self._directory: Path | None = None
        self._rank = 0
        self._groups = -1

    def begin(self, directory: Path | None, rank: int, epoch: int, step: int) -> None:
        """A life begins after `step` updates. `directory`: where this node's daemon looks; None: nowhere."""
        if directory is None:
            return
        self._directory, self._rank, self._groups = directory, rank, -1
        try:
            private_dir(directory)
            self._beat = BeatWriter(directory / f"{rank}.beat", rank, epoch)
            self._beat.resumed(step)
            torch_private.serve(directory / f"{rank}.fr")
        except (OSError, RuntimeError, CkptdError) as error:
            logger.warning("ckptd: this rank is not watched: %s", error)
        self._tell()

    def step(self, n: int) -> None:
        """`n` updates are finished."""
        if self._beat is not None and type(n) is int and 0 <= n < STEP_MAX:
            self._beat.step(n, time.time_ns())
            if torch_private.count_groups() != self._groups:
                self._tell()

    def reached(self) -> None:
        """The next update begins."""
        if self._beat is not None:
            self._beat.reached(time.time_ns())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say that this rank is busy with something else than training. Raises UsageError for a name that is no phase."""
        if name not in PHASES:
            raise UsageError(f"found phase {name!r}, expected one of {', '.join(PHASES)}")
        if self._beat is None:
            yield
            return
        before = self._beat.phase(PHASES.index(name))
        try:
            yield
        finally:
            self._beat.phase(before)

    def close(self) -> None:
        """This rank ends of its own will, or goes on unwatched."""
        if self._beat is not None:
            self._beat.close()
        self._beat = None

    def _tell(self) -> None:
        """Write down which process groups there are, and what can't be seen."""
        if self._directory is None:
            return
        self._groups = torch_private.count_groups()
        remarks = torch_private.missing(torch_private.environment())
        content = {
            "groups": [
                {"name": group.name, "backend": group.backend, "runs": runs_of(group.ranks)}
                for group in torch_private.groups()
            ],
            "remarks": [*remarks, *([_remark] if _remark else [])],
        }
        path = self._directory / f"{self._rank}.groups"
        try:
            path.with_suffix(".tmp").write_text(json.dumps(content))
            path.with_suffix(".tmp").rename(path)
        except OSError as error:
            logger.warning("ckptd: this rank's process groups are not known to its daemon: %s", error)
