"""What a daemon tells the collector's about its ranks once a second, and what it hears back. Bounded, whatever the ranks do.

These are states like all letters: the newest one counts, and one that is lost is followed by another. They have nothing to
do with reports and ledgers, whose change has consequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DIGESTS_MAX = 32 * 1024
SAMPLES_MAX = 4 * 1024
GROUPS_MAX = 256
RUNS_MAX = 64
STACKS_MAX = 4
STACK_CHARS = 4000
WANTED_MAX = 64
REMARKS_MAX = 8
REMARK_CHARS = 300


@dataclass(frozen=True, slots=True)
class Group:
    """A process group: its number in the job, and its members."""

    number: int
    runs: tuple[tuple[int, int, int], ...]
    """The members as (first, stride, count); a mesh's groups are one each."""

    @property
    def members(self) -> list[int]:
        return [first + stride * i for first, stride, count in self.runs for i in range(count)]


@dataclass(frozen=True, slots=True)
class Stamps:
    """The clocks of an answer and of the letter after it, in seconds of the wall clocks of both sides."""

    answered: float
    """When the collector's daemon answered the letter before, on its clock."""
    heard: float
    """When that answer came here, on ours."""
    sent: float
    """When this letter left, on ours."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What the daemon of rank 0 let the newest life resume from."""

    epoch: int
    step: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One node's part of what is seen of a job."""

    node: int
    boot: str
    epoch: int = 0
    """The newest life of its ranks."""
    world: int = 0
    """How many ranks that has; 0 without any."""
    at: float = 0.0
    """This node's wall clock when it looked."""
    digests: bytes = b""
    """`daemon.watch.observations.DIGEST` records."""
    samples: bytes = b""
    """`daemon.watch.observations.SAMPLE` records."""
    groups: tuple[Group, ...] = ()
    stamps: Stamps | None = None
    decided: Decided | None = None
    stacks: tuple[tuple[int, str], ...] = ()
    """Of ranks that were asked about: what their threads do."""
    remarks: tuple[str, ...] = ()
    """What can't be seen here, and why."""
    sick: str = ""
    """Why this node should not be used, as its health checker says; '' if it does not say so."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the collector's daemon answers."""

    at: float
    """Its wall clock."""
    probe: tuple[int, ...] = ()
    """Nodes from which this one should try to read at once."""
    explain: tuple[int, ...] = ()
    """Ranks of this node whose stacks are wanted."""


def runs_of(members: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
    """The members, ascending, as runs (first, stride, count)."""
    left: Sequence[int] = sorted(set(members))
    runs = []
    while left:
        stride = left[1] - left[0] if len(left) > 1 else 1
        count = 1
        while count < len(left) and left[count] == left[0] + stride * count:
            count += 1
        if count == 2 and len(left) > 2:
            stride, count = 1, 1  # two of something irregular: one by one
        runs.append((left[0], stride, count))
        left = left[count:]
    return tuple(runs)


def is_time(value: float) -> bool:
    """Whether it may be a wall clock's."""
    return math.isfinite(value) and 0.0 <= value < 1e11
