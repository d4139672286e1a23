"""The local gRPC service on the node's unix socket: what ranks and the command line ask of their daemon.

The socket lies in a directory of mode 0700, so only this user (and root) can reach it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ckptd.ckpt.client import Attachment, Decision, Found, Stretch, pid_namespace
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import (
    AccessError,
    CkptdError,
    CorruptionError,
    DaemonUnavailable,
    StorageError,
    Unrecoverable,
    UsageError,
)
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import Version, check_job_name
from ckptd.ckpt.recovery import is_settled
from ckptd.ckpt.rounds import Standing
from ckptd.ckpt.tables import PID_MAX, RANKS_MAX, STEP_MAX, number
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.rpc import ERROR_KEY, LOCAL, METHODS, status_of
from ckptd.ckpt.wire.translate import version_in, version_out
from ckptd.ckpt.wire.translate_rounds import agent_in, ended_in, reason_in, standing_out
from ckptd.daemon import events as ev
from ckptd.daemon import views
from ckptd.daemon.admission import Admission
from ckptd.daemon.amounts import seconds, size_of
from ckptd.daemon.driver import Driver
from ckptd.daemon.gatherings import Gatherings
from ckptd.daemon.jobs import Jobs
from ckptd.daemon.launch_events import AgentCame, AgentEnded, BarAsked, RestartAsked
from ckptd.daemon.node import Node
from ckptd.daemon.observe.watcher import Watcher
from ckptd.daemon.opened import Opened
from ckptd.daemon.record import EventRecord
from ckptd.daemon.reserving import Reserving
from ckptd.daemon.segments import Segments
from ckptd.daemon.storage_watch import StorageWatch
from ckptd.daemon.transfers import Transfers
from ckptd.daemon.waiting import Wait

log = logging.getLogger(__name__)

_ANSWER_S = 60.0
_POLL_S = 0.02
_READING = ("Gather", "Open", "Bring")
WAITING = ("wait", "spare")


class LocalServer:
    """Serves `METHODS` of `ckptd.ckpt.wire.rpc`; each has a method here, in lower case."""

    def __init__(
        self, config: Config, driver: Driver, jobs: Jobs, segments: Segments, record: EventRecord, transfers: Transfers,
        watcher: Watcher, storage: StorageWatch,
    ) -> None:  # fmt: skip
        self._config, self._driver, self._jobs, self._segments, self._record = config, driver, jobs, segments, record
        self._transfers, self._watcher, self._storage = transfers, watcher, storage
        self._admission = Admission(config)
        self._reserving = Reserving(segments, config.slots)
        self._gatherings = Gatherings(self._gather, segments.restored.release)
        self._opened = Gatherings(self._open, segments.opened.release, at_once=4)  # some load while others restore
        self.socket = config.run_dir / "ckptd.sock"
        self._server = grpc.server(ThreadPoolExecutor(32, "local"))
        handlers = {name: self._handler(name, *types) for name, types in METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(LOCAL, handlers),))
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)

    def start(self) -> None:
        """Listen. A socket that a killed daemon left behind is replaced; the lock says that it is dead."""
        self.socket.unlink(missing_ok=True)
        with _umask(0o177):
            self._server.add_insecure_port(f"unix:{self.socket}")
            self._server.start()

    def close(self) -> None:
        self._server.stop(0.5).wait(2.0)
        self._reserving.close()
        self.socket.unlink(missing_ok=True)

    def _handler(self, name: str, request: type[Message], reply: type[Message]) -> grpc.RpcMethodHandler[Any, Any]:
        method: Callable[[Any], Message] = getattr(self, name.lower())

        def call(message: Any, context: grpc.ServicerContext) -> Message:
            try:
                return method(message)
            except CorruptionError as error:
                # Only the bytes that a gather reads can be corrupt; elsewhere it is the request that makes no sense.
                _fail(context, error if name in _READING else UsageError(str(error)))
            except CkptdError as error:
                _fail(context, error)
            raise AssertionError("abort does not return")

        return grpc.unary_unary_rpc_method_handler(call, request.FromString, reply.SerializeToString)

    # ---- ranks ------------------------------------------------------------------------------------------

    def attach(self, request: pb.AttachRequest) -> pb.AttachReply:
        self._check_job(request.job)
        rank, world = number("rank", request.rank, RANKS_MAX), number("world", request.world, RANKS_MAX)
        pid, epoch = number("process id", request.pid, PID_MAX), number("epoch", request.epoch, STEP_MAX)
        answer: Attachment = self._driver.ask(
            lambda ticket: ev.AttachAsked(ticket, rank, world, request.local_world, pid, epoch), _ANSWER_S
        )
        return pb.AttachReply(node=answer.node, nodes=answer.nodes, parity=answer.parity)

    def decide(self, request: pb.DecideRequest) -> pb.DecideReply:
        self._check_job(request.job)
        pid = number("process id", request.pid, PID_MAX)
        steps, problems = self._jobs.looked()
        for problem in problems:
            log.warning("storage: %s", problem)
        stored = tuple(step.stored for step in steps)
        answer: Decision = self._driver.ask(
            lambda ticket: ev.DecideAsked(ticket, request.world, request.fresh, stored, pid, time.time()), _ANSWER_S
        )
        if answer.version is None and problems and not request.fresh:
            raise StorageError(
                f"no step is in memory, and what is on storage can't be read: {problems[0]}; make it readable and start "
                "again, or name another job to begin anew"
            )
        self._watcher.decided(answer.epoch, answer.version.step if answer.version else 0, answer.source)
        return pb.DecideReply(
            epoch=answer.epoch,
            version=version_out(answer.version),
            source=answer.source,
            reason=answer.reason,
            world=answer.world,
        )

    def join(self, request: pb.JoinRequest) -> pb.Empty:
        epoch = number("epoch", request.epoch, STEP_MAX)
        self._driver.ask(lambda ticket: ev.JoinAsked(ticket, request.rank, epoch), _ANSWER_S)
        return pb.Empty()

    def gather(self, request: pb.GatherRequest) -> pb.GatherReply:
        found = self._gatherings.gather(version_in(request.version), self._reading())
        images = [pb.Found(rank=f.rank, path=str(f.path), size=f.size, source=f.source) for f in found]
        return pb.GatherReply(images=images)

    def _reading(self) -> int:
        """The newest life; it reads its state."""
        life = self._driver.look(lambda node: node.epoch)
        self._watcher.restores(life)
        return life

    def _gather(self, version: Version) -> list[Found]:
        started = time.monotonic()
        found = self._jobs.gather(self._settled(), version)
        fields = {"epoch": version.epoch, "step": version.step, "seconds": time.monotonic() - started}
        self._record.write("gathered", {**fields, "sources": sorted({item.source for item in found})})
        return found

    def _settled(self) -> Ledger:
        """The ledger once every node has said what it holds, or counts as lost: a new collector needs a moment for that."""
        limit_s = 2 * self._config.timing.settle_s
        self._poll(lambda node: node.ledger is not None and is_settled(node.ledger), limit_s)
        ledger = self._driver.look(lambda node: node.ledger)
        if ledger is None:
            raise Unrecoverable("this daemon has not heard from the others yet; look at its log")
        return ledger

    def _poll(self, question: Callable[[Node], bool], limit_s: float) -> bool:
        """Ask the node until it says yes, or for so long. The caller is a thread of its own; the node is never blocked."""
        deadline = time.monotonic() + limit_s
        while not (answer := self._driver.look(question)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return answer

    def release(self, request: pb.GatherRequest) -> pb.Empty:
        self._gatherings.release(version_in(request.version))
        return pb.Empty()

    def open(self, request: pb.GatherRequest) -> pb.GatherReply:
        opened = self._opened.gather(version_in(request.version), self._reading())
        images = [pb.Found(rank=f.rank, path=str(f.path), size=f.size, source=f.source) for f in opened.found]
        return pb.GatherReply(images=images, opening=opened.number)

    def _open(self, version: Version) -> Opened:
        started = time.monotonic()
        opened = self._jobs.open(self._settled(), version)
        here = [found for found in opened.found if found.source != "none"]
        if here:
            fields = {"epoch": version.epoch, "step": version.step, "seconds": time.monotonic() - started}
            came = {"bytes": sum(found.size for found in here), "sources": sorted({found.source for found in here})}
            self._record.write("gathered", {**fields, **came})
        return opened

    def bring(self, request: pb.BringRequest) -> pb.Empty:
        version, started = version_in(request.version), time.monotonic()
        opened = self._opened.here(version)
        if opened is None or opened.number != request.opening:
            raise UsageError(
                f"{version} is not open on this node: a later life has opened it anew, or the daemon was restarted; "
                "restore once more"
            )
        came = opened.bring([Stretch(part.rank, part.first, part.last) for part in request.stretches])
        if came.size:
            fields = {"epoch": version.epoch, "step": version.step, "seconds": time.monotonic() - started}
            self._record.write("gathered", {**fields, "bytes": came.size, "sources": list(came.sources)})
        return pb.Empty()

    def shut(self, request: pb.BringRequest) -> pb.Empty:
        version = version_in(request.version)
        opened = self._opened.here(version)
        if opened is not None and opened.number == request.opening:
            self._opened.release(version)
        return pb.Empty()

    def reserve(self, request: pb.ReserveRequest) -> pb.ReserveReply:
        rank, size = number("rank", request.rank, RANKS_MAX), size_of(request.size)
        if not self._poll(lambda node: node.scanned, _ANSWER_S):  # a file that is made meanwhile would be found twice
            raise DaemonUnavailable("this daemon still reads what an earlier one left; try again")
        self._admission.admit(rank, size, self._driver.look(lambda node: [rank for rank, _ in node.ranks]))
        return pb.ReserveReply(paths=map(str, self._reserving.reserve(rank, size, seconds(request.wait_s))))

    def lend(self, request: pb.LendRequest) -> pb.LendReply:
        rank, size = number("rank", request.rank, RANKS_MAX), size_of(request.size)
        self._admission.admit(rank, size, self._driver.look(lambda node: [rank for rank, _ in node.ranks]), beside=1)
        return pb.LendReply(path=str(self._segments.lend(rank, size, self._config.slots)))

    def begin(self, request: pb.BeginRequest) -> pb.BeginReply:
        version, size = version_in(request.version), size_of(request.size)
        self._reserving.settle(request.rank, size, _ANSWER_S)
        waited_s = self._wait_for_room(request.rank, version, seconds(request.wait_s))
        answer: ev.Granted | None = self._driver.ask(
            lambda ticket: ev.BeginAsked(ticket, request.rank, version, size, waited_s, request.lent), _ANSWER_S
        )
        if answer is None:
            return pb.BeginReply(granted=False, waited_s=waited_s)
        return pb.BeginReply(granted=True, slot=answer.slot.index, path=answer.path, waited_s=waited_s)

    def _wait_for_room(self, rank: int, version: Version, wait_s: float) -> float:
        """Wait until a slot is free for the rank, or for `wait_s`; return how long that took, 0.0 if one was free at once.

        Meanwhile the rank has not begun the version: nobody takes it for one that was skipped.
        """

        def room(node: Node) -> bool:
            return node.slots.has_room(rank, version, node.known())

        if not wait_s or self._driver.look(room):
            return 0.0
        began = time.monotonic()
        self._poll(room, wait_s)
        return time.monotonic() - began

    def commit(self, request: pb.CommitRequest) -> pb.Empty:
        slot = ev.SlotId(request.rank, request.slot)
        self._driver.ask(lambda ticket: ev.CommitAsked(ticket, slot, version_in(request.version)), _ANSWER_S)
        return pb.Empty()

    def abort(self, request: pb.AbortRequest) -> pb.Empty:
        slot, reason = ev.SlotId(request.rank, request.slot), request.reason[:1000]
        self._driver.ask(lambda ticket: ev.AbortAsked(ticket, slot, version_in(request.version), reason), _ANSWER_S)
        return pb.Empty()

    def persist(self, request: pb.PersistRequest) -> pb.PersistReply:
        version = version_in(request.version)
        return pb.PersistReply(stored=self._driver.ask(lambda ticket: ev.PersistAsked(ticket, version), _ANSWER_S))

    def wait(self, request: pb.WaitRequest) -> pb.WaitReply:
        version = version_in(request.version)
        wait = Wait(version, request.level)
        if not request.timeout_s >= 0.0:
            raise UsageError(f"timeout {request.timeout_s} s: expected 0 or more")
        self._poll(wait.is_over, min(request.timeout_s, 3600.0))
        return pb.WaitReply(level=self._driver.look(lambda node: views.level(node, version)))

    # ---- agents -----------------------------------------------------------------------------------------

    def tend(self, request: pb.TendRequest) -> pb.TendReply:
        """An agent calls; the answer waits up to `wait_s` for a place in a round."""
        self._check_job(request.job)
        if not 0.0 <= request.wait_s <= _ANSWER_S:
            raise UsageError(f"wait_s {request.wait_s}: expected 0 to {_ANSWER_S:.0f}")
        agent, here = agent_in(request.agent), request.pid_namespace == pid_namespace()
        pid = number("process id", request.pid, PID_MAX) if here else 0
        workers = tuple(number("process id", worker, PID_MAX) for worker in request.workers)
        stands: Standing = self._driver.ask(lambda ticket: AgentCame(ticket, agent, pid, workers), _ANSWER_S)
        if stands.state in WAITING:
            self._poll(lambda node: node.launch.standing(agent.name, node.ledger).state not in WAITING, request.wait_s)
            stands = self._driver.look(lambda node: node.launch.standing(agent.name, node.ledger))
        if stands.place is not None:
            self._jobs.foresight.seated(stands.place, lambda: self._driver.look(lambda node: node.ledger))
        return standing_out(stands)

    def leave(self, request: pb.LeaveRequest) -> pb.Empty:
        self._driver.post(AgentEnded(request.name, ended_in(request.ended), reason_in(request.reason)))
        return pb.Empty()

    def restart(self, request: pb.RestartRequest) -> pb.Document:
        """All agents join anew, or the job is given up; from another step, if one is named."""
        reason, isolate, admit = reason_in(request.reason), tuple(request.isolate), tuple(request.admit)
        done: dict[str, Any] = {"reason": reason, "isolated": isolate, "admitted": admit, "given_up": request.give_up}
        done |= {"from_step": request.from_step if request.HasField("from_step") else None}
        done |= {"from_newest": request.from_newest, "restarted": bool(isolate) or not (admit or request.give_up)}
        if request.from_newest or done["from_step"] is not None:
            done["restarted"] = self._restart_from(done["from_step"], reason)
        else:
            asked = RestartAsked(0, reason, isolate, admit, give_up=request.give_up)
            self._driver.ask(lambda ticket: replace(asked, ticket=ticket), _ANSWER_S)
        return _document(done)

    def _restart_from(self, step: int | None, reason: str) -> bool:
        """Bar what is newer than `step` (None: nothing) instead of all that was barred; whether agents restart for it."""
        bar = None
        if step is not None:
            stored, wanted = self._jobs.stored(), number("step", step, STEP_MAX - 1)
            bar = self._driver.look(lambda node: views.bar_after(node, stored, wanted))
        self._driver.ask(lambda ticket: BarAsked(ticket, reason, bar, lift=True), _ANSWER_S)
        if not self._driver.look(views.has_agents):
            return False
        self._driver.ask(lambda ticket: RestartAsked(ticket, reason), _ANSWER_S)
        return True

    # ---- the command line -------------------------------------------------------------------------------

    def status(self, _: pb.Empty) -> pb.Document:
        usage = self._segments.usage()
        status = self._driver.look(lambda node: views.status(node, usage))
        more = {
            "work": self._jobs.progress.now(),
            "transfers": self._transfers.to_json(),
            "watch": self._watcher.status(),
            "storage": self._storage.status(),
        }
        return _document(status | more)

    def incidents(self, request: pb.IncidentsRequest) -> pb.Document:
        """All incidents that were recorded here, or one of them with all its entries."""
        ledger = self._driver.look(lambda node: node.ledger)
        found = {"node": self._config.node, "collector": ledger.collector if ledger else None}
        return _document(found | self._watcher.incidents(request.id))

    def list(self, _: pb.Empty) -> pb.Document:
        stored = self._jobs.stored()
        return _document(self._driver.look(lambda node: views.recoverable(node, stored)))

    def verify(self, _: pb.Empty) -> pb.Document:
        rows = self._jobs.verify()
        return _document({"node": self._config.node, "checked": rows, "ok": all(row["ok"] for row in rows)})

    def recover(self, _: pb.Empty) -> pb.Document:
        """Rebuild what this node's payload lacks now, and say what is whole."""
        self._driver.ask(ev.RebuildAsked, _ANSWER_S)
        if not self._poll(lambda node: not node.duties.rebuilding, 600.0):
            raise Unrecoverable("the rebuild did not end within 600 s; look at the daemon's log")
        return _document(self._driver.look(views.rebuild_state))

    def _check_job(self, job: str) -> None:
        if check_job_name(job) != self._config.job:
            raise AccessError(
                f"the daemon at {self.socket} serves job {self._config.job!r}, not {job!r}; set CKPTD_JOB or CKPTD_RUN_DIR"
            )


def _document(content: object) -> pb.Document:
    return pb.Document(json=json.dumps(content))


def _fail(context: grpc.ServicerContext, error: CkptdError) -> None:
    context.set_trailing_metadata(((ERROR_KEY, type(error).__name__),))
    context.abort(status_of(error), str(error))


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)
