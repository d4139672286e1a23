"""The configuration of one daemon as a checked value. It is read from the outside in `ckptd.ckpt.settings` only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ckptd.ckpt.domain import check_domain
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.groups import map_of
from ckptd.ckpt.model import GroupMap, check_job_name
from ckptd.ckpt.policy import MTBF_NODE_S, Cadence, Failures, cadence_of
from ckptd.ckpt.retention import Rule

MIB = 1024 * 1024
BANDWIDTH_MIN = MIB
CPU_SHARE_MIN = 0.01
SOON_DAYS = 30
KEEP_MIN = 2
ACTS = ("restart", "advise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How the daemons keep in touch. Seconds."""

    report_every_s: float = 0.5
    """A node repeats its report at least this often; changes are reported at once."""
    lost_after_s: float = 2.0
    """A node that has been silent for this long counts as lost."""
    leave_after_s: float = 60.0
    """A node that has been lost for this long has left: its payload is taken over by others, and the map is made anew."""
    settle_s: float = 10.0
    """How long a restore decision waits for nodes that have never been heard before it goes on without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """What one node needs for mutual TLS, read and checked by `ckptd.ckpt.certs`. The three contents are PEM."""

    directory: Path
    node: int
    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    until: datetime
    """When the first of the two certificates expires."""

    def days_left(self, now: datetime) -> int:
        """Whole days until then; below `SOON_DAYS` it is time to do something. `now` has a time zone."""
        return (self.until - now).days


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One daemon's configuration."""

    job: str = "default"
    node: int = 0
    """This node's index in `nodes`."""
    nodes: tuple[str, ...] = ("127.0.0.1:0",)
    """The control address host:port of every node, in the same order everywhere. Port 0 is for a single node."""
    parity: int = 1
    """How many nodes of a protection group may be lost (m). Costs m/k of the payload in memory, m of it in traffic."""
    group_size: int = 8
    """The most nodes in one protection group (k + m)."""
    domain: str = ""
    """What this node fails together with, such as a rack: nodes of the same name are spread over the groups. '': unknown."""
    run_dir: Path
    """Socket, event record and lock: mode 0700."""
    segment_dir: Path
    """Slots and parities, on a tmpfs: mode 0700."""
    storage: Path | str | None = None
    """Where persisted steps go: a directory, or the URL of an object store; None keeps everything in memory."""
    stuck_after_s: float = 60.0
    """Storage that has taken or given nothing for so many seconds, while it should, is reported; 0: never."""
    persist_every: int | str = 0
    """Persist the first sealed step at or after every multiple of this; a time such as '10min', or 'auto'; 0 never."""
    mtbf_node_s: float = MTBF_NODE_S
    """Seconds between two failures of one node that stop the job: what 'auto' reckons with."""
    keep_last: int = 0
    """Persisted steps to keep; 0: all. Also kept are those of a multiple of `keep_every`, if that is set."""
    keep_every: int = 0
    keep_for_s: float = 0.0
    """And everything that is younger than so many seconds; 0: no matter how young. Alone, the two newest stay as well."""
    slots: int = 3
    """Slots of each rank. Two suffice; three let capture and protection overlap."""
    memory_bytes: int = 0
    """The most that slots and parities may take on this node; 0 stands for what the tmpfs has."""
    secret: bytes = field(default=b"", repr=False)
    """Shared by the daemons of a job, at least 16 bytes; needed with more than one node."""
    tls: Tls | None = None
    """Encrypts what the daemons send each other; all nodes have it, or none."""
    scrub_every_s: float = 600.0
    """In so many seconds everything that is kept in memory is checked once; 0: only what is read is checked."""
    timing: Timing = field(default_factory=Timing)
    nice: int = 19
    """Scheduling niceness of the daemon: background work must not slow the trainers."""
    bandwidth_bytes_s: int = 0
    """The most that this node sends to and reads from the others together, in bytes a second; 0 is no cap."""
    cpu_share: float = 0.0
    """The most CPU time that moving bytes between the nodes may take here, in cores (0.5: half of one); 0 is no cap."""

    act: str = "restart"
    """What follows from a verdict on a job that agents of ckptd launch: `restart` its trainers where the policy says so, or
    `advise` people only. The collector's counts."""
    health_socket: Path | None = None
    """Where the site's own health checker answers whether this node is fit; None: nobody is asked."""

    @property
    def whole_map(self) -> GroupMap:
        """The groups of all nodes as they are while no failure domain is known."""
        return map_of(1, range(len(self.nodes)), parity=self.parity, size=self.group_size)

    @property
    def persistence(self) -> Cadence | None:
        """How often sealed steps are persisted; None: never. Raises UsageError."""
        return cadence_of(self.persist_every, "persist_every") if self.persist_every else None

    @property
    def retention(self) -> Rule:
        """Which of the persisted steps stay."""
        last = self.keep_last or (KEEP_MIN if self.keep_for_s else 0)
        return Rule(last, self.keep_every, self.keep_for_s or None)

    @property
    def failures(self) -> Failures:
        """How often this job is expected to fail."""
        return Failures(
            mtbf_node_s=self.mtbf_node_s, nodes=len(self.nodes), parity=self.parity, group_size=self.group_size
        )

    def validate(self) -> Config:
        """Return self, or raise UsageError naming the setting, what was found and what was expected."""
        check_job_name(self.job)
        if not 0 <= self.node < len(self.nodes):
            raise UsageError(
                f"node {self.node}: expected 0 to {len(self.nodes) - 1}, the index of this node in --nodes"
            )
        if len(set(self.nodes)) != len(self.nodes):
            raise UsageError("nodes: the same address stands twice; give every node its own")
        for address in self.nodes:
            if split_address(address)[1] == 0 and len(self.nodes) > 1:
                raise UsageError(f"node address {address}: port 0 is for a single node; the others must know the port")
        check_protection(len(self.nodes), self.parity, self.group_size)
        if self.domain:
            check_domain(self.domain, "domain")
        if self.slots < 2:
            raise UsageError(f"slots {self.slots}: expected 2 or more; one would overwrite the only copy")
        if self.scrub_every_s < 0 or self.timing.leave_after_s < self.timing.lost_after_s:
            raise UsageError(
                f"scrub_every_s {self.scrub_every_s}, leave_after_s {self.timing.leave_after_s}: expected 0 or more, and "
                f"{self.timing.lost_after_s} or more"
            )
        if self.keep_last < 0 or self.keep_last == 1 or self.keep_every < 0:
            raise UsageError(
                f"keep_last {self.keep_last}, keep_every {self.keep_every}: expected 0 (keep all), or {KEEP_MIN} or more to "
                "keep, as a restart may be reading the one before the newest; and 0 or more"
            )
        if not 0.0 <= self.keep_for_s <= 1e10:  # which nan is not either
            raise UsageError(
                f"keep_for_s {self.keep_for_s}: expected the seconds that a step stays; 0: no matter how old"
            )
        if self.persistence and self.storage is None:
            raise UsageError("persist_every is set but storage is not; give a directory, or an object store's URL")
        if len(self.nodes) > 1 and len(self.secret) < 16:
            raise UsageError(
                "several nodes need a shared secret of at least 16 bytes; give the same --secret-file everywhere"
            )
        if not 0 <= self.nice <= 19:
            raise UsageError(f"nice {self.nice}: expected 0 to 19")
        self._check_caps()
        if len(str(self.run_dir / "ckptd.sock").encode(errors="surrogateescape")) > 100:
            raise UsageError(f"run directory {self.run_dir}: a socket path holds 107 bytes; choose a shorter directory")
        return self

    def _check_caps(self) -> None:
        if self.act not in ACTS:
            raise UsageError(f"act {self.act!r}: expected {' or '.join(ACTS)}")
        if self.memory_bytes < 0:
            raise UsageError(f"memory_bytes {self.memory_bytes}: expected 0 or more")
        if not 0.0 <= self.stuck_after_s <= 1e9:  # which nan is not either
            raise UsageError(f"stuck_after_s {self.stuck_after_s}: expected a number of seconds; 0: never")
        if not 1.0 <= self.mtbf_node_s <= 1e12:  # which nan is not either
            raise UsageError(f"mtbf_node_s {self.mtbf_node_s}: expected the seconds between two failures of a node")
        if self.bandwidth_bytes_s and self.bandwidth_bytes_s < BANDWIDTH_MIN:
            raise UsageError(
                f"bandwidth_bytes_s {self.bandwidth_bytes_s}: expected 0 (no cap), or {BANDWIDTH_MIN} or more; with less "
                "the others would take this node for dead"
            )
        if self.cpu_share and not CPU_SHARE_MIN <= self.cpu_share <= 1024:  # which nan is not either
            raise UsageError(
                f"cpu_share {self.cpu_share}: expected 0 (no cap), or {CPU_SHARE_MIN} to 1024 cores; 0.5 is half of one"
            )


def check_protection(nodes: int, parity: int, group_size: int) -> None:
    """Raise UsageError unless so many nodes can form such groups."""
    if parity < 0 or group_size < 1 or group_size > 256:
        raise UsageError(f"parity {parity}, group size {group_size}: expected parity >= 0 and size 1 to 256")
    if nodes > 1 and parity >= group_size:
        raise UsageError(f"parity {parity} needs groups larger than {group_size} nodes; lower one or raise the other")


def split_address(address: str) -> tuple[str, int]:
    """Split host:port. Raises UsageError for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"node address {address!r}: expected host:port")
    return host, int(port)
