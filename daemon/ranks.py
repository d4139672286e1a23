"""The trainers of a node: which process is which rank, in which life, and what it has begun to capture.

This is where a zombie, a trainer of an earlier life that still runs, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ckptd.ckpt.errors import AccessError, CkptdError, StaleStepError
from ckptd.ckpt.inventory import Captures
from ckptd.ckpt.model import Version
from ckptd.daemon.catalog import Catalog
from ckptd.daemon.machine import IllegalAct, Transitions, follow

State = Literal["absent", "attached", "joined"]

TRANSITIONS: Transitions[State] = {
    "absent": {"attach": "attached"},
    "attached": {"attach": "attached", "join": "joined", "leave": "absent"},
    "joined": {"attach": "attached", "join": "joined", "begin": "joined", "leave": "absent"},
}


@dataclass(frozen=True, slots=True)
class Trainer:
    """A rank attached to this node."""

    world: int
    local_world: int
    pid: int
    epoch: int = 0
    begun: Version | None = None
    """The newest version that it began to capture; the next one must be newer."""

    @property
    def state(self) -> State:
        return "joined" if self.epoch else "attached"


class Ranks:
    """The attached trainers by rank. Pure; methods that may refuse return the error."""

    def __init__(self, node: int) -> None:
        self._node = node
        self._trainers: dict[int, Trainer] = {}

    def __iter__(self) -> Iterator[tuple[int, Trainer]]:
        return iter(sorted(self._trainers.items()))

    def get(self, rank: int) -> Trainer | None:
        return self._trainers.get(rank)

    def refuses(self, rank: int, pid: int, epoch: int, now: int) -> CkptdError | None:
        """Why a process may not become the rank again after a restart of the daemon, `now` being the newest life.

        One that has just started (epoch 0) always may: it is the successor of whoever was the rank.
        """
        old = self._trainers.get(rank)
        # A trainer that had hung may have come back first: it makes way for one of a later life.
        if not epoch or (epoch >= now and (old is None or old.pid == pid or 0 < old.epoch < epoch)):
            return None
        return StaleStepError(f"rank {rank} of epoch {epoch} has a successor; the job lives in epoch {now}")

    def is_other(self, rank: int, pid: int) -> CkptdError | None:
        """Why what a process asks as a rank is of no use any more: it came late, and the process is gone or replaced."""
        trainer = self._trainers.get(rank)
        if trainer is None and pid:
            return self._unattached(rank)
        if trainer is None or not pid or trainer.pid == pid:
            return None
        return StaleStepError(f"process {pid} is not rank {rank} any more; its successor asks again")

    def attach(self, rank: int, trainer: Trainer) -> bool:
        """Register a process as a rank; return whether it is another one than before."""
        old = self._trainers.get(rank)
        if old is not None and old.pid == trainer.pid:
            return False
        self._move(rank, "attach", trainer)
        return True

    def leave(self, rank: int, pid: int) -> bool:
        """The process is gone; return whether it was still the rank's."""
        trainer = self._trainers.get(rank)
        if trainer is None or trainer.pid != pid:
            return False
        self._move(rank, "leave", None)
        return True

    def join(self, rank: int, epoch: int) -> CkptdError | None:
        """The rank lives in this epoch from now on."""
        trainer = self._trainers.get(rank)
        if trainer is None:
            return self._unattached(rank)
        if epoch < trainer.epoch:
            return StaleStepError(f"epoch {epoch}: rank {rank} lives in {trainer.epoch} already")
        self._move(rank, "join", replace(trainer, epoch=epoch))
        return None

    def begin(self, rank: int, version: Version, *, epoch: int, captured: Version | None) -> CkptdError | None:
        """The rank begins to capture `version`. `epoch` is the newest life, `captured` its newest image."""
        trainer = self._trainers.get(rank)
        if trainer is None:
            return self._unattached(rank)
        if version.epoch != trainer.epoch or version.epoch < epoch:
            return StaleStepError(
                f"{version}: rank {rank} lives in epoch {trainer.epoch} and the job in {epoch}; "
                "call restore() once at the start of each life"
            )
        # What it captured counts too: a restarted daemon does not know what was begun.
        last = max((known for known in (trainer.begun, captured) if known is not None), default=None)
        if last is not None and version <= last:
            return StaleStepError(
                f"{version} is not newer than {last}, the last one of rank {rank}; steps must grow within a life"
            )
        self._move(rank, "begin", replace(trainer, begun=version))
        return None

    def captures(self, catalog: Catalog) -> tuple[Captures, ...]:
        """How far each rank is, for the report."""
        return tuple(
            Captures(rank, catalog.free(rank), trainer.begun, catalog.unfinished(rank), trainer.epoch)
            for rank, trainer in self
        )

    def _move(self, rank: int, act: str, trainer: Trainer | None) -> None:
        """Move a rank by a named act. Raises IllegalAct."""
        old = self._trainers.get(rank)
        after = follow(TRANSITIONS, old.state if old else "absent", act, f"rank {rank}")
        new: State = trainer.state if trainer else "absent"
        if new != after:
            raise IllegalAct(f"rank {rank}: {act} leads to {after}, not to {new}")
        if trainer is None:
            del self._trainers[rank]
        else:
            self._trainers[rank] = trainer

    def check_invariants(self) -> None:
        """Nobody has begun to capture under another epoch than the one it lives in."""
        for rank, trainer in self._trainers.items():
            begun = trainer.begun
            assert begun is None or begun.epoch <= trainer.epoch, f"rank {rank} of {trainer.epoch} has begun {begun}"

    def _unattached(self, rank: int) -> AccessError:
        return AccessError(f"rank {rank} is not attached to node {self._node}; attach first")
