"""What is done to a synthetic job, and what it should be called: faults with their truth, and harmless things."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from tests.watch.job import Job, Mask

from ckptd.daemon.watch.observations import Phase
from ckptd.daemon.watch.verdicts import Syndrome, Verdict

INF = float("inf")


class Ill(Enum):
    """The kinds of faults, as the tables call them."""

    KILL = "killed rank"
    NODE_LOST = "lost node"
    STOP = "stopped rank"
    HANG = "hang in compute"
    HANG_LOADER = "hang in the data loader"
    HANG_GIL = "hang with the GIL"
    STUCK = "hang in a collective"
    CUT = "cut link"
    DELAY = "delays of a rank"
    DELAY_LOADER = "slow data loader"
    SLOW_CPU = "slow CPU"
    SLOW_RX = "slow receiver"
    SLOW_TX = "slow sender"
    SLOW_LINK = "slow link"
    LOSSY = "lossy link"
    FAINT = "faint delays"
    """5 to 15 % of a step: said apart, not part of the bar."""
    HIDDEN = "slow behind async"
    """A rank whose slowness costs the job nothing, as others wait for the network anyway: said apart."""


HANGS = frozenset({Ill.HANG, Ill.HANG_LOADER, Ill.HANG_GIL})
FREEZES = frozenset({Ill.KILL, Ill.NODE_LOST, Ill.STOP})
SLOWS = frozenset({Ill.DELAY, Ill.DELAY_LOADER, Ill.SLOW_CPU, Ill.FAINT, Ill.HIDDEN})
LINKS = frozenset({Ill.SLOW_RX, Ill.SLOW_TX, Ill.SLOW_LINK, Ill.LOSSY, Ill.CUT})
APART = frozenset({Ill.FAINT, Ill.HIDDEN})

SYNDROMES = {
    Ill.KILL: Syndrome.CRASH,
    Ill.NODE_LOST: Syndrome.NODE_LOST,
    Ill.STUCK: Syndrome.COMMUNICATION_HANG,
    Ill.CUT: Syndrome.COMMUNICATION_HANG,
    **dict.fromkeys((Ill.STOP, *HANGS), Syndrome.NON_COMMUNICATION_HANG),
    **dict.fromkeys(SLOWS, Syndrome.NON_COMMUNICATION_SLOW),
    **dict.fromkeys((Ill.SLOW_RX, Ill.SLOW_TX, Ill.SLOW_LINK, Ill.LOSSY), Syndrome.COMMUNICATION_SLOW),
}


@dataclass(slots=True)
class Fault:
    """One fault, from a moment on. `struck_s` is when it first changed anything, infinity while it has not."""

    ill: Ill
    at_s: float
    ranks: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    """The node of a loss or of a slow side; receiver and sender of a link."""
    segments: frozenset[str] = frozenset()
    """Pieces of work that it touches; empty: all."""
    delay_s: float = 0.0
    factor: float = 1.0
    lost: float = 0.0
    """The part of the segments from the sender to the receiver of a lossy link that does not arrive."""
    slot: str = ""
    group: int = -1
    struck_s: float = INF
    deaths: tuple[tuple[int, float], ...] = ()
    """Peers that die of it by an error, and how long after."""

    @property
    def syndrome(self) -> Syndrome:
        return SYNDROMES[self.ill]

    @property
    def suspects(self) -> frozenset[tuple[str, int]]:
        """Who should be named: ranks, nodes, or the two ends of a link."""
        if self.ill in LINKS or self.ill is Ill.NODE_LOST:
            return frozenset(("node", node) for node in self.nodes)
        return frozenset(("rank", rank) for rank in self.ranks)

    def mask(self, job: Job) -> Mask:
        """The ranks whose work it touches."""
        mask = np.zeros(job.ranks, bool)
        if self.ill in SLOWS | HANGS | FREEZES:
            mask[list(self.ranks)] = True
        return mask.reshape(job.shape)


def named(verdict: Verdict) -> frozenset[tuple[str, int]]:
    """Who is suspected, in the terms of `Fault.suspects`."""
    if verdict.links or verdict.syndrome in {Syndrome.NODE_LOST, Syndrome.COMMUNICATION_SLOW} or not verdict.ranks:
        return frozenset(("node", node) for node in verdict.nodes)
    return frozenset(("rank", rank) for rank in verdict.ranks)


@dataclass(frozen=True, slots=True)
class Pause:
    """A harmless standstill before one step: of some ranks, for some seconds, in a phase."""

    step: int
    seconds: float
    ranks: tuple[int, ...]
    phase: Phase = Phase.TRAINING


@dataclass(frozen=True, slots=True)
class Calm:
    """Everything harmless that happens to a job, and everything odd about its reports."""

    pauses: tuple[Pause, ...] = ()
    stalls: tuple[tuple[int, int, float], ...] = ()
    """Input that is late for all: first step, steps, seconds."""
    collections: float = 0.0
    """How likely a rank's garbage collection is in a step: a pause of 50 to 300 ms."""
    loss: float = 0.01
    """How many reports are lost."""
    bursts: tuple[tuple[float, float, int], ...] = ()
    """A node's links are busy: from, for how long (both in seconds), which node."""
    liar: int = -1
    """A node that says that it reaches nobody, and all others are slow."""
    liar_from_s: float = INF
    babbler: int = -1
    """A rank that reports nonsense."""
    flood: int = -1
    """A node that sends twenty reports a second."""
    ghosts: bool = False
    """Ranks of an earlier life report on, and collectives of groups that are gone never complete."""
    offsets_s: float = 2.0
    """How far the nodes' clocks are apart."""
    words: tuple[str, ...] = field(default=())
    """What of this was drawn, for the trace."""
