"""The training process's channel to its node's daemon: small messages on a unix socket, never bulk bytes.

Bulk bytes move through the slots, which both sides map. A client is used from one thread at a time.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from ckptd.ckpt.errors import AccessError, DaemonUnavailable, UsageError
from ckptd.ckpt.model import Version, check_job_name
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.rpc import LOCAL, METHODS, error_of
from ckptd.ckpt.wire.translate import version_in, version_out


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a rank learns when it attaches to its node's daemon."""

    node: int
    nodes: int
    parity: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What the daemons chose for a starting job: the new epoch, and the version to restore (None: a fresh start)."""

    epoch: int
    version: Version | None
    source: str
    """The highest rung of the ladder that was needed: own, peer, parity, storage; none for a fresh start."""
    reason: str
    world: int = 0
    """How many ranks the version was captured with (0 for a fresh start)."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A shared-memory file of exactly `size` bytes that one rank may fill until it commits or aborts."""

    index: int
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Found:
    """A verified image on this node: a file that may be mapped read-only until `release`."""

    rank: int
    path: Path
    size: int
    source: str


class Channel(Protocol):
    """What a rank asks of its daemon. Implemented by `Client`; tests have a fake.

    Every method raises DaemonUnavailable when nobody answers, AccessError for another job's or user's daemon.
    """

    def attach(self, *, rank: int, world: int, local_world: int) -> Attachment:
        """Register this process as a rank. Idempotent; must be repeated after a daemon restart (done internally)."""
        ...

    def decide(self, *, world: int, fresh: bool = False) -> Decision:
        """Rank 0 only, once per life: let the daemons choose what to restore and allot the new epoch.

        Waits (bounded) until every node has reported or counts as lost. Raises Unrecoverable never: nothing found
        is a fresh start with its reason.
        """
        ...

    def join(self, epoch: int) -> None:
        """Every rank: say which life this rank lives in. Images of other epochs are refused afterwards."""
        ...

    def gather(self, version: Version) -> list[Found]:
        """Bring every rank's image of `version` onto this node, verified; one entry per rank, ordered by rank.

        Raises Unrecoverable when an image can be served by no node, no parity and no storage.
        """
        ...

    def release(self, version: Version) -> None:
        """The gathered files are no longer needed (mappings stay valid until unmapped)."""
        ...

    def reserve(self, size: int) -> None:
        """Make and pre-fault this rank's slots for images of `size` bytes. Raises MemoryBudgetError."""
        ...

    def begin(self, version: Version, size: int) -> Slot | None:
        """Ask for a slot to capture `version` into; None when every slot is in use (the snapshot is skipped).

        Raises StaleStepError when the version is not newer than the last one begun, MemoryBudgetError.
        """
        ...

    def commit(self, slot: Slot, version: Version) -> None:
        """Every byte of the image is in the slot and nothing changed meanwhile. The daemon checks and records it."""
        ...

    def abort(self, slot: Slot, version: Version, reason: str) -> None:
        """Give the slot back; what was written is discarded. The reason is counted and shown in the status."""
        ...

    def wait(self, version: Version, level: str, timeout_s: float) -> str:
        """Wait until `version` or a newer one is `captured`, `sealed` or `persisted`; return the level it has reached."""
        ...

    def close(self) -> None: ...


