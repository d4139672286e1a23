"""How often to take snapshots and to persist them: what was asked for, and what loses the least time. Pure.

Snapshots reach two tiers. Memory costs training little and survives most failures; storage survives all. Each tier has an
interval of its own, as a failure goes back to the cheapest tier that survives it (Young 1974, Daly 2006, and SCR's tiers).
Seconds and rates a second throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckptd.ckpt.durations import seconds_of
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.placement import parity_of

MTBF_NODE_S = 22_800_000.0
"""Between two failures of one node that stop a job: what Llama 3's training saw for nodes of eight H100s (6,334 hours)."""
LOSES_MEMORY = 0.15
"""The share of failures that take the host's memory along; the others kill a process or a GPU, and the daemon lives on."""
CORRELATED = 0.03
"""The share of failures that take many hosts at once, such as a rack: more than the parity of a group may bear."""
WINDOW_S = 600.0
"""How long a lost node leaves its group with less protection: noticed, replaced, rebuilt, protected again."""
DISTURBS = 0.05
"""What a second of writing to storage beside the training counts as, in seconds of training: nobody measures it, and the
daemon is nice."""
PERSIST_MIN_S = 60.0
"""The shortest interval that `auto` chooses between two steps on storage."""

_STEPS_MAX = 2**53


@dataclass(frozen=True, slots=True)
class Steps:
    """At every multiple of so many steps."""

    count: int


@dataclass(frozen=True, slots=True)
class Seconds:
    """At the first step after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Auto:
    """At the interval that is expected to lose the least time."""


Cadence = Steps | Seconds | Auto


def cadence_of(value: int | str, name: str) -> Cadence:
    """Read 10 (or "10"), "90s", "5min", "1.5h", "500ms" or "auto". Raises UsageError, which calls it `name`."""
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if text == "auto":
        return Auto()
    if text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= _STEPS_MAX:
        return Steps(int(text))
    seconds = seconds_of(text)
    if not seconds:
        raise UsageError(
            f"found {name}={value!r}, expected a number of steps from 1 on, a time such as '90s', '5min' or '1h', or 'auto'"
        )
    return Seconds(seconds)


def young_s(cost_s: float, rate: float) -> float:
    """Young's interval: the least of cost / interval + rate * interval / 2."""
    return math.sqrt(2.0 * cost_s / rate) if rate > 0.0 else math.inf


def daly_s(cost_s: float, rate: float) -> float:
    """Daly's interval, from one snapshot to the next: Young's corrected for costs that are not small beside the time
    between failures."""
    if rate <= 0.0:
        return math.inf
    mean_s = 1.0 / rate
    ratio = cost_s / (2.0 * mean_s)
    if ratio >= 1.0:
        return mean_s + cost_s
    return young_s(cost_s, rate) * (1.0 + math.sqrt(ratio) / 3.0 + ratio / 9.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A place that snapshots reach, and what speaks for and against reaching it often."""

    cost_s: float
    """What one snapshot there costs the training: seconds blocked, and seconds that steps take longer."""
    rate: float
    """Failures a second that go back to this tier: what it survives, and no cheaper one does."""
    lag_s: float = 0.0
    """From the snapshot until it is safe there. More often than one after the other they can't be made."""

    @property
    def interval_s(self) -> float:
        """The interval that loses the least time here."""
        return max(daly_s(self.cost_s, self.rate), self.lag_s)


def lost_share(tiers: Sequence[Tier], intervals_s: Sequence[float]) -> float:
    """The expected seconds lost for each second of training: to snapshots, and to work done again after failures."""
    return sum(
        tier.cost_s / interval + tier.rate * (interval / 2.0 + tier.lag_s)
        for tier, interval in zip(tiers, intervals_s, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often a job fails, and how much of that its memory tier survives."""

    mtbf_node_s: float = MTBF_NODE_S
    nodes: int = 1
    parity: int = 0
    group_size: int = 8

    @property
    def rate(self) -> float:
        """All failures of the job, a second."""
        return self.nodes / self.mtbf_node_s

    @property
    def beyond_memory(self) -> float:
        """Those that only storage survives: more hosts of a group than its parity bears."""
        size = min(self.nodes, self.group_size)
        m = parity_of(size, self.parity)
        if m == 0:
            return self.rate * LOSES_MEMORY
        # Within one window, so many hosts of a group of `size` that all fail independently.
        lost = -math.expm1(-WINDOW_S * LOSES_MEMORY / self.mtbf_node_s)
        beyond = math.fsum(
            math.comb(size, gone) * lost**gone * (1.0 - lost) ** (size - gone) for gone in range(m + 1, size + 1)
        )
        return min(self.rate * CORRELATED + self.nodes / size * beyond / WINDOW_S, self.rate)

    @property
    def within_memory(self) -> float:
        """Those that the memory tier brings back."""
        return self.rate - self.beyond_memory


def snapshot_interval_s(failures: Failures, *, cost_s: float, lag_s: float) -> float:
    """Between two snapshots in memory: `cost_s` is measured in the run, `lag_s` is how long sealing takes."""
    return Tier(cost_s=cost_s, rate=failures.within_memory, lag_s=lag_s).interval_s


def persist_interval_s(failures: Failures, took_s: float) -> float:
    """Between two steps on storage, of which the last took `took_s` to write. Storage is busy half of the time at most."""
    tier = Tier(cost_s=DISTURBS * took_s, rate=failures.beyond_memory, lag_s=2.0 * took_s)
    return max(tier.interval_s, PERSIST_MIN_S)
