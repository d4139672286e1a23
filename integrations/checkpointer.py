"""The face of ckptd in a training script: five lines, and the training goes on.

The life of a capture: `step(n)` copies the small mutable state at once and hands the rest to the worker thread, which
asks the daemon for a slot and copies. The fence, torch's hook before any optimizer's update, waits for the copy, looks at
the trip wires, and hands the commit to the worker; where no update came, the next `step`, `wait` or `close` does that.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckptd.ckpt.client import WAIT_MAX_S, Channel
from ckptd.ckpt.errors import StaleStepError, UsageError
from ckptd.ckpt.model import Version, check_job_name
from ckptd.ckpt.policy import Failures, cadence_of
from ckptd.ckpt.settings import read
from ckptd.integrations import process
from ckptd.integrations.journal import Journal, OnError, Stats, logger
from ckptd.integrations.loaders import advise
from ckptd.integrations.outline import Outline
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.restore import Restore
from ckptd.integrations.rounds import Rounds, Turn
from ckptd.integrations.session import Session
from ckptd.integrations.sigterm import Sigterm
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.sources import Plan
from ckptd.integrations.state import Leaf, TrainingState
from ckptd.integrations.watch import Watched
from ckptd.integrations.window import Window
from ckptd.integrations.wires import Watch

if TYPE_CHECKING:
    from typing_extensions import Self

WhenFull = Literal["skip", "wait"]
LEVELS = ("captured", "sealed", "persisted")
_CLOSE_S = 30.0


class Checkpointer:
    """Keeps the state of a training job recoverable.

    `restore` and the constructor raise their errors. Captures run in the background and follow `on_error`: "warn" logs
    each cause once and counts it in `stats`, "raise" raises it at the next `step`, `wait` or `close`.
    """

    def __init__(
        self,
        *,
        job: str | None = None,
        every: int | str = 1,
        persist_every: int | str | None = None,
        storage: str | None = None,
        when_full: WhenFull = "skip",
        full_wait_s: float = 10.0,
        sigterm_grace_s: float | None = None,
        on_error: OnError = "warn",
        watch: Watch = "samples",
        channel: Channel | None = None,
        **state: object,
    ) -> None:
        """Capture at `every`: a number of steps, a time ("90s", "5min"), or "auto", which loses the least time.

        `persist_every` (the same) and `storage` say how often and where a daemon that is started here writes to disk.
        `when_full`: without a free slot, "skip" the snapshot or "wait" for one, `full_wait_s` at most. `sigterm_grace_s`:
        on SIGTERM take one last snapshot at the next step, have it persisted within so many seconds, and only then do what
        the signal did before; give it on all ranks, or leave SIGTERM alone on all. `watch`: how writes behind the
        optimizer's back are found, by "samples" of the tensors' bytes and torch's version counters, or by the "counters"
        alone. `state`: modules, optimizers and Stateful objects by name. `channel`: another way to a daemon, for tests.
        Raises StateError for an object that cannot be captured, UsageError for the other arguments.
        """
        cadence = cadence_of(every, "every")
        if persist_every is not None:
            cadence_of(persist_every, "persist_every")
        wait_s = _wait_s(when_full, full_wait_s)
        self._journal = Journal(on_error)
        settings = read(job=job)
        self._job, self._mtbf_node_s = check_job_name(settings.job), settings.mtbf_node_s
        self._ranks = Ranks.detect()
        self._state = TrainingState(state, self._ranks.rank)
        if self._ranks.rank == 0:
            advise(state)
        sigterm = None if sigterm_grace_s is None else Sigterm(sigterm_grace_s)
        self._epoch: int | None = None
        self._attempts = 0
        self._last = -1
        self._plan: Plan | None = None
        self._outline = Outline([])
        self._watched = Watched(self._state.optimizers.values(), watch)
        self._room = 0
        self._reserved = 0
        self._closed = ""
        """Why it can no longer be used; empty while it can."""

        def connect() -> Channel:
            if channel is not None:
                return channel
            from ckptd.ckpt.embedded import connect as connect_to_node  # it starts processes: load it only if needed

            return connect_to_node(job=self._job, persist_every=persist_every, storage=storage)

        process.enter(self)
        self._session = Session(self._ranks, connect)
        self._session.full_wait_s = wait_s
        self._window = Window(self._session, self._watched, self._journal)
        self._sigterm = sigterm
        self._rounds = Rounds(
            cadence,
            self._ranks,
            failures=self._failures,
            ending=None if sigterm is None else lambda: sigterm.came,
            lag_s=lambda: self._session.call(lambda channel: channel.sealing_lag_s()),
            blocked_s=lambda: self._journal.stats.blocked_s,
        )
        self._hook = register_optimizer_step_pre_hook(self._fence)
        atexit.register(self.close)

    def restore(self) -> int:
        """Bring the newest recoverable step back into the objects; return it, or 0 for a fresh start. A collective.

        Any number of ranks may have captured it (docs/elastic.md). Raises StateError when the snapshot does not fit the
        objects, DaemonUnavailable, Unrecoverable, CorruptionError. On error the objects are unchanged (if no
        load_state_dict() of them failed).
        """
        self._check_open()
        with self._guarding():
            self._window.close()
        self._session.forget()
        decision = self._session.start(fresh=False)
        self._epoch = decision.epoch
        version = decision.version
        if version is None:
            self._last = -1
            if self._ranks.rank == 0:
                logger.warning("ckptd: job %s starts fresh, from step 0: %s", self._job, decision.reason)
            return 0
        try:
            ready = self._ranks.together(lambda: self._fetch(version, decision.world))
            self._ranks.together(ready.apply)
        finally:
            self._session.let_go(version).add_done_callback(self._window.note)
        self._last = version.step
        logger.info("ckptd: restored %s from %s: %s", version, decision.source, decision.reason)
        return version.step

    def step(self, n: int) -> None:
        """Capture the state after `n` finished updates, if it is due. Returns at once; never call it before the update.

        Without `restore` before, the first call starts a fresh life of the job, which is a collective.
        """
        turn = Turn()
        with self._timed():
            self._session.signals.step(n)
            with (
                self._guarding()
            ):  # first, and by itself: whatever fails on this rank, it counts the calls as the others do
                if type(n) is not int or n < 0:
                    raise UsageError(f"found step {n!r}, expected the number of finished updates, an int from 0 on")
                turn = self._rounds.turn(n)
            if turn.last and self._sigterm is not None:
                self._session.full_wait_s = self._sigterm.left_s  # there will be no other one
            with self._guarding():
                self._window.close()
                if turn.due and self._alive():
                    self._capture(n)
                elif self._plan is None and self._epoch is not None:
                    self._layout()  # its slots shall stand when the first snapshot is due
        if turn.last and self._sigterm is not None:
            self._end(self._sigterm)
        self._journal.raise_pending()

    def wait(self, level: str = "sealed", timeout_s: float = 60.0) -> str:
        """Wait until the last committed snapshot is `captured`, `sealed` or `persisted`; return what it has reached.

        A lower level is returned after `timeout_s` seconds, and at once when it can't get there any more: another rank has
        skipped it, too much of it is lost, or there is no storage. "none": there is none; `stats.last_error` says why.
        """
        if level not in LEVELS:
            raise UsageError(f"found level {level!r}, expected one of {', '.join(LEVELS)}")
        reached = "none"
        with self._guarding():
            self._check_open()
            self._window.close(timeout_s)
            if self._epoch is not None:
                with self.phase("checkpoint"):
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
        patience_s = _CLOSE_S
        if self._sigterm is not None and self._sigterm.came:
            patience_s = min(patience_s, self._sigterm.left_s)
        elif self._sigterm is not None:
            self._sigterm.close()
        with self._guarding():
            self._window.close(patience_s)
        self._session.close(patience_s)
        self._journal.raise_pending()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """`with checkpointer.phase("eval"):` around what is no training step, so that nobody takes it for a hang.

        `name`: eval, compile, checkpoint (the script's own), start, train. Raises UsageError for another one.
        """
        return self._session.signals.phase(name)

    def abandon(self) -> None:
        """For a forked child: the parent goes on with the daemon and the slots, here nothing may touch them."""
        self._closed = f"this Checkpointer belongs to process {os.getppid()}, which was forked; make another one here"
        atexit.unregister(self.close)
        self._hook.remove()
        self._journal = self._journal.anew()
        self._window.abandon(self._journal)

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

    def _end(self, sigterm: Sigterm) -> None:
        """A rank was told to end. All have captured this step; who was told sees it safe and leaves, in the grace time."""
        with self._guarding():
            self._window.close()
            if self._epoch is not None:
                safe = self._session.call(lambda channel: self._settle(channel, sigterm))
                if sigterm.came:
                    level = safe.result(sigterm.left_s)
                    logger.warning(
                        "ckptd: SIGTERM: %s is %s, %.1f s of the grace time are left",
                        self._window.committed,
                        level,
                        sigterm.left_s,
                    )
        try:
            if sigterm.came:
                self.close()  # what the signal does may leave no time for that
        finally:
            sigterm.finish()

    def _settle(self, channel: Channel, sigterm: Sigterm) -> str:
        """Have the last snapshot persisted, or sealed where there is no storage."""
        version = self._window.committed
        if version is None:
            return "none"
        stored = channel.persist(version)
        return (
            channel.wait(version, "persisted" if stored else "sealed", sigterm.left_s) if sigterm.came else "captured"
        )

    def _failures(self) -> Failures:
        """How often this job is expected to fail."""
        daemon, ranks = self._session.attachment, self._ranks
        nodes = daemon.nodes if daemon else max(1, ranks.world // ranks.local_world)
        return Failures(mtbf_node_s=self._mtbf_node_s, nodes=nodes, parity=daemon.parity if daemon else 0)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(self._closed)

    def _fetch(self, version: Version, world: int) -> Restore:
        found, bring = self._session.images(version)
        return Restore(self._state, Snapshot(found, version, self._job, world, bring), self._ranks)

    def _capture(self, n: int) -> None:
        """Copy the eager state, and let the worker copy the rest."""
        assert self._epoch is not None
        if n <= self._last:
            raise StaleStepError(
                f"found step {n} after step {self._last}; expected a greater one: steps only grow in a life"
            )
        if self._window.is_late:
            self._journal.skipped(f"ckptd: step {n} was skipped, the daemon has not answered for an earlier one yet")
            return
        plan, eager, document = self._layout()
        self._last = n
        version, copies = Version(self._epoch, n), list(eager.values())
        outline = None if self._window.moves else self._outline
        self._window.open(*self._watched.capture(version, plan, copies, document, self._state.staging, outline))
        if not self._state.optimizers:  # nobody would close the window before the next change
            self._window.close()

    def _layout(self) -> tuple[Plan, dict[str, torch.Tensor], bytes]:
        """The plan, made anew if the layout has changed, and copies of the eager state."""
        if not self._outline.same(self._state.probe()) or (self._window.moves and not self._outline.in_place()):
            self._plan = None
        leaves = self._state.lazy() if self._plan is None else []
        eager, document = self._state.eager()
        if self._plan is not None and not self._plan.fits(eager, document):
            self._plan, leaves = None, self._state.lazy()
        return self._plan or self._make_plan(leaves, eager, document), eager, document

    def _make_plan(self, leaves: list[Leaf], eager: dict[str, torch.Tensor], document: bytes) -> Plan:
        """Plan for this layout, and have slots of its size made; a training step waits for the plan, a few milliseconds."""
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
        self._session.signals.reached()
        if self._window.is_open:
            with self._timed(), self._guarding():
                self._window.close_for_update()

    def _reached(self, channel: Channel, level: str, timeout_s: float) -> str:
        return "none" if self._window.committed is None else channel.wait(self._window.committed, level, timeout_s)


def _wait_s(when_full: str, full_wait_s: float) -> float:
    """How long a capture waits for a free slot. Raises UsageError."""
    if when_full not in ("skip", "wait"):
        raise UsageError(f"found when_full={when_full!r}, expected 'skip' or 'wait'")
    if not 0.0 < full_wait_s <= WAIT_MAX_S:
        raise UsageError(f"found full_wait_s={full_wait_s!r}, expected seconds, {WAIT_MAX_S:.0f} at most")
    return full_wait_s if when_full == "wait" else 0.0
