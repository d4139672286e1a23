"""What to do about a verdict: ignore, warn, restart in place, isolate and restart, give up; always with the reason. Pure.

A restart costs what it costs, so a slow rank is worth one when it has cost as much (ski rental: never more than twice
what the best would have cost who knew the future). A restart that did not help is not tried for ever: each step has a
few tries, then an older one; a job that makes no progress over several restarts ends with a code that says: do not
requeue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf

from ckptd.daemon.watch.verdicts import STANDS, Syndrome, Verdict, several

EXIT_NO_PROGRESS = 93
"""The code of a job that should not be started again: it would fail in the same way. Others use the same number."""
EXIT_FEW_NODES = 1
"""The code of a job that another start, with other nodes, may well bring further."""


NOWHERE = -1
"""In place of a step: the life began anew."""
ASKED_AGAIN_S = 10.0
"""Verdicts that last are given about once a second: after a longer pause it is another one."""


class Act(Enum):
    IGNORE = "ignore"
    WARN = "warn"
    RESTART = "restart in place"
    ISOLATE = "isolate and restart"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the policy must know beside the verdict."""

    step: int
    """The newest finished step of the life that the verdict is about."""
    nodes: tuple[int, ...]
    """All nodes that could take part now: alive and not isolated, spares among them."""
    nodes_min: int
    """With fewer the job can't go on: MIN of `--nnodes`, or what the world needs if it can't be resharded."""
    origin: int = NOWHERE
    """The step that this life was restored from; NOWHERE: from none, or that is not known."""
    stood: int = 0
    """The newest finished step of the suspects: the others may have been one further."""
    sick: Mapping[int, str] = field(default_factory=dict)
    """By node: why it should not be used, as its health checker says."""


@dataclass(frozen=True, slots=True)
class Retreat:
    """The next life is to begin before this step: nothing from it on that lives up to now have captured is restored."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now."""

    act: Act
    reason: str
    nodes: tuple[int, ...] = ()
    """Whom to keep out."""
    isolate_s: float = 0.0
    """For how long."""
    exit_code: int = 0
    retreat: Retreat | None = None
    """How far the next life has to go back; None: it begins from the newest step that can be restored."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The numbers of the policy."""

    restart_s: float = 60.0
    """What a restart costs the job, in seconds: measured at the last one, or this guess."""
    tries: int = 2
    """Lives from one step that end in a crash or a hang, then an older step (most blind retries fail)."""
    cycles: int = 5
    """Restarts without progress, then the end."""
    half_life_s: float = 3600.0
    """Half of a blame is forgotten in that time."""
    isolate_at: float = 1.5
    """So much blame isolates a node: twice within a while, or once if it is gone."""
    isolate_s: float = 600.0
    """How long a node stays out the first time; twice as long each time after."""
    isolate_max_s: float = 86400.0
    wait_s: float = 600.0
    """How long a job that lacks nodes waits for one."""


@dataclass(slots=True)
class _Blame:
    weight: float = 0.0
    at: float = 0.0
    isolations: int = 0


@dataclass(slots=True)
class _Loss:
    seconds: float = 0.0
    step: int = 0
    at: float = 0.0


