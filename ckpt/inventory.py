"""What the daemons tell each other: a node's `Report` of what it can serve, and the collector's `Ledger` of what follows.

Both are states, not commands: they may be lost, repeated or reordered, the newest one simply replaces the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ckptd.ckpt.barred import Barred
from ckptd.ckpt.model import GroupMap, Image, Table, Version
from ckptd.ckpt.rounds import Agent, Isolation, Round, Wish

Origin = Literal["captured", "peer", "parity", "storage"]
ORIGINS: tuple[Origin, ...] = ("captured", "peer", "parity", "storage")


@dataclass(frozen=True, slots=True)
class Held:
    """An image that a node can serve, and how it came there."""

    version: Version
    world: int
    image: Image
    origin: Origin = "captured"


@dataclass(frozen=True, slots=True)
class Parity:
    """One parity segment that a node can serve: a row of a stripe in a protection group, made under a table."""

    version: Version
    table: str
    """The table's name."""
    group: int
    stripe: int
    row: int


@dataclass(frozen=True, slots=True)
class Part:
    """The images of one version that a node has written to storage and synced."""

    version: Version
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Captures:
    """How the captures of an attached rank stand."""

    rank: int
    free: int
    """Its slots that hold nothing."""
    begun: Version | None = None
    """The newest version that it asked a slot for, whether it got one or not."""
    unfinished: tuple[Version, ...] = ()
    """What is being captured now."""
    epoch: int = 0
    """The life that it has joined; 0 before."""

    def has_passed(self, version: Version) -> bool:
        """Whether the rank will not capture this version any more, so that it is held by now or never."""
        return self.begun is not None and version <= self.begun and version not in self.unfinished


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a node can serve. A higher `seq` of the same `boot` replaces a lower one."""

    node: int
    boot: str
    seq: int
    data_port: int = 0
    epoch: int = 0
    ranks: tuple[tuple[int, int], ...] = ()
    """Attached trainers: (rank, process id)."""
    captures: tuple[Captures, ...] = ()
    held: tuple[Held, ...] = ()
    parities: tuple[Parity, ...] = ()
    tables: tuple[Table, ...] = ()
    """The tables of the parities: they name the images of nodes that may be lost by now."""
    part: Part | None = None
    sealed: Version | None = None
    persisted: Version | None = None
    """The newest version that this node knows to be sealed, and to be persisted."""
    questions: int = 0
    """How many questions what to restore were asked here: a new one is news, as its answer waits for the next ledger."""
    wanted: Version | None = None
    """The newest version that a trainer here wants on storage as soon as it is sealed."""
    domain: str = ""
    """What the node says that it fails together with."""
    scanned: bool = True
    """False while a restarted daemon still verifies what it found; nobody decides without it."""
    agent: Agent | None = None
    """The launcher of the node's trainers; None before one has called, also at a daemon that was restarted."""
    wish: Wish | None = None
    """The newest round that somebody asked this node to have ended."""
    isolations: tuple[Isolation, ...] = ()
    """What this node knows of nodes that are kept out of the training."""
    barred: Barred = field(default_factory=Barred)
    """What this node knows of steps that no life is to begin from."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The facts that follow from the reports, as the collector announces them."""

    collector: int
    boot: str
    seq: int
    nodes: int = 0
    """How many nodes the job has; those that are not in the map have left for good."""
    map: GroupMap = field(default_factory=GroupMap)
    """Which nodes protect each other now."""
    epoch: int = 0
    sealed: Version | None = None
    shielded: Version | None = None
    """The newest sealed version, once it is protected under the map too: parities of it that were made under older maps may
    go."""
    persisted: Version | None = None
    persist: Version | None = None
    """The version that every node should be writing to storage."""
    protect: Version | None = None
    """The version whose parities every owner should be making: one at a time, so that all work towards the same seal."""
    tables: tuple[Table, ...] = ()
    """Of versions that every rank has captured, newest first: the four above and the newest others, each under the map as
    far as that is possible."""
    reports: tuple[Report, ...] = ()
    """The newest report of every live node, by node."""
    lost: tuple[int, ...] = ()
    round: Round | None = None
    """The agents that train together, or did last."""
    isolations: tuple[Isolation, ...] = ()
    barred: Barred = field(default_factory=Barred)
    """Which steps no life is to begin from."""

    @property
    def left(self) -> frozenset[int]:
        """The nodes that have been lost for so long that the map goes on without them."""
        return frozenset(range(self.nodes)) - self.map.nodes if self.map.groups else frozenset()

    def report(self, node: int) -> Report | None:
        """The live report of a node, or None while it is lost."""
        return next((report for report in self.reports if report.node == node), None)

    def lives(self) -> set[int]:
        """The epochs in which trainers are attached somewhere. An epoch that was given to nobody who lives is none."""
        return {captures.epoch for report in self.reports for captures in report.captures if captures.epoch}

    def table(self, version: Version) -> Table | None:
        return next((table for table in self.tables if table.version == version), None)
