"""How the ranks of a save by DCP end it together, though only one of them is told: by the store of their process group.

DCP makes the step's directory on every rank, has each write its files, gathers what they wrote, and renames `.metadata.tmp`
on the coordinator alone. So a rank begins to listen when it makes the directory, and commits its image when rank 0 calls. A
call carries an epoch, the answers a count and the first failure: no pickle, no collective that could mix with those of DCP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ckptd.ckpt.errors import CkptdError, Unrecoverable
from ckptd.integrations.journal import logger
from ckptd.integrations.torch_private import store_of_the_job

_POLL_S = 0.01
_POLL_MAX_S = 0.1
"""Ranks by the thousand ask rank 0's store while a save is written."""


class Calls:
    """The calls about one step of a job. They are numbered, as a step may be saved again."""

    def __init__(self, job: str, step: int) -> None:
        """Raises UsageError where there is no process group."""
        self._store: Any = store_of_the_job()
        self._key = f"ckptd.files/{job}/{step}"

    @property
    def made(self) -> int:
        """How many calls were made so far."""
        return int(self._store.add(self._key, 0))

    def call(self, epoch: int, others: int, timeout_s: float) -> None:
        """For rank 0: have the other ranks commit, and wait until all have. Raises Unrecoverable with a failure."""
        number = int(self._store.add(self._key, 1))
        self._store.set(self._at(number), str(epoch))
        deadline = time.monotonic() + timeout_s
        while (answered := int(self._store.add(self._at(number, "done"), 0))) < others:
            if time.monotonic() > deadline:
                raise Unrecoverable(
                    f"{others - answered} of the {others} other ranks did not commit their files in {timeout_s:.0f} s; "
                    "every rank of the default process group must take part in a save by DCP to ckptd://"
                )
            time.sleep(_POLL_S)
        if self._store.check([self._at(number, "failed")]):
            raise Unrecoverable(f"nothing was saved: {self._store.get(self._at(number, 'failed')).decode()}")

    def answer(self, number: int, commit: Callable[[int], None], ended: threading.Event, who: str) -> None:
        """For the others: wait for call `number`, commit for its epoch, and say what became of it; no more once `ended`."""
        try:
            pause_s = _POLL_S
            while not self._store.check([self._at(number)]):
                if ended.wait(pause_s):
                    return
                pause_s = min(pause_s * 1.5, _POLL_MAX_S)
            try:
                commit(int(self._store.get(self._at(number))))
            except (CkptdError, OSError, RuntimeError, ValueError) as error:
                logger.error("ckptd: %s: its files were not saved: %s", who, error)
                self._store.set(self._at(number, "failed"), f"{who}: {type(error).__name__}: {error}")
            self._store.add(self._at(number, "done"), 1)
        except RuntimeError as error:  # the store went with rank 0: the save is over, whatever became of it
            logger.warning("ckptd: %s: the save was left by rank 0: %s", who, error)

    def _at(self, number: int, what: str = "epoch") -> str:
        return f"{self._key}/{number}/{what}"
