"""The loop around the pure node: take an event, handle it, perform the effects, feed back what comes of them.

One thread runs the node; long work runs on job threads and returns as events. Nothing else touches the node.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout  # not the built-in one before Python 3.11
from typing import Any, TypeVar

from ckptd.ckpt.errors import CkptdError, DaemonUnavailable
from ckptd.daemon import events as ev
from ckptd.daemon.agent_watch import AgentWatch
from ckptd.daemon.jobs import Jobs
from ckptd.daemon.launch_events import AgentCame
from ckptd.daemon.node import Node
from ckptd.daemon.peers import Peers
from ckptd.daemon.record import EventRecord
from ckptd.daemon.segments import Segments
from ckptd.daemon.trainers import TrainerWatch

log = logging.getLogger(__name__)

TICK_S = 0.1
_FIRST_TICKET = 1
_STOPPING = "the daemon is stopping"
T = TypeVar("T")


class Driver:
    """Owns the node's thread. `post`, `ask` and `look` may be called from any thread."""

    def __init__(self, node: Node, segments: Segments, jobs: Jobs, peers: Peers, record: EventRecord) -> None:
        self._node, self._segments, self._jobs, self._peers, self._record = node, segments, jobs, peers, record
        self._watch, self._agents = TrainerWatch(), AgentWatch()
        self._inbox: queue.Queue[ev.Event | Callable[[], None]] = queue.Queue(maxsize=10_000)
        self._tickets = itertools.count(_FIRST_TICKET)
        self._waiting: dict[ev.Ticket, Future[Any]] = {}
        self._looking: set[Future[Any]] = set()
        self._closed = False
        self._pools = {
            ev.Record: ThreadPoolExecutor(2, "record"),
            ev.MakeSlot: ThreadPoolExecutor(2, "slots"),
            ev.MakeParity: ThreadPoolExecutor(1, "parity"),
            ev.Rebuild: ThreadPoolExecutor(1, "rebuild"),
            ev.Write: ThreadPoolExecutor(1, "storage"),
        }
        self._perform: dict[type, Callable[[Any], None]] = {
            ev.Answer: self._answer,
            ev.Send: lambda effect: self._peers.send(effect.to, effect.letter),
            ev.DropRecord: lambda effect: self._segments.drop(effect.slot),
            ev.Retire: lambda effect: self._segments.retire(effect.slot),
            ev.DropParity: lambda effect: self._segments.drop_parity(effect.parity),
            ev.Remember: self._remember,
            ev.Note: self._note,
            ev.MakeSlot: lambda effect: self._start(ev.MakeSlot, self._make_slot, effect),
            ev.Record: lambda effect: self._start(ev.Record, self._jobs.record, effect),
            ev.MakeParity: lambda effect: self._start(ev.MakeParity, self._jobs.make_parity, effect),
            ev.Rebuild: lambda effect: self._start(ev.Rebuild, self._rebuild, effect),
            ev.Repair: lambda effect: self._start(ev.Rebuild, self._jobs.repair, effect),
            ev.Write: lambda effect: self._start(ev.Write, self._jobs.write, effect),
            ev.Publish: lambda effect: self._start(ev.Write, self._jobs.publish, effect),
            ev.Remove: lambda effect: self._start(ev.Write, self._jobs.remove, effect),
        }

    # ---- from any thread ----------------------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        """Give the node an event. Blocks while ten thousand wait, which slows whoever floods us."""
        self._inbox.put(event)

    def ask(self, question: Callable[[ev.Ticket], ev.Event], timeout_s: float) -> Any:
        """Post a question and wait for its answer. Raises the CkptdError that the node answers with."""
        ticket = next(self._tickets)
        future: Future[Any] = Future()
        self._waiting[ticket] = future
        try:
            self.post(question(ticket))
            if self._closed:  # nobody takes from the inbox any more
                raise DaemonUnavailable(_STOPPING)
            answer = future.result(timeout_s)
        except FutureTimeout as error:
            raise DaemonUnavailable(f"no answer within {timeout_s:.0f} s; look at the daemon's log") from error
        finally:
            self._waiting.pop(ticket, None)
        if isinstance(answer, CkptdError):
            raise answer
        return answer

    def look(self, question: Callable[[Node], T], timeout_s: float = 10.0) -> T:
        """Run a function over the node on its own thread, for status and the like; it must not change anything."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(question(self._node))
            except Exception as error:  # noqa: BLE001 - a question changes nothing: its failure is the asker's
                future.set_exception(error)

        self._looking.add(future)
        self._inbox.put(run)
        try:
            if self._closed:  # nobody takes from the inbox any more
                raise DaemonUnavailable(_STOPPING)
            return future.result(timeout_s)
        except FutureTimeout as error:
            raise DaemonUnavailable(f"no answer within {timeout_s:.0f} s; look at the daemon's log") from error
        finally:
            self._looking.discard(future)

    # ---- the node's thread ----------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool]) -> None:
        """Scan the segments, then handle events until `stop()` is true."""
        self._start(ev.MakeSlot, self._scan, None)
        next_tick = time.monotonic()
        while not stop():
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_S
                self._handle(ev.Tick())
                ended: list[ev.Event] = [*self._watch.gone(), *self._agents.gone()]
                for event in ended:
                    self._handle(event)
            try:
                item = self._inbox.get(timeout=next_tick - now if next_tick > now else 0.0)
            except queue.Empty:
                continue
            if callable(item):
                item()
            else:
                self._handle(item)
        self._dismiss()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        self._dismiss()
        self._watch.close()
        self._agents.close()

    def _dismiss(self) -> None:
        """Answer nobody any more: whoever waits learns it now."""
        self._closed = True
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_result(DaemonUnavailable(_STOPPING))
        for future in list(self._looking):
            if not future.done():
                future.set_exception(DaemonUnavailable(_STOPPING))

    def _handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.AttachAsked):
            self._watch.add(event.rank, event.pid)
        if isinstance(event, AgentCame) and event.watched and self._node.launch.admits(event.agent.name):
            self._agents.add(event.agent.name, event.pid, event.workers)
        for effect in self._node.handle(event, time.monotonic()):
            self._perform[type(effect)](effect)

    def _answer(self, effect: ev.Answer) -> None:
        future = self._waiting.get(effect.ticket)
        if future is not None and not future.done():
            future.set_result(effect.value)

    def _remember(self, effect: ev.Remember) -> None:
        try:
            self._segments.remember(effect.epoch, effect.sealed)
        except OSError as error:  # the tmpfs is full: the next change is kept again, and until then the peers know it
            self._record.write("remember_failed", {"reason": str(error)})

    def _note(self, effect: ev.Note) -> None:
        self._record.write(effect.event, dict(effect.fields))

    # ---- job threads ----------------------------------------------------------------------------------

    def _start(self, kind: type, job: Callable[[Any], ev.Event | None], effect: Any) -> None:
        self._pools[kind].submit(self._run_job, job, effect)

    def _run_job(self, job: Callable[[Any], ev.Event | None], effect: Any) -> None:
        try:
            event = job(effect)
        except Exception:  # the driver's last line: a bug in a job must not leave a daemon that only looks alive
            log.exception("a job failed that should not have: %s", type(effect).__name__)
            os._exit(70)
        if event is not None:
            self.post(event)

    def _scan(self, _: None) -> ev.Event:
        slots, parities = self._segments.scan()
        epoch, sealed = self._segments.remembered()
        return ev.Scanned(slots, parities, epoch, sealed)

    def _make_slot(self, effect: ev.MakeSlot) -> ev.Event:
        try:
            path = self._segments.file_for(effect.slot, effect.size, lent=effect.lent)
        except (CkptdError, OSError) as error:
            problem = error if isinstance(error, CkptdError) else CkptdError(str(error))
            return ev.SlotMade(effect.ticket, effect.slot, effect.version, problem=problem)
        return ev.SlotMade(effect.ticket, effect.slot, effect.version, str(path))

    def _rebuild(self, effect: ev.Rebuild) -> ev.Event:
        started = time.monotonic()
        event = self._jobs.rebuild(effect)
        version = effect.table.version
        fields = {"epoch": version.epoch, "step": version.step, "images": len(event.slots)}
        size = sum(found.image.size for found in event.slots)
        self._record.write("rebuilt", {**fields, "bytes": size, "seconds": time.monotonic() - started})
        return event
