"""One capture from the moment when it is handed to the worker to its commit: the quiet window of the training.

It opens in `Checkpointer.step` and closes at the fence, before the next update of any optimizer, or at the next call of the
Checkpointer where no update came. All methods but those named so are for the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass

from ckptd.ckpt.client import Channel, Slot
from ckptd.ckpt.errors import StateError
from ckptd.ckpt.model import Version
from ckptd.integrations.capture import Capture, MovedError
from ckptd.integrations.copying import Copying
from ckptd.integrations.journal import Journal
from ckptd.integrations.session import Session, Ticket
from ckptd.integrations.sources import Plan
from ckptd.integrations.watch import Watched

_PATIENCE_S = 2.0
"""How long an update waits for the daemon to name a slot; usually it has done so long before."""
_MAKING_S = 0.05
"""How long it waits when the daemon may be making the pages of the first one: for gigabytes that takes seconds."""
_MAKING_BYTES = 64 << 20
"""An image of so few bytes has its pages in a few milliseconds."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A capture that is neither committed nor discarded: the worker may still be copying."""

    capture: Capture
    ticket: Ticket
    copying: Copying
    slot: Future[Slot | None]


class Window:
    """The captures of a Checkpointer, of which one is open at a time."""

    def __init__(self, session: Session, watched: Watched, journal: Journal) -> None:
        self._session, self._watched, self._journal = session, watched, journal
        self._open: _Open | None = None
        self._late: Future[Slot | None] | None = None
        self._plan: Plan | None = None
        """That of the last capture for which the daemon has named a slot."""
        self.committed: Version | None = None
        """The newest version that the daemon has recorded."""
        self.moves = False
        """Whether tensors were found to get other memory: only then the trainer looks for it, at each step."""

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def is_late(self) -> bool:
        """Whether the daemon has not answered yet for a capture that was given up."""
        return self._late is not None and not self._late.done()

    def open(self, capture: Capture, copying: Copying) -> None:
        """Have the worker obtain a slot and copy."""
        ticket = Ticket()
        self._open = _Open(capture, ticket, copying, self._session.capture(capture, ticket, copying))

    def abandon(self, journal: Journal) -> None:
        """For a forked child: what is open belongs to the parent."""
        self._open, self._journal = None, journal

    def close_for_update(self) -> None:
        """As `close`, in the fence: the first snapshot is left out rather than delay an update while its slot is made."""
        plan = self._open.capture.plan if self._open else None
        making = plan is not None and plan is not self._plan and plan.layout.size >= _MAKING_BYTES
        self.close(_MAKING_S if making else _PATIENCE_S)

    def close(self, patience_s: float = _PATIENCE_S) -> None:
        """Wait for the worker's copy, look at the trip wires, and let the worker commit or discard the image.

        `patience_s`: how long to wait until the daemon names a slot.
        """
        window, self._open = self._open, None
        if window is None:
            return
        full_wait_s = self._session.full_wait_s
        patience_s += full_wait_s
        with self._session.signals.phase("checkpoint") if full_wait_s else nullcontext():
            given_up = window.ticket.give_up(patience_s)
        if given_up:
            self._late = window.slot
            version = window.capture.version
            self._journal.skipped(f"ckptd: {version} was skipped, the daemon named no slot within {patience_s:g} s")
            return
        self._plan = window.capture.plan
        try:
            window.copying.help()
        except RuntimeError as error:
            lost = error
            self._submit(lambda channel: _lose(channel, window, lost))
            return
        if window.copying.waits:
            window.slot.exception()  # the worker's last batch
        if window.capture.plan.device is None:
            job = self._verdict(window, [])
            if job is not None:
                self._submit(job)
        else:  # the copies are under way on the device: the worker waits for them, the training does not
            names = [name for armed in window.capture.armed for name in armed.by_counters()]
            ask = self._watched.ask_device()
            self._submit(lambda channel: self._conclude(channel, window, names, ask))

    def note(self, done: Future[None]) -> None:
        """For a future's end: count its error, if it has one."""
        error = done.exception()
        if isinstance(error, Exception):
            self._journal.failed(error)

    def _submit(self, job: Callable[[Channel], None]) -> None:
        self._session.call(job).add_done_callback(self.note)

    def _conclude(self, channel: Channel, window: _Open, names: list[str], ask: Callable[[], list[str]]) -> None:
        """For the worker: wait for the device, and ask it what it has seen, before anything is committed."""
        if window.slot.exception() is None and window.slot.result() is not None:
            window.copying.settle()
            names = [*names, *ask()]
        job = self._verdict(window, names)
        if job is not None:
            job(channel)

    def _verdict(self, window: _Open, names: list[str]) -> Callable[[Channel], None] | None:
        """Everything is copied: whether the image is committed, or discarded as `names` were written meanwhile."""
        capture, version = window.capture, window.capture.version
        capture.loan.give_back()
        try:
            slot = window.slot.result()
        except MovedError as error:
            self.moves = True
            self._journal.aborted(error)
            return None
        if slot is None:
            self._journal.skipped(f"ckptd: {version} was skipped, every slot is in use; the daemon cannot keep up")
            return None
        if slot.waited_s:
            self._journal.waited(slot.waited_s)
        names = list(dict.fromkeys([*names, *window.copying.seen]))
        if not names:
            return lambda channel: self._commit(channel, slot, capture)
        text = f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        reason = f"{version} was discarded: changed between two updates of the optimizer: {text}"
        advice = "to avoid that, call step() after all changes to the state, before the next forward"
        self._journal.aborted(StateError(f"{reason}; {self._watched.notice(names)}; {advice}"))
        return lambda channel: channel.abort(slot, version, reason)

    def _commit(self, channel: Channel, slot: Slot, capture: Capture) -> None:
        """For the worker."""
        channel.commit(slot, capture.version)
        self._session.slots.committed(slot, capture)
        self.committed = capture.version
        self._journal.captured()


def _lose(channel: Channel, window: _Open, error: RuntimeError) -> None:
    """For the worker: a copy failed in the trainer's thread."""
    slot = window.slot.result()
    if slot is not None:
        channel.abort(slot, window.capture.version, str(error))
    raise error
