"""The face of ckptd in a training script: five lines, and the training goes on.

The life of a capture: `step(n)` copies the small mutable state at once and hands the rest to the worker thread, which
asks the daemon for a slot and copies. The fence, torch's hook before any optimizer's update, waits for the copy, looks at
the trip wires, and hands the commit to the worker; where no update came, the next `step`, `wait` or `close` does that.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckptd.ckpt.client import Channel, Slot
from ckptd.ckpt.errors import StaleStepError, StateError, UsageError
from ckptd.ckpt.model import Version, check_job_name
from ckptd.ckpt.settings import read
from ckptd.integrations import process
from ckptd.integrations.capture import Capture, MovedError
from ckptd.integrations.copying import Copying
from ckptd.integrations.journal import Journal, OnError, Stats, logger
from ckptd.integrations.outline import Outline
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.restore import Restore, Snapshot
from ckptd.integrations.session import Session, Ticket
from ckptd.integrations.sources import Plan
from ckptd.integrations.state import Leaf, TrainingState
from ckptd.integrations.watch import Watched
from ckptd.integrations.wires import Watch

if TYPE_CHECKING:
    from typing_extensions import Self

LEVELS = ("captured", "sealed", "persisted")
_CLOSE_S = 30.0
_PATIENCE_S = 2.0
"""How long an update waits for the daemon to name a slot; usually it has done so long before."""


@dataclass(frozen=True, slots=True)
class _Window:
    """A capture that is neither committed nor discarded: the worker may still be copying."""

    capture: Capture
    ticket: Ticket
    copying: Copying
    slot: Future[Slot | None]


class Checkpointer:
    """Keeps the state of a training job recoverable.

    `restore` and the constructor raise their errors. Captures run in the background and follow `on_error`: "warn" logs
    each cause once and counts it in `stats`, "raise" raises it at the next `step`, `wait` or `close`.
    """

    def __init__(
        self,
        *,
        job: str | None = None,
        every: int = 1,
        persist_every: int | None = None,
        storage: str | None = None,
        on_error: OnError = "warn",
        watch: Watch = "samples",
        channel: Channel | None = None,
        **state: object,
    ) -> None:
        """Capture every `every` steps; `persist_every` and `storage` say how often and where the daemon writes to disk.

        `watch`: how writes behind the optimizer's back are found, by "samples" of the tensors' bytes and torch's version
        counters, or by the "counters" alone. `state`: modules, optimizers and Stateful objects by name. `channel`:
        another way to a daemon, for tests.
        Raises StateError for an object that cannot be captured, UsageError for the other arguments.
        """
        for name, value in (("every", every), ("persist_every", persist_every)):
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"found {name}={value!r}, expected a number of steps from 1 on")
        self._journal = Journal(on_error)
        self._job = check_job_name(read(job=job).job)
        self._every = every
        self._ranks = Ranks.detect()
        self._state = TrainingState(state, self._ranks.world)
        self._epoch: int | None = None
        self._attempts = 0
        self._last = -1
        self._plan: Plan | None = None
        self._outline = Outline([])
        self._moves = False
        """Whether tensors were found to get other memory: only then the trainer looks for it, at each step."""
        self._watched = Watched(self._state.optimizers.values(), watch)
        self._room = 0
        self._reserved = 0
        self._window: _Window | None = None
        self._late: Future[Slot | None] | None = None
        self._committed: Version | None = None
        self._closed = ""
        """Why it can no longer be used; empty while it can."""

        def connect() -> Channel:
            if channel is not None:
                return channel
            from ckptd.ckpt.embedded import connect as connect_to_node  # it starts processes: load it only if needed

            return connect_to_node(job=self._job, persist_every=persist_every, storage=storage)

        process.enter(self)
        self._session = Session(self._ranks, connect)
        self._hook = register_optimizer_step_pre_hook(self._fence)
        atexit.register(self.close)

    def restore(self) -> int:
        """Bring the newest recoverable step back into the objects; return it, or 0 for a fresh start. A collective.

        Raises StateError when the snapshot does not fit the objects or the number of ranks, DaemonUnavailable,
        Unrecoverable, CorruptionError. On error the objects are unchanged (if no load_state_dict() of them failed).
        """
        self._check_open()
        with self._guarding():
            self._close_window()
        self._session.forget()
        decision = self._session.start(fresh=False)
        self._epoch = decision.epoch
        version = decision.version
        if version is None:
            self._last = -1
            if self._ranks.rank == 0:
                logger.warning("ckptd: job %s starts fresh, from step 0: %s", self._job, decision.reason)
            return 0
        if decision.world != self._ranks.world:
            raise StateError(
                f"{version} was captured by {decision.world} ranks, this job has {self._ranks.world}; resharding is not "
                f"supported yet: start {decision.world} ranks, or `ckptd export {version.step}` and load that file"
            )
        try:
            ready = self._ranks.together(lambda: self._fetch(version))
            self._ranks.together(ready.apply)
        finally:
            self._session.call(lambda channel: channel.release(version)).add_done_callback(self._note)
        self._last = version.step
        logger.info("ckptd: restored %s from %s: %s", version, decision.source, decision.reason)
        return version.step

    def step(self, n: int) -> None:
        """Capture the state after `n` finished updates, if it is due. Returns at once; never call it before the update.

        Without `restore` before, the first call starts a fresh life of the job, which is a collective.
        """
        with self._timed(), self._guarding():
            self._close_window()
            if type(n) is not int or n < 0:
                raise UsageError(f"found step {n!r}, expected the number of finished updates, an int from 0 on")
            if n % self._every == 0 and self._alive():
                self._capture(n)
        self._journal.raise_pending()

    def wait(self, level: str = "sealed", timeout_s: float = 60.0) -> str:
        """Wait until the last committed snapshot is `captured`, `sealed` or `persisted`; return what it has reached.

        "none" says that there is none; `stats.last_error` says why.
        """
        if level not in LEVELS:
            raise UsageError(f"found level {level!r}, expected one of {', '.join(LEVELS)}")
        reached = "none"
        with self._guarding():
            self._check_open()
            self._close_window()
            if self._epoch is not None:
                reached = self._session.call(lambda channel: self._reached(channel, level, timeout_s)).result()
        self._journal.raise_pending()
        return reached

    def close(self) -> None:
        """Finish the last capture and let go of the daemon, which keeps its snapshots. Called at exit, too."""
        if self._closed:
            return
        self._closed = "this Checkpointer was closed; make another one"
        process.leave(self)
        atexit.unregister(self.close)
        self._hook.remove()
        with self._guarding():
            self._close_window()
        self._session.close(_CLOSE_S)
        self._journal.raise_pending()

    def abandon(self) -> None:
        """For a forked child: the parent goes on with the daemon and the slots, here nothing may touch them."""
        self._closed = f"this Checkpointer belongs to process {os.getppid()}, which was forked; make another one here"
        atexit.unregister(self.close)
        self._hook.remove()
        self._window = None
        self._journal = self._journal.anew()

    @property
    def job(self) -> str:
        """The name of the job."""
        return self._job

    @property
    def stats(self) -> Stats:
        """What became of the snapshots so far."""
        return self._journal.stats

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _guarding(self) -> Iterator[None]:
        """Whatever fails inside is counted and said, and does not reach the training loop from here."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - P4: a snapshot must not end the training, whatever went wrong in it
            self._journal.failed(error)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._journal.blocked(time.perf_counter() - began)

    def _alive(self) -> bool:
        """Whether this life has its epoch; tries to begin one at the 1st, 2nd, 4th, 8th, ... call, alike on all ranks."""
        self._check_open()
        if self._epoch is None:
            self._attempts += 1
            if self._attempts & (self._attempts - 1):
                return False
            self._epoch = self._session.start(fresh=True).epoch
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(self._closed)

    def _fetch(self, version: Version) -> Restore:
        found = self._session.call(lambda channel: channel.gather(version)).result()
        return Restore(self._state, Snapshot(found, version, self._job, self._ranks.world), self._ranks)

    def _capture(self, n: int) -> None:
        """Copy the eager state, plan anew if the layout changed, and let the worker copy the rest."""
        assert self._epoch is not None
        if n <= self._last:
            raise StaleStepError(
                f"found step {n} after step {self._last}; expected a greater one: steps only grow in a life"
            )
        if self._late is not None and not self._late.done():
            self._journal.skipped(f"ckptd: step {n} was skipped, the daemon has not answered for an earlier one yet")
            return
        if not self._outline.same(self._state.probe()) or (self._moves and not self._outline.in_place()):
            self._plan = None
        leaves = self._state.lazy() if self._plan is None else []
        eager, document = self._state.eager()
        if self._plan is not None and not self._plan.fits(eager, document):
            self._plan, leaves = None, self._state.lazy()
        plan = self._plan or self._make_plan(leaves, eager, document)
        self._last = n
        version, copies = Version(self._epoch, n), list(eager.values())
        outline = None if self._moves else self._outline
        capture, copying = self._watched.capture(version, plan, copies, document, self._state.staging, outline)
        ticket = Ticket()
        self._window = _Window(capture, ticket, copying, self._session.capture(capture, ticket, copying))
        if not self._state.optimizers:  # nobody would close the window before the next change
            self._close_window()

    def _make_plan(self, leaves: list[Leaf], eager: dict[str, torch.Tensor], document: bytes) -> Plan:
        """Plan for this layout, and have slots of its size made: the one thing that a training step waits for longer."""
        if len(document) > self._room:  # with some air: a document that grows a little at each step costs few plans
            self._room = len(document) * 5 // 4
        plan = Plan(leaves, eager, self._room, job=self._job, ranks=self._ranks)
        if plan.layout.size != self._reserved:
            self._session.reserve(plan)
            self._reserved = plan.layout.size
        self._plan = plan
        self._outline = Outline(self._state.probe())
        self._watched.plan(plan)
        return plan

    def _fence(self, *_: object) -> None:
        """torch's hook before an update of any optimizer: from here on the state changes."""
        if self._window is not None:
            with self._timed(), self._guarding():
                self._close_window()

    def _close_window(self) -> None:
        """Wait for the worker's copy, look at the trip wires, and let the worker commit or discard the image."""
        window, self._window = self._window, None
        if window is None:
            return
        if window.ticket.give_up(_PATIENCE_S):
            self._late = window.slot
            version = window.capture.version
            self._journal.skipped(f"ckptd: {version} was skipped, the daemon did not answer within {_PATIENCE_S:.0f} s")
            return
        try:
            window.copying.help()
        except RuntimeError as error:
            lost = error
            self._session.call(lambda channel: self._lose(channel, window, lost)).add_done_callback(self._note)
            return
        names = [name for armed in window.capture.armed for name in armed.by_counters()]
        ask = self._watched.ask_device()
        if window.copying.waits:
            window.slot.exception()  # the worker's last batch
        if window.capture.plan.device is None:
            job = self._verdict(window, names)
            if job is not None:
                self._session.call(job).add_done_callback(self._note)
        else:  # the copies are under way on the device: the worker waits for them, the training does not
            self._session.call(lambda channel: self._conclude(channel, window, names, ask)).add_done_callback(
                self._note
            )

    def _lose(self, channel: Channel, window: _Window, error: RuntimeError) -> None:
        """For the worker: a copy failed in the trainer's thread."""
        slot = window.slot.result()
        if slot is not None:
            channel.abort(slot, window.capture.version, str(error))
        raise error

    def _conclude(self, channel: Channel, window: _Window, names: list[str], ask: Callable[[], list[str]]) -> None:
        """For the worker: wait for the device, and ask it what it has seen, before anything is committed."""
        if window.slot.exception() is None and window.slot.result() is not None:
            window.copying.settle()
            names = [*names, *ask()]
        job = self._verdict(window, names)
        if job is not None:
            job(channel)

    def _verdict(self, window: _Window, names: list[str]) -> Callable[[Channel], None] | None:
        """Everything is copied: whether the image is committed, or discarded as `names` were written meanwhile."""
        capture, version = window.capture, window.capture.version
        capture.loan.give_back()
        try:
            slot = window.slot.result()
        except MovedError as error:
            self._moves, self._plan = True, None
            self._journal.aborted(error)
            return None
        if slot is None:
            self._journal.skipped(f"ckptd: {version} was skipped, every slot is in use; the daemon cannot keep up")
            return None
        names = list(dict.fromkeys([*names, *window.copying.seen]))
        if not names:
            return lambda channel: self._commit(channel, slot, capture)
        text = f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        reason = f"{version} was discarded: changed between two updates of the optimizer: {text}"
        advice = "to avoid that, call step() after all changes to the state, before the next forward"
        self._journal.aborted(StateError(f"{reason}; {self._watched.notice(names)}; {advice}"))
        return lambda channel: channel.abort(slot, version, reason)

    def _commit(self, channel: Channel, slot: Slot, capture: Capture) -> None:
        channel.commit(slot, capture.version)
        self._session.slots.committed(slot, capture)
        self._committed = capture.version
        self._journal.captured()

    def _note(self, done: Future[None]) -> None:
        error = done.exception()
        if isinstance(error, Exception):
            self._journal.failed(error)

    def _reached(self, channel: Channel, level: str, timeout_s: float) -> str:
        return "none" if self._committed is None else channel.wait(self._committed, level, timeout_s)
