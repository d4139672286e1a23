"""The training process's channel to its node's daemon: small messages on a unix socket, never bulk bytes.

Bulk bytes move through the slots, which both sides map. A client is used from one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from ckptd.ckpt.errors import AccessError, CkptdError, DaemonUnavailable, UsageError
from ckptd.ckpt.model import Version, check_job_name
from ckptd.ckpt.rounds import Agent, Ended, Standing
from ckptd.ckpt.strict import json_object
from ckptd.ckpt.tables import STEP_MAX
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.rpc import LOCAL, MESSAGE_MAX, METHODS, error_of
from ckptd.ckpt.wire.translate import version_in, version_out
from ckptd.ckpt.wire.translate_rounds import agent_out, standing_in

TEND_S = 2.0
"""How long a daemon may take to answer an agent, which has trainers to look after."""

WAIT_MAX_S = 3600.0
"""The longest that a capture may wait for a slot."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a rank learns when it attaches to its node's daemon."""

    node: int
    nodes: int
    parity: int
    watch_dir: Path | None = None
    """Where the daemon looks for what the ranks of this machine show of themselves."""


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
    waited_s: float = 0.0
    """How long it took until one was free; 0 where one was at once."""


@dataclass(frozen=True, slots=True)
class Found:
    """A verified image on this node: a file that may be mapped read-only until `release`."""

    rank: int
    path: Path
    size: int
    source: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes `first` to `last` (the one after) of a rank's image."""

    rank: int
    first: int
    last: int


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

    def newest_epoch(self) -> int:
        """The newest epoch that this node has heard of; 0 before the first. No rank need be attached."""
        ...

    def restorable(self) -> list[Version]:
        """The versions that memory and storage can give back whole now, newest first. No rank need be attached."""
        ...

    def release(self, version: Version) -> None:
        """The gathered files are no longer needed (mappings stay valid until unmapped)."""
        ...

    def open(self, version: Version) -> list[Found]:
        """As `gather`, but of images that are not held here nothing has come yet: `bring` what is read of them.

        The files have their sizes; their sources are `own` or `none`. Raises Unrecoverable.
        """
        ...

    def bring(self, version: Version, stretches: Sequence[Stretch]) -> None:
        """See that these bytes of images of an opened version stand in their files, verified; no others need to.

        Raises Unrecoverable, MemoryBudgetError, UsageError when the version is not open (any more) or has no such bytes.
        """
        ...

    def shut(self, version: Version) -> None:
        """The opened files are no longer needed."""
        ...

    def reserve(self, size: int, wait_s: float = 0.0) -> list[Path]:
        """Have this rank's slots for images of `size` bytes made and pre-faulted, if there is room for them.

        Returns their files if all of them stand within `wait_s` seconds (0 to 3600), else none: they are made meanwhile,
        and `begin` waits for the one that it names. Raises MemoryBudgetError.
        """
        ...

    def lend(self, size: int) -> Path:
        """A file of `size` bytes for this rank to stage in: lock it (flock, shared) at once, for as long as it is in use.

        A lent file that nobody has locked gets another name and another use. Raises MemoryBudgetError.
        """
        ...

    def begin(self, version: Version, size: int, wait_s: float = 0.0, lent: Path | None = None) -> Slot | None:
        """Ask for a slot to capture `version` into; None when every slot is in use (the snapshot is skipped).

        `wait_s`: how many seconds to wait for one, 0 to 3600. `lent`: a lent file of `size` bytes that is to be the slot's,
        with what is in it; where the daemon can't have that (any more), the slot has another file. Raises StaleStepError
        when the version is not newer than the last one begun, MemoryBudgetError.
        """
        ...

    def commit(self, slot: Slot, version: Version) -> None:
        """Every byte of the image is in the slot and nothing changed meanwhile. The daemon checks and records it."""
        ...

    def abort(self, slot: Slot, version: Version, reason: str) -> None:
        """Give the slot back; what was written is discarded. The reason is counted and shown in the status."""
        ...

    def persist(self, version: Version) -> bool:
        """Have `version` written to storage as soon as it is sealed, whether it is due or not; False: there is none."""
        ...

    def sealing_lag_s(self) -> float | None:
        """Seconds from the last capture here until its version was sealed; None before the first."""
        ...

    def wait(self, version: Version, level: str, timeout_s: float) -> str:
        """Wait until `version` or a newer one is `captured`, `sealed` or `persisted`; return the level it has reached.

        It is a lower one after `timeout_s` seconds, and at once when it is certain that the version never gets there.
        """
        ...

    def close(self) -> None: ...


