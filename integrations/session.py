"""One rank's life with its daemon: every call of the channel, in order, on the worker thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ckptd.ckpt.client import Attachment, Channel, Decision, Found, Slot
from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.model import Version
from ckptd.integrations.capture import Capture, Slots, Worker
from ckptd.integrations.copying import Copying, Load
from ckptd.integrations.images import Bring, bringing
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.signals import Signals
from ckptd.integrations.sources import Plan

T = TypeVar("T")
_PINNED_S = 600.0
"""How long the first call waits for slots that a GPU's driver must know before the first copy."""
_REASON_CHARS = 500  # a decision must fit into one broadcast message


class Ticket:
    """Who comes first: the worker, which begins to copy, or the trainer, which gives up waiting for a slot.

    A daemon that hangs must not stop the training: it only waits for copies that are under way (P4).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._given_up = False

    def answered(self) -> bool:
        """For the worker, once the daemon has answered: whether the state may still be copied."""
        with self._lock:
            self._answered.set()
            return not self._given_up

    def give_up(self, patience_s: float) -> bool:
        """For the trainer: wait for the daemon's answer; True when it did not come, and then nothing will be copied."""
        self._answered.wait(patience_s)
        with self._lock:
            self._given_up = not self._answered.is_set()
            return self._given_up


class Session:
    """A channel is used from one thread at a time, and a training step must not wait for it: hence the worker."""

    def __init__(self, ranks: Ranks, connect: Callable[[], Channel]) -> None:
        self._ranks = ranks
        self._connect = connect
        self._channel: Channel | None = None
        self.attachment: Attachment | None = None
        """What the daemon said of itself; None before `start`."""
        self.full_wait_s = 0.0
        """How long a capture waits for a free slot."""
        self.signals = Signals()
        """What the daemon sees of this rank without asking."""
        self.slots = Slots()
        """For jobs on the worker."""
        self._worker = Worker()

    def start(self, *, fresh: bool) -> Decision:
        """Attach, let rank 0 obtain a decision, and join the new epoch. A collective: all ranks return, or all raise."""
        self._ranks.together(self._do(self._attach))
        answer = self._ranks.together(self._do(lambda: self._decide(fresh=fresh)))
        said = self._ranks.from_first(answer)
        version = Version(*said["version"]) if said["version"] else None
        decision = Decision(said["epoch"], version, said["source"], said["reason"], said["world"])
        self._ranks.together(self._do(lambda: self._here.join(decision.epoch)))
        where = self.attachment.watch_dir if self.attachment else None
        self.signals.begin(where, self._ranks.rank, decision.epoch, version.step if version else 0)
        return decision

    def call(self, ask: Callable[[Channel], T]) -> Future[T]:
        """Ask the channel something after everything that was submitted before."""
        return self._worker.submit(lambda: ask(self._here))

    def images(self, version: Version) -> tuple[list[Found], Bring]:
        """Every rank's image of a version, and what brings their bytes; then `let_go`. Raises CkptdError.

        What this node holds is here; of other images only what is read must be brought, and no node gets all of them.
        """
        found = self.call(lambda channel: channel.open(version)).result()
        return found, bringing(found, lambda wanted: self.call(lambda channel: channel.bring(version, wanted)).result())

    def let_go(self, version: Version) -> Future[None]:
        """The images are no longer needed."""
        return self.call(lambda channel: channel.shut(version))

    def capture(self, capture: Capture, ticket: Ticket, copying: Copying) -> Future[Slot | None]:
        """Obtain a slot and copy the state into it; None when no slot is free, or the trainer has given up."""
        return self._worker.submit(lambda: self._fill(capture, ticket, copying))

    def reserve(self, plan: Plan) -> None:
        """Have slots made for the images of a plan, beside the training; if the state is on a GPU, wait and pin them.

        Raises MemoryBudgetError.
        """
        self._worker.submit(lambda: self._reserve(plan)).result()

    def forget(self) -> None:
        """The daemon may write into the slots from now on, as a restore does."""
        self._worker.submit(self.slots.forget)

    def close(self, timeout_s: float) -> None:
        """Finish what was submitted, close the channel, end the thread."""
        self.signals.close()
        self._worker.submit(self._close)
        self._worker.close(timeout_s)

    def _do(self, job: Callable[[], T]) -> Callable[[], T]:
        return lambda: self._worker.submit(job).result()

    @property
    def _here(self) -> Channel:
        assert self._channel is not None, "start() first"
        return self._channel

    def _attach(self) -> None:
        self._channel = self._channel or self._connect()
        ranks = self._ranks
        self.attachment = self._channel.attach(rank=ranks.rank, world=ranks.world, local_world=ranks.local_world)

    def _decide(self, *, fresh: bool) -> dict[str, object] | None:
        if self._ranks.rank != 0:
            return None
        made = self._here.decide(world=self._ranks.world, fresh=fresh)
        version = [made.version.epoch, made.version.step] if made.version else None
        said = {"epoch": made.epoch, "version": version, "source": made.source, "world": made.world}
        return {**said, "reason": made.reason[:_REASON_CHARS]}

    def _reserve(self, plan: Plan) -> None:
        size = plan.layout.size
        if plan.device is None:
            self._here.reserve(size)
        else:
            paths = self._here.reserve(size, _PINNED_S)
            self.slots.pin([Slot(-1, path, size) for path in paths], plan)

    def _fill(self, capture: Capture, ticket: Ticket, copying: Copying) -> Slot | None:
        try:
            return self._filled(capture, ticket, copying)
        finally:
            copying.offer(Load())  # whatever went wrong: nobody waits for batches

    def _filled(self, capture: Capture, ticket: Ticket, copying: Copying) -> Slot | None:
        try:
            slot = self._here.begin(capture.version, capture.plan.layout.size, self.full_wait_s)
        finally:
            wanted = ticket.answered()
        if slot is None:
            return None
        if not wanted:
            self._here.abort(slot, capture.version, "the daemon's answer came after the next update")
            return None
        try:
            self.slots.fill(slot, capture, copying)
        except (CkptdError, OSError, RuntimeError, ValueError) as error:
            self._here.abort(slot, capture.version, f"{type(error).__name__}: {error}")
            raise
        return slot

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
