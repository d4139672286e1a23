"""The Checkpointers of this process: one per job, and none of them works in a forked child."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from ckptd.ckpt.errors import UsageError


class Resident(Protocol):
    """What is registered here; a Checkpointer."""

    @property
    def job(self) -> str: ...

    def abandon(self) -> None:
        """Let go of everything without a word to anybody: the process was forked, and this is the child."""
        ...


_residents: weakref.WeakSet[Resident] = weakref.WeakSet()


def enter(resident: Resident) -> None:
    """Register. Raises UsageError when one of the same job is registered: they would capture into each other's slots."""
    if any(other.job == resident.job for other in _residents):
        raise UsageError(
            f"a Checkpointer of job {resident.job} is open in this process; expected one for each rank of a job: "
            "close() it first, or give all objects to one"
        )
    _residents.add(resident)


def leave(resident: Resident) -> None:
    """Forget it. A second call does nothing."""
    _residents.discard(resident)


def _in_child() -> None:
    """The worker thread and the channel's threads did not come along, and the locks may be held by them for ever."""
    for resident in list(_residents):
        resident.abandon()
    _residents.clear()


os.register_at_fork(after_in_child=_in_child)