class Client:
    """`Channel` over gRPC. The channel reconnects by itself; a restarted daemon is attached to again unasked."""

    def __init__(self, run_dir: Path, job: str, *, timeout_s: float = 70.0) -> None:
        """Nothing is sent yet. `timeout_s` bounds each call; gathering and waiting have longer limits of their own."""
        self._job, self._timeout_s = check_job_name(job), timeout_s
        socket = run_dir / "ckptd.sock"
        self._where = str(socket)
        _check_socket(socket)
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self._grpc = grpc.insecure_channel(f"unix:{socket}", options=[*options, ("grpc.enable_http_proxy", 0)])
        self._calls = {
            name: self._grpc.unary_unary(f"/{LOCAL}/{name}", request.SerializeToString, reply.FromString)
            for name, (request, reply) in METHODS.items()
        }
        self._attached: pb.AttachRequest | None = None
        self._joined: int | None = None

    def attach(self, *, rank: int, world: int, local_world: int) -> Attachment:
        request = pb.AttachRequest(job=self._job, rank=rank, world=world, local_world=local_world, pid=os.getpid())
        reply = self._call("Attach", request)
        self._attached = request
        return Attachment(reply.node, reply.nodes, reply.parity)

    def decide(self, *, world: int, fresh: bool = False) -> Decision:
        reply = self._call("Decide", pb.DecideRequest(job=self._job, world=world, fresh=fresh))
        version = version_in(reply.version) if reply.HasField("version") else None
        return Decision(reply.epoch, version, reply.source, reply.reason, reply.world)

    def join(self, epoch: int) -> None:
        self._call("Join", pb.JoinRequest(rank=self._rank, epoch=epoch))
        self._joined = epoch

    def gather(self, version: Version) -> list[Found]:
        reply = self._call("Gather", pb.GatherRequest(version=version_out(version)), 3600.0)
        return [Found(item.rank, Path(item.path), item.size, item.source) for item in reply.images]

    def release(self, version: Version) -> None:
        self._call("Release", pb.GatherRequest(version=version_out(version)))

    def reserve(self, size: int) -> None:
        self._call("Reserve", pb.ReserveRequest(rank=self._rank, size=size), 600.0)

    def begin(self, version: Version, size: int) -> Slot | None:
        request = pb.BeginRequest(rank=self._rank, version=version_out(version), size=size)
        try:
            reply = self._call("Begin", request)
        except AccessError:
            # A daemon that was restarted knows its slots again but not its ranks: introduce this one anew, once.
            self._call("Attach", self._known)
            if self._joined is not None:
                self._call("Join", pb.JoinRequest(rank=self._rank, epoch=self._joined))
            reply = self._call("Begin", request)
        return Slot(reply.slot, Path(reply.path), size) if reply.granted else None

    def commit(self, slot: Slot, version: Version) -> None:
        self._call("Commit", pb.CommitRequest(rank=self._rank, slot=slot.index, version=version_out(version)))

    def abort(self, slot: Slot, version: Version, reason: str) -> None:
        request = pb.AbortRequest(rank=self._rank, slot=slot.index, version=version_out(version), reason=reason)
        self._call("Abort", request)

    def wait(self, version: Version, level: str, timeout_s: float) -> str:
        request = pb.WaitRequest(version=version_out(version), level=level, timeout_s=timeout_s)
        return str(self._call("Wait", request, timeout_s + 10.0).level)

    def document(self, method: str, timeout_s: float | None = None) -> dict[str, Any]:
        """What the command line shows: Status, List, Verify or Recover."""
        content: dict[str, Any] = json.loads(self._call(method, pb.Empty(), timeout_s).json)
        return content

    def close(self) -> None:
        self._grpc.close()

    @property
    def _known(self) -> pb.AttachRequest:
        if self._attached is None:
            raise UsageError("attach() first: this client is not a rank yet")
        return self._attached

    @property
    def _rank(self) -> int:
        return self._known.rank

    def _call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        try:
            return self._calls[method](request, timeout=timeout_s or self._timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, f"{method.lower()} at {self._where}") from error
        except ValueError as error:
            raise DaemonUnavailable(f"{self._where}: this client was closed") from error


def _check_socket(socket: Path) -> None:
    """Refuse a socket that isn't there or that somebody else put there. Raises DaemonUnavailable, AccessError."""
    try:
        owner = socket.stat().st_uid
    except OSError as error:
        raise DaemonUnavailable(
            f"{socket}: {error.strerror}; start `ckptd serve`, or set CKPTD_RUN_DIR to that of the one that runs"
        ) from error
    if owner != os.getuid():
        raise AccessError(f"{socket} belongs to user {owner}, you are {os.getuid()}; set CKPTD_RUN_DIR to your own")