class Client:
    """`Channel` over gRPC. The channel reconnects by itself; a restarted daemon is attached to again unasked."""

    def __init__(self, run_dir: Path, job: str, *, timeout_s: float = 70.0) -> None:
        """Nothing is sent yet. `timeout_s` bounds each call; gathering and waiting have longer limits of their own."""
        self._job, self._timeout_s = check_job_name(job), timeout_s
        self._watch_dir = run_dir.absolute() / "watch"
        socket = run_dir / "ckptd.sock"
        self._where = str(socket)
        _check_socket(socket)
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MESSAGE_MAX),
        ]
        self._grpc = grpc.insecure_channel(f"unix:{socket}", options=options)
        self._calls = {
            name: self._grpc.unary_unary(f"/{LOCAL}/{name}", request.SerializeToString, reply.FromString)
            for name, (request, reply) in METHODS.items()
        }
        self._attached: dict[str, Any] | None = None
        self._joined: int | None = None
        self._openings: dict[Version, int] = {}

    def attach(self, *, rank: int, world: int, local_world: int) -> Attachment:
        fields = {"job": self._job, "rank": rank, "world": world, "local_world": local_world, "pid": os.getpid()}
        reply = self._call("Attach", **fields)
        self._attached = fields
        return Attachment(reply.node, reply.nodes, reply.parity, self._watch_dir)

    def decide(self, *, world: int, fresh: bool = False) -> Decision:
        pid = os.getpid() if self._attached else 0
        reply = self._known_call("Decide", job=self._job, world=world, fresh=fresh, pid=pid)
        version = version_in(reply.version) if reply.HasField("version") else None
        return Decision(reply.epoch, version, reply.source, reply.reason, reply.world)

    def join(self, epoch: int) -> None:
        self._call("Join", rank=self._rank, epoch=epoch)
        self._joined = epoch

    def gather(self, version: Version) -> list[Found]:
        reply = self._call("Gather", 3600.0, version=_named(version))
        return [Found(item.rank, Path(item.path), item.size, item.source) for item in reply.images]

    def newest_epoch(self) -> int:
        return int(self.document("Status").get("epoch", 0))

    def restorable(self) -> list[Version]:
        rows = self.document("List").get("steps", [])
        return [Version(int(row["epoch"]), int(row["step"])) for row in rows if row["recoverable"]]

    def release(self, version: Version) -> None:
        self._call("Release", version=_named(version))

    def open(self, version: Version) -> list[Found]:
        reply = self._call("Open", 3600.0, version=_named(version))
        self._openings[version] = reply.opening
        return [Found(item.rank, Path(item.path), item.size, item.source) for item in reply.images]

    def bring(self, version: Version, stretches: Sequence[Stretch]) -> None:
        wanted = [pb.Stretch(rank=part.rank, first=part.first, last=part.last) for part in stretches]
        self._call("Bring", 3600.0, version=_named(version), stretches=wanted, opening=self._openings.get(version, 0))

    def shut(self, version: Version) -> None:
        self._call("Shut", version=_named(version), opening=self._openings.get(version, 0))

    def reserve(self, size: int, wait_s: float = 0.0) -> list[Path]:
        reply = self._call("Reserve", self._timeout_s + wait_s, rank=self._rank, size=size, wait_s=wait_s)
        return [Path(path) for path in reply.paths]

    def lend(self, size: int) -> Path:
        return Path(self._call("Lend", rank=self._rank, size=size).path)

    def begin(self, version: Version, size: int, wait_s: float = 0.0, lent: Path | None = None) -> Slot | None:
        if not 0.0 <= wait_s <= WAIT_MAX_S:  # which nan is not either
            raise UsageError(f"found a wait of {wait_s} s for a slot, expected 0 to {WAIT_MAX_S:.0f}")
        fields: dict[str, Any] = {"rank": self._rank, "version": _named(version), "size": size, "wait_s": wait_s}
        fields["lent"] = lent.name if lent else ""
        reply = self._known_call("Begin", self._timeout_s + wait_s, **fields)
        return Slot(reply.slot, Path(reply.path), size, reply.waited_s) if reply.granted else None

    def commit(self, slot: Slot, version: Version) -> None:
        self._call("Commit", rank=self._rank, slot=slot.index, version=_named(version))

    def abort(self, slot: Slot, version: Version, reason: str) -> None:
        self._call("Abort", rank=self._rank, slot=slot.index, version=_named(version), reason=reason)

    def persist(self, version: Version) -> bool:
        return bool(self._call("Persist", version=_named(version)).stored)

    def sealing_lag_s(self) -> float | None:
        lag_s = self.document("Status").get("sealing", {}).get("lag_s")
        return float(lag_s) if isinstance(lag_s, int | float) else None

    def wait(self, version: Version, level: str, timeout_s: float) -> str:
        if not timeout_s >= 0.0:
            raise UsageError(f"timeout {timeout_s} s: expected 0 or more")
        fields = {"version": _named(version), "level": level, "timeout_s": timeout_s}
        return str(self._call("Wait", timeout_s + 10.0, **fields).level)

    def tend(self, agent: Agent, *, workers: Sequence[int] = (), wait_s: float = 0.0) -> Standing:
        """As this node's agent: say that it is there and what it wants; learn how it stands.

        `workers` are the processes of its trainers, which are killed when it dies. The answer waits up to `wait_s` seconds
        for a seat in a round. Raises AccessError where the node has another agent, UsageError for a wrong --nnodes.
        """
        fields = {"pid": os.getpid(), "pid_namespace": pid_namespace(), "workers": workers, "wait_s": wait_s}
        return standing_in(self._call("Tend", wait_s + TEND_S, job=self._job, agent=agent_out(agent), **fields))

    def leave(self, name: str, ended: Ended, reason: str = "") -> None:
        """As the agent of this name: the trainers are `done`, or have `failed` for good, or it just goes (`gone`)."""
        self._call("Leave", TEND_S, name=name, ended=ended, reason=reason)

    def restart(
        self, reason: str, *, isolate: Sequence[int] = (), admit: Sequence[int] = (), give_up: bool = False,
        from_step: int | None = None, from_newest: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Have all agents join anew without the isolated nodes, or end the job. Raises UsageError when it can't be done.

        The next life begins from `from_step`, or from the newest step again (`from_newest`), whatever was barred before.
        """
        fields = {"isolate": isolate, "admit": admit, "give_up": give_up, "from_newest": from_newest}
        fields |= {} if from_step is None else {"from_step": from_step}
        return json_object(self._call("Restart", reason=reason, **fields).json)

    def document(self, method: str, timeout_s: float | None = None, **fields: int) -> dict[str, Any]:
        """What the command line shows: Status, List, Verify, Recover or Incidents."""
        try:
            return json_object(self._call(method, timeout_s, **fields).json)
        except ValueError as error:
            raise CkptdError(f"{method.lower()} at {self._where}: the answer is not readable ({error})") from error

    def close(self) -> None:
        self._grpc.close()

    @property
    def _known(self) -> dict[str, Any]:
        if self._attached is None:
            raise UsageError("attach() first: this client is not a rank yet")
        return self._attached

    @property
    def _rank(self) -> int:
        return int(self._known["rank"])

    def _known_call(self, method: str, timeout_s: float | None = None, /, **fields: Any) -> Any:
        """A call as a rank. A daemon that was restarted knows its slots again but not its ranks: it is told anew, once."""
        try:
            return self._call(method, timeout_s, **fields)
        except AccessError:
            if self._attached is None:
                raise
            # The epoch goes with it: a rank again in one step, and what was replaced does not displace its successor.
            self._call("Attach", **self._known, epoch=self._joined or 0)
            return self._call(method, timeout_s, **fields)

    def _call(self, method: str, timeout_s: float | None = None, /, **fields: Any) -> Any:
        try:
            request = METHODS[method][0](**fields)
        except ValueError as error:  # a number that the message can't hold
            raise UsageError(f"{method.lower()}: {error}") from error
        try:
            return self._calls[method](request, timeout=timeout_s or self._timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, f"{method.lower()} at {self._where}") from error
        except ValueError as error:
            raise DaemonUnavailable(f"{self._where}: this client was closed") from error


def pid_namespace() -> int:
    """Names the set of process ids that this process sees; 0 where the system does not say."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _named(version: Version) -> pb.Version | None:
    if not (0 <= version.epoch < STEP_MAX and 0 <= version.step < STEP_MAX):
        raise UsageError(f"{version}: expected an epoch and a step from 0 to {STEP_MAX - 1}")
    return version_out(version)


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