@dataclass(slots=True)
class Policy:
    """Remembers what was done, over all lives of a job. Time is an argument, in seconds of any one clock."""

    costs: Costs = field(default_factory=Costs)
    _restarted: int = -1
    _best_step: int = -1
    _cycles: int = 0
    _tries: Counter[int] = field(default_factory=Counter)
    """By step: the lives restored from it that crashed or hung and came no further than the best one."""
    _fell: dict[int, list[int]] = field(default_factory=dict)
    """By the step at which lives crashed: the steps that they had been restored from. Only without progress in between."""
    _blame: dict[int, _Blame] = field(default_factory=dict)
    _losses: dict[int, _Loss] = field(default_factory=dict)
    """By node: what its slowness has cost."""
    _moved: dict[int, float] = field(default_factory=dict)
    """By rank: when it was moved to another node for its slowness."""
    _waiting: tuple[int, float] | None = None
    """The life that waits for a node to come back, and since when."""

    def decide(self, verdict: Verdict, facts: Facts, now: float) -> Decision:
        """What to do about one verdict. Asked twice about one life, it restarts once."""
        if verdict.epoch <= self._restarted:
            return Decision(
                Act.IGNORE, f"the life of epoch {verdict.epoch} is being restarted already; one restart is enough"
            )
        if verdict.syndrome is Syndrome.NOBODY:
            return Decision(Act.WARN, f"nobody's fault, so nobody is exchanged: {verdict.reason}")
        if verdict.syndrome is Syndrome.NODE_UNHEALTHY:
            return Decision(Act.WARN, f"the job goes on; at the next fault of it the node stays out: {verdict.reason}")
        if verdict.syndrome not in STANDS:
            return self._weigh(verdict, facts, now)
        return self._restart(verdict, facts, now)

    def witness(self, verdict: Verdict, facts: Facts) -> Retreat | None:
        """A crash of a life that was restarted before it could be judged: nothing is to be decided, and it counts."""
        if verdict.epoch <= self._restarted or verdict.syndrome is not Syndrome.CRASH:
            return None
        self._restarted = verdict.epoch
        self._count(facts)
        return self._retreat(verdict, facts)

    def blame(self, node: int, now: float) -> float:
        """How much a node is blamed now: 1 for each verdict, halved every half-life."""
        known = self._blame.get(node)
        return known.weight * 0.5 ** ((now - known.at) / self.costs.half_life_s) if known else 0.0

    def _weigh(self, verdict: Verdict, facts: Facts, now: float) -> Decision:
        """Ski rental: go on while the loss so far is less than a restart costs."""
        if verdict.loss_s <= 0.0 or not verdict.nodes:
            return Decision(Act.WARN, f"it costs the job nothing: {verdict.reason}")
        lost = max(self._lose(node, verdict.loss_s, facts.step, now) for node in verdict.nodes)
        said = f"{verdict.reason} (lost so far: {lost:.1f} s; a restart costs {self.costs.restart_s:.0f} s)"
        if lost <= self.costs.restart_s:
            return Decision(Act.WARN, f"not worth a restart yet: {said}")
        if verdict.links:
            return Decision(
                Act.WARN, f"a link is slow, and neither end alone is to blame; somebody should look at it: {said}"
            )
        if any(now - self._moved.get(rank, -inf) < self.costs.isolate_max_s for rank in verdict.ranks):
            return Decision(Act.WARN, f"slow on another node too, so it is its share of the work, not the node: {said}")
        left = len(set(facts.nodes) - set(verdict.nodes))
        if left < facts.nodes_min:
            without = several(verdict.nodes, "node")
            return Decision(Act.WARN, f"it goes on slowly: without {without} {_few(left, facts.nodes_min)}: {said}")
        self._moved.update(dict.fromkeys(verdict.ranks, now))
        return self._isolating(verdict.nodes, now, self._restarting(verdict.epoch, f"worth a restart: {said}"))

    def _lose(self, node: int, loss_s: float, step: int, now: float) -> float:
        """Add what the steps since the last time have cost; what was lost long ago is forgotten like blame."""
        known = self._losses.setdefault(node, _Loss(at=now))
        lasts = known.step and now - known.at <= ASKED_AGAIN_S
        known.seconds *= 0.5 ** (max(0.0, now - known.at) / self.costs.half_life_s)
        known.seconds += loss_s * (max(0, step - known.step) if lasts else 1)
        known.step, known.at = step, now
        return known.seconds

    def _restart(self, verdict: Verdict, facts: Facts, now: float) -> Decision:
        gone = verdict.syndrome is Syndrome.NODE_LOST
        left = len(set(facts.nodes) - set(verdict.nodes))
        if gone and left < facts.nodes_min:
            return self._wait(verdict, _few(left, facts.nodes_min), now)
        self._count(facts)
        if self._cycles > self.costs.cycles:
            reason = (
                f"no progress beyond step {self._best_step} in {self.costs.cycles} restarts; the last: {verdict.reason}"
            )
            return Decision(Act.GIVE_UP, reason, exit_code=EXIT_NO_PROGRESS)
        retreat = None if gone else self._retreat(verdict, facts)
        sick = [node for node in verdict.nodes if node in facts.sick]
        for node in verdict.nodes:
            weight = self.costs.isolate_at if node in sick else 1.0 / len(verdict.nodes)
            self._add_blame(node, now, 2.0 if gone else weight)
        if sick:  # who is suspected and sick has done it: it need not do it twice
            said = "; ".join(f"the checker of node {node} says: {facts.sick[node]}" for node in sick)
            verdict = replace(verdict, reason=f"{verdict.reason}; {said}")
        guilty = tuple(node for node in verdict.nodes if self.blame(node, now) >= self.costs.isolate_at)
        if not guilty:
            return self._restarting(verdict.epoch, verdict.reason, retreat)
        left = len(set(facts.nodes) - set(guilty))
        if left < facts.nodes_min:
            reason = f"{verdict.reason}; {several(guilty, 'node')} should stay out, but {_few(left, facts.nodes_min)}"
            return self._restarting(verdict.epoch, reason, retreat)
        return self._isolating(guilty, now, self._restarting(verdict.epoch, verdict.reason, retreat))

    def _count(self, facts: Facts) -> None:
        """One more restart, the first one where the job has come further than ever."""
        if facts.step > self._best_step:
            self._best_step, self._cycles = facts.step, 0
            self._tries.clear()
            self._fell.clear()
        self._cycles += 1

    def _wait(self, verdict: Verdict, few: str, now: float) -> Decision:
        """The job can't go on with so few: wait for a node, for a while."""
        if self._waiting is None or self._waiting[0] != verdict.epoch:
            self._waiting = (verdict.epoch, now)
        waited = now - self._waiting[1]
        if waited > self.costs.wait_s:
            reason = f"{verdict.reason}; {few}, and none came in {waited:.0f} s"
            return Decision(Act.GIVE_UP, reason, exit_code=EXIT_FEW_NODES)
        return Decision(
            Act.WARN, f"{verdict.reason}; {few}: waiting for a node, {waited:.0f} of {self.costs.wait_s:.0f} s"
        )

    def _add_blame(self, node: int, now: float, weight: float) -> None:
        known = self._blame.setdefault(node, _Blame())
        known.weight, known.at = self.blame(node, now) + weight, now

    def _isolating(self, nodes: Iterable[int], now: float, restart: Decision) -> Decision:
        """A restart without these nodes."""
        nodes = tuple(nodes)
        longest = 0.0
        for node in nodes:
            known = self._blame.setdefault(node, _Blame(at=now))
            longest = max(longest, min(self.costs.isolate_max_s, self.costs.isolate_s * 2.0**known.isolations))
            known.isolations += 1
        reason = f"{several(nodes, 'node')} out for {longest:.0f} s: {restart.reason}"
        return replace(restart, act=Act.ISOLATE, reason=reason, nodes=nodes, isolate_s=longest)

    def _restarting(self, epoch: int, reason: str, retreat: Retreat | None = None) -> Decision:
        self._restarted = epoch
        if retreat:
            reason += f"; not from step {retreat.step}: {retreat.reason}"
        return Decision(Act.RESTART, reason, retreat=retreat)

    def _retreat(self, verdict: Verdict, facts: Facts) -> Retreat | None:
        """Before the oldest step that does not help: one that is used up by its tries, or poisoned.

        Poisoned: two lives, one of them restored from it, have crashed at the same step. It may be in the numbers.
        """
        if facts.stood < facts.origin:
            return None  # it never got as far as the state that it was to begin with
        self._tries[facts.origin] += self._cycles > 1  # the first one has brought the job further
        fell: list[int] = []
        if verdict.syndrome is Syndrome.CRASH:
            fell = self._fell.setdefault(facts.stood, [])
            fell.append(facts.origin)
        poisoned = fell if len(fell) > 1 else []
        used_up = [step for step, tries in self._tries.items() if tries >= self.costs.tries]
        step = min((step for step in [*poisoned, *used_up] if step != NOWHERE), default=None)
        if step is None:
            return None
        if step in poisoned:
            return Retreat(step, f"trainers crashed {len(fell)} times at step {facts.stood} after it")
        return Retreat(
            step, f"{self._tries[step]} lives that began with it came no further than step {self._best_step}"
        )


def _few(left: int, wanted: int) -> str:
    return f"{left} nodes would be left, and the job needs {wanted} (MIN)"
