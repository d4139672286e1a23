"""The ranks of this node, one by one: their files, their handlers, their processes. Each look is bounded in time."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from ckptd.ckpt.beat import BeatReader, Seen
from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.sighting import STACK_CHARS
from ckptd.ckpt.strict import json_object
from ckptd.daemon.observe import digests
from ckptd.daemon.observe.digests import Known, Life
from ckptd.daemon.observe.handlers import STACKS, STATUS, STATUS_NCCL, Silent, ask
from ckptd.daemon.observe.processes import TrainerProcess
from ckptd.daemon.observe.pyspy import spy
from ckptd.daemon.observe.recorder import Status, read_status
from ckptd.daemon.watch.observations import Process, RankDigest

LOOK_S = 0.5
"""How long a rank's handlers are waited for at each look."""
SHARE = 0.02
"""Of a trainer's time, at most, that its answers may take: one that is slow is asked less often."""
ANSWERS = 4
"""The quickest of so many answers shows what one costs the trainer: a busy machine makes single ones long."""
STACK_S = 1.5
UNMOVED = 3
"""Looks without any movement after which the stack is taken: once, until something moves."""
UNKNOWN_END = 1
"""The exit code of a process whose end nobody could tell, and that had not said that it ends."""
GROUPS_FILE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Attached:
    """A rank of this node, as the daemon knows it."""

    rank: int
    pid: int
    world: int
    epoch: int


class RankEye:
    """Looks at one process of one rank. Used by one thread at a time."""

    def __init__(self, directory: Path, attached: Attached, background: Executor) -> None:
        """`background`: for stacks, which take seconds. Raises PeerError when the process can't be seen from here."""
        self.attached = attached
        self._directory = directory
        self.process = TrainerProcess(attached.pid)
        self._life = Life(attached.rank)
        self._beat: BeatReader | None = None
        self._beat_id: tuple[int, int] = (0, 0)
        self.groups: dict[str, Known] = {}
        self._groups_id: tuple[int, int] = (0, 0)
        self.remarks: list[str] = []
        self._not_before = 0.0
        self._took: deque[float] = deque(maxlen=ANSWERS)
        self._status: Status | None = None
        self._nccl = False
        self._background = background
        self._asked_stack = False
        self._stack = ""
        self.digest = RankDigest(attached.rank, epoch=attached.epoch)
        self.gone_at: float | None = None
        self._ending = 0
        self._said: list[str] = []

    def look(self) -> RankDigest:
        """The rank's digest now. Never raises for what the trainer does, and takes little more than LOOK_S at most."""
        if self.gone_at is not None:
            self.digest = digests.gone(self.digest, self._ending, time.monotonic() - self.gone_at)
            return self.digest
        remarks: list[str] = []
        seen = self._seen(remarks)
        status = None if seen.closed else self._ask(remarks)  # its handlers have ended with it
        self.digest = digests.digest(self._life, seen, status, self.process.state(), self.groups)
        # Who ends is not asked: the handler waits for the interpreter's lock, which makes an ending Python abort.
        if self._life.unmoved >= UNMOVED and not seen.closed:
            self._suspect()
        elif self._life.unmoved == 0:
            self._asked_stack, self._stack = False, ""
        self.remarks = remarks
        return self.digest

    def bury(self) -> RankDigest:
        """The process has gone: find out how, at once. One that said that it ends has ended well, if nobody knows better."""
        self.gone_at = time.monotonic()
        code, seen = self.process.ending(), self._seen([])  # its page tells of its last moment, too
        self._ending = code if code is not None else UNKNOWN_END * (not seen.closed)
        last = replace(self.digest, step=max(self.digest.step, seen.step))
        self.digest = digests.gone(last, self._ending, 0.0)
        return self.digest

    def explain(self) -> str:
        """What its threads do, for people; '' while that is not known yet. It is found out when the rank stands still."""
        return self._stack[-STACK_CHARS:]

    def close(self) -> None:
        self.process.close()

    # ---- its files --------------------------------------------------------------------------------

    def _seen(self, remarks: list[str]) -> Seen:
        path = self._directory / f"{self.attached.rank}.beat"
        try:
            if (found := _identity(path)) != self._beat_id:
                self._beat, self._beat_id = BeatReader(path), found
                self._life = Life(self.attached.rank)
            seen = self._beat.look() if self._beat else None
        except (OSError, CorruptionError) as error:
            remarks.append(f"rank {self.attached.rank}: its steps are not seen: {error}")
            seen = None
        mine = seen is not None and (seen.rank, seen.pid) == (self.attached.rank, self.attached.pid)
        if seen is None or not mine or seen.epoch < self.attached.epoch:
            return Seen(self.attached.rank, self.attached.pid, self.attached.epoch, 0, 1, closed=False, marks=())
        self._read_groups(remarks)
        return seen

    def _read_groups(self, remarks: list[str]) -> None:
        path = self._directory / f"{self.attached.rank}.groups"
        try:
            if (found := _identity(path)) != self._groups_id:
                with path.open("rb") as file:
                    content = json_object(file.read(GROUPS_FILE_MAX))
                self.groups, self._said = digests.groups_of(content, self.attached.world)
                self._groups_id = found
            remarks += [f"rank {self.attached.rank}: {text}" for text in self._said]
        except (OSError, ValueError) as error:
            remarks.append(f"rank {self.attached.rank}: its process groups are not known: {error}")

    # ---- its handlers -----------------------------------------------------------------------------

    def _ask(self, remarks: list[str]) -> Status | None:
        if time.monotonic() < self._not_before:
            return self._status
        path = self._directory / f"{self.attached.rank}.fr"
        began = time.monotonic()
        try:
            self._status = read_status(ask(path, STATUS_NCCL if self._nccl else STATUS, LOOK_S))
            self._life.deaf = 0
        except Silent as error:
            self._life.deaf += path.exists()
            self._status = None
            remarks.append(f"rank {self.attached.rank}: its collectives are not seen: {error}")
        except PeerError as error:
            self._status = None
            remarks.append(f"rank {self.attached.rank}: its collectives are not seen: {error}")
        self._took.append(time.monotonic() - began)
        cost = min(self._took)
        self._not_before = began + cost / SHARE if cost > SHARE else 0.0
        self._nccl = any(group.backend == "nccl" for group in self.groups.values())
        return self._status

    def _suspect(self) -> None:
        """Have the stacks taken, once: a handler that waits for the interpreter's lock keeps a thread of the server busy.

        Never of a rank that ends: Python ends a thread that waits for the lock by then, and torch's aborts the process.
        """
        if not self._asked_stack and self.digest.process is not Process.STOPPED:
            self._asked_stack = True
            self._background.submit(self._take_stack, self._life)

    def _take_stack(self, life: Life) -> None:
        try:
            text = ask(self._directory / f"{self.attached.rank}.fr", STACKS, STACK_S).decode(errors="replace")
            life.idle = digests.is_idle(text)
        except Silent:
            life.held = self._status is not None
            text = spy(self.attached.pid) or "its interpreter did not answer: something holds its lock"
        except PeerError as error:
            text = str(error)
        self._stack = text


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns if path.suffix == ".groups" else 0
