"""Slow ranks: whose own time makes the others wait, step after step. And slowness that is nobody's fault.

Source: C4's syndrome 4 (late arrival). All ranks of a job take equally long for a step, as they wait for each other:
the culprit is who waits least, so what is compared is the rank's own time, what it spent not waiting. That needs no
common clock, and a victim's long waits can't be mistaken for slowness. Ranks of one role do the same work; where a role
is all on one node, its ranks are compared with their own past.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from ckptd.daemon.watch.fleet import Flags, Fleet, Floats, newest_own, recent_own
from ckptd.daemon.watch.layout import Ints
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.verdicts import Confidence, Syndrome, Verdict, several

PEERS_MIN = 4
"""So many ranks of a role show what is usual by themselves; fewer are compared over time."""
PACE_KEPT = 256
FEW = 8.0
MANY = 16
"""So many ranks of a role show by themselves how much ranks differ by nature."""
LEARNT = 0.05
"""The part of the newest step in what is known of the past."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long steps take, in seconds: lately, and when the job was well."""

    now_s: float
    usual_s: float


class SlowRanks:
    """Judges each newest step that all ranks have told about. Pure; forgets at a new life."""

    def __init__(self, world: int, limits: Limits) -> None:
        self.pace = Pace(0.0, 0.0)
        """Zeros before the first steps."""
        self._limits = limits
        self._judged = -1
        self._found: list[Verdict] = []
        self._steps: deque[float] = deque(maxlen=PACE_KEPT)
        self._waits: deque[float] = deque(maxlen=limits.window)
        self._past: Floats = np.full(world, np.nan)
        self._own: deque[float] = deque(maxlen=PACE_KEPT)
        self._roles: Ints = np.zeros(0, np.int64)
        self._members: list[Ints] = []

    @property
    def waiting_s(self) -> float:
        """By how much the newest steps take longer than usual without anybody's own work being to blame, in seconds."""
        return float(np.median(self._waits)) if len(self._waits) == self._limits.window else 0.0

    def judge(self, fleet: Fleet, now: float) -> list[Verdict]:
        """What holds of the newest common step; the same again until there is a newer one."""
        fresh = fleet.fresh(now)
        told = fresh & np.isfinite(fleet.rows["step_s"])
        if 2 * told.sum() <= fleet.layout.world:
            return []
        window = self._limits.window
        newest = newest_own(fleet, told, window)
        if newest <= self._judged:
            return self._found
        first = fleet.first_step + self._limits.first_steps
        self._judged = newest
        if newest - window < first:
            return []
        own = recent_own(fleet, newest, window)
        own[:, ~told] = np.nan
        self._found = self._judge(fleet, own, float(np.median(fleet.rows["step_s"][told])))
        return self._found

    def _judge(self, fleet: Fleet, own: Floats, step_s: float) -> list[Verdict]:
        seen = np.isfinite(own).sum(axis=0) >= self._limits.late_of
        if not seen.any():
            return []
        late, bound = np.full(own.shape, np.nan), np.full(own.shape[1], np.inf)
        classes = [ranks for members in self._classes(fleet) if len(ranks := members[seen[members]]) > 1]
        spread = self._spread(own, classes)
        for ranks in classes:
            among = self._among_peers if len(ranks) >= PEERS_MIN else self._among_few
            late[:, ranks], bound[ranks] = among(own[:, ranks], spread)
            late[:, ranks], bound[ranks] = self._since(ranks, late[:, ranks], bound[ranks])
        suspects = self._apart(late, self._often(late, bound), self._classes(fleet))
        self._explain(own[0], step_s)
        before, before_bound = self._with_the_past(own, seen)
        grown = self._not_the_role(fleet, self._often(before, before_bound), suspects, seen)
        late[:, grown], bound[grown] = before[:, grown], before_bound[grown]
        suspects |= grown
        if suspects.any():
            return [self._verdict(fleet, suspects, late, bound, step_s)]
        self._remember(own, seen, step_s)
        return self._all_alike(float(median(own)), step_s)

    def _often(self, late: Floats, bound: Floats) -> Flags:
        with np.errstate(invalid="ignore"):
            often: Flags = (late > bound).sum(axis=0) >= self._limits.late_of
        return often

    def _explain(self, own: Floats, step_s: float) -> None:
        """Note what of the newest step's length no rank's own work explains: everybody waits for the one that works
        longest."""
        more = own - self._past
        known = np.isfinite(more)
        if known.any() and self._steps:
            self._waits.append(step_s - self.pace.usual_s - max(0.0, float(more[known].max())))

    def _remember(self, own: Floats, seen: Flags, step_s: float) -> None:
        """Learn what is usual, from the window's oldest step: its newest ones may be the first of something unusual."""
        self._steps.append(step_s)
        known = np.array(self._steps)
        self.pace = Pace(float(np.median(known[-self._limits.window :])), float(np.quantile(known, 0.25)))
        self._own.append(float(median(own)))
        if step_s > self._limits.all_alike * self.pace.usual_s:
            return  # what is unusual for all is not learnt before it has become the usual pace
        first = np.isnan(self._past) & seen
        self._past[first] = median(own[:, first], axis=0)
        told = seen & np.isfinite(own[-1])
        past = self._past[told]  # a step with an evaluation in it teaches little
        self._past[told] += LEARNT * (np.minimum(own[-1][told], self._limits.all_alike * past) - past)

    def _classes(self, fleet: Fleet) -> list[Ints]:
        """The ranks of each role."""
        roles = fleet.rows["role"].astype(np.int64)
        if not np.array_equal(roles, self._roles):
            self._roles = roles
            self._members = [np.flatnonzero(roles == role) for role in np.unique(roles)]
        return self._members

    def _spread(self, own: Floats, classes: list[Ints]) -> float:
        """By which part of their work the ranks of a role differ, over all roles: a median absolute deviation, made wider
        where few ranks have shown it, as Student does with few samples."""
        if not classes:
            return 0.0
        parts = [np.abs(own[:, ranks] / _middle(own[:, ranks]) - 1.0).ravel() for ranks in classes]
        return float(median(np.concatenate(parts))) * (1.0 + FEW / sum(map(len, classes)))

    def _among_peers(self, own: Floats, spread: float) -> tuple[Floats, Floats]:
        middle = _middle(own)
        late = own - middle
        mad = max(float(median(np.abs(late))), spread * float(median(middle)))
        return late, np.full(own.shape[1], max(self._limits.late_s, self._limits.late_mads * mad))

    def _among_few(self, own: Floats, spread: float) -> tuple[Floats, Floats]:
        """Two or three of a kind: later than the fastest other one, by more than both differ and that one changes."""
        late, bound = np.empty_like(own), np.empty(own.shape[1])
        level = median(own, axis=0)
        for rank in range(own.shape[1]):
            best = min((other for other in range(own.shape[1]) if other != rank), key=lambda other: float(level[other]))
            late[:, rank] = own[:, rank] - own[:, best]
            mad = max(float(median(np.abs(own[:, best] - level[best]))), 2.0 * spread * float(level[best]))
            bound[rank] = max(self._limits.late_s, self._limits.late_mads * mad)
        return late, bound

    def _since(self, ranks: Ints, late: Floats, bound: Floats) -> tuple[Floats, Floats]:
        """The same, with a lower bound for who is later than it used to be beside the others of its role: few others don't
        show how much ranks differ by nature, but the past does. What is left are errors of medians of some steps."""
        past = self._past[ranks]
        if len(ranks) >= MANY or not np.isfinite(past).all():
            return late, bound
        later = late - np.maximum(0.0, past - np.median(past))
        later -= np.median(median(later, axis=0))
        level = median(later, axis=0)
        error = math.sqrt(2.0) * _error(late)  # what a rank is compared with, its past, was such a median, too
        margin = max(self._limits.late_s, self._limits.late_mads * max(float(median(np.abs(level))), error))
        changed = (level > margin) & (bound > self._limits.late_s)
        return np.where(changed, later, late), np.where(changed, self._limits.late_s, bound)

    def _with_the_past(self, own: Floats, seen: Flags) -> tuple[Floats, Floats]:
        """Later than the rank itself used to be, by more than what has grown for a quarter of all ranks."""
        known = seen & np.isfinite(self._past) & (self._past > 0)
        late, bound = np.full(own.shape, np.nan), np.full(own.shape[1], np.inf)
        if not known.any():
            return late, bound
        usual = median(own[:, known], axis=0)
        growth = max(1.0, float(np.quantile(usual / self._past[known], 0.25)))
        more = max(0.0, float(np.quantile(usual - self._past[known], 0.25)))
        spread = _error(own[:, known] / usual)
        late[:, known] = own[:, known] - np.maximum(growth * self._past[known], self._past[known] + more)
        bound[known] = np.maximum(self._limits.late_s, self._limits.late_mads * spread * self._past[known])
        return late, bound

    def _not_the_role(self, fleet: Fleet, grown: Flags, suspects: Flags, seen: Flags) -> Flags:
        """Of a role's ranks that are late alike, half of them or more, peers show nothing, but their past does. It is not
        what the role does if a quarter of it has not grown, or if all of it is on one node: then it may be the node."""
        chosen = np.zeros_like(grown)
        if (seen & ~grown & ~suspects).any():
            for members in self._classes(fleet):
                mine = members[grown[members] & ~suspects[members]]
                most = 2 * (len(mine) + int(suspects[members].sum())) >= len(members)
                others = len(members) - len(mine) - int(suspects[members].sum())
                if most and (4 * others >= len(members) or len(np.unique(fleet.layout.node_of[mine])) == 1):
                    chosen[mine] = True
        return chosen

    def _apart(self, late: Floats, often: Flags, classes: list[Ints]) -> Flags:
        """Those of the late ones that stand apart from the latest of the rest of their role."""
        suspects = np.zeros_like(often)
        if not often.any():
            return suspects
        level = np.full(late.shape[1], np.nan)
        known = np.isfinite(late).any(axis=0)
        level[known] = median(late[:, known], axis=0)
        for members in classes:
            mine = members[often[members]]
            rest = members[~often[members] & np.isfinite(level[members])]
            latest = max(0.0, float(level[rest].max())) if len(rest) else 0.0
            chosen = mine[level[mine] > self._limits.apart * latest]
            if 2 * len(chosen) <= len(members):
                suspects[chosen] = True
        return suspects

    def _verdict(self, fleet: Fleet, suspects: Flags, late: Floats, bound: Floats, step_s: float) -> Verdict:
        ranks = tuple(map(int, np.flatnonzero(suspects)))
        level = median(late[:, suspects], axis=0)
        worst = int(np.argmax(level))
        rest = ~suspects & np.isfinite(late).any(axis=0)
        role = fleet.rows["role"] == fleet.rows["role"][ranks[worst]]
        others = late[:, rest & role]
        next_late = max(0.0, float(median(others, axis=0).max())) if others.size else 0.0
        gap = float(level[worst]) - next_late
        pace = self.pace
        loss = max(0.0, min(gap, step_s - pace.usual_s)) if pace.usual_s else gap
        limit = float(bound[ranks[worst]])
        often = int((late[:, ranks[worst]] > limit).sum())
        return Verdict(
            Syndrome.NON_COMMUNICATION_SLOW,
            f"{several(ranks, 'rank')}: in {often} of {late.shape[0]} steps the own work took {level[worst] * 1e3:.0f} ms "
            f"longer than usual, more than {limit * 1e3:.0f} ms; the job loses {loss * 1e3:.0f} ms a step",
            ranks=ranks,
            nodes=tuple(sorted({int(fleet.layout.node_of[rank]) for rank in ranks})),
            confidence=Confidence.LIKELY,
            loss_s=loss,
            evidence=(
                ("late_s", float(level[worst])),
                ("limit_s", limit),
                ("step_s", step_s),
                ("usual_s", pace.usual_s),
            ),
        )

    def _all_alike(self, own: float, step_s: float) -> list[Verdict]:
        """The steps of the whole job take longer, and nobody's stand out."""
        pace = self.pace
        newest = list(self._steps)[-self._limits.window :]
        slow = sum(step > self._limits.all_alike * pace.usual_s for step in newest)
        if slow < self._limits.late_of or step_s <= self._limits.all_alike * pace.usual_s:
            return []
        usual_own = float(np.quantile(np.array(self._own), 0.25))
        waits = self.waiting_s > (step_s - pace.usual_s) / 2
        why = (
            "all wait longer"
            if waits
            else "the ranks of a role all work longer by themselves: input, storage or the model"
        )
        return [
            Verdict(
                Syndrome.NOBODY,
                f"steps take {step_s:.2f} s instead of {pace.usual_s:.2f} s, and no rank stands out: {why}",
                loss_s=step_s - pace.usual_s,
                confidence=Confidence.GUESS,
                evidence=(("step_s", step_s), ("usual_s", pace.usual_s), ("own_s", own), ("usual_own_s", usual_own)),
            )
        ]


def median(values: Floats, axis: int | None = None, *, keepdims: bool = False) -> Floats:
    """As `np.nanmedian`, in a quarter of the time where nothing is missing: almost always."""
    if np.isnan(values).any():
        return np.asarray(np.nanmedian(values, axis=axis, keepdims=keepdims))
    return np.asarray(np.median(values, axis=axis, keepdims=keepdims))


def _error(values: Floats) -> float:
    """By how much the median of each rank's steps may be off: its standard error, 1.25 of a mean's, where a deviation is
    1.48 MAD."""
    deviation = 1.4826 * float(median(np.abs(values - median(values, axis=0))))
    return 1.2533 * deviation / math.sqrt(len(values))


def _middle(own: Floats) -> Floats:
    """What is usual in each step, shape (steps, 1)."""
    return median(own, axis=1, keepdims=True)
