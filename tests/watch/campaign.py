"""Runs scenarios through the judge and keeps the score: what was found, who was named, how long it took, what was made
up."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
from tests.watch.engine import Engine
from tests.watch.faults import APART, INF, Fault, Ill, named
from tests.watch.reports import Network, Reporter, Timeline
from tests.watch.scenario import Scenario, draw

from ckptd.daemon.watch.judge import Judge
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.policy import Act, Costs, Decision, Facts, Policy
from ckptd.daemon.watch.verdicts import STANDS, Syndrome, Verdict

WAIT_MAX_S = 400.0
"""How long a fault may take to strike: a rank that should hang in its loader may be in an evaluation."""
START_S = 10.0
RESTARTS = frozenset({Act.RESTART, Act.ISOLATE, Act.GIVE_UP})


@dataclass(slots=True)
class Said:
    """A verdict as it was first said."""

    at_s: float
    verdict: Verdict


@dataclass(slots=True)
class Outcome:
    """One scenario, judged."""

    scenario: Scenario
    faults: list[Fault]
    said: list[Said] = field(default_factory=list)
    acts: list[Decision] = field(default_factory=list)
    """The restarts that the policy has ordered."""
    seconds: float = 0.0

    @property
    def struck(self) -> list[Fault]:
        """The faults that came to anything: a rank that already waits for another one never reaches the place to hang at."""
        return [fault for fault in self.faults if fault.struck_s < INF and fault.struck_s <= self.seconds]

    def found(self, fault: Fault) -> Said | None:
        """The first verdict of the right class that names who it was; failing that, the first of that class."""
        same = [said for said in self.said if said.verdict.syndrome is fault.syndrome]
        return next((said for said in same if named(said.verdict) >= fault.suspects), same[0] if same else None)

    def names(self, said: Said, fault: Fault) -> bool:
        """Whether all of those who are to blame are named, and nobody else."""
        to_blame = frozenset().union(*(f.suspects for f in self.struck if f.syndrome is fault.syndrome))
        return fault.suspects <= named(said.verdict) <= to_blame

    @property
    def made_up(self) -> list[Said]:
        """Verdicts on the innocent."""
        return [said for said in self.said if not self._is_true(said.verdict)]

    def _is_true(self, verdict: Verdict) -> bool:
        if verdict.syndrome is Syndrome.NOBODY:
            return True
        liar = self.scenario.calm.liar
        if liar >= 0 and (verdict.nodes == (liar,) or (verdict.links and verdict.links[0][0] == liar)):
            return verdict.syndrome is Syndrome.COMMUNICATION_SLOW  # it blames what it receives by, so itself
        causes = [f for f in self.struck if f.syndrome is verdict.syndrome]
        if (
            verdict.syndrome is Syndrome.COMMUNICATION_SLOW
        ):  # of a cut link nothing arrives: it is said before the job stands
            causes += [f for f in self.struck if f.ill is Ill.CUT]
        to_blame = frozenset().union(*(f.suspects for f in causes))
        return bool(to_blame) and named(verdict) <= to_blame


class Run:
    """A scenario in time, one second after the other."""

    def __init__(self, scenario: Scenario, limits: Limits | None = None) -> None:
        self.scenario = scenario
        self.faults = [replace(fault) for fault in scenario.ills]
        rng = Random(scenario.seed)
        job, calm = scenario.job, scenario.calm
        noise = np.random.default_rng(rng.getrandbits(32))
        self._engine = Engine(job, self.faults, calm, noise, noise.uniform(1.0, START_S, job.ranks))
        self._timeline = Timeline(self._engine)
        self._reporter = Reporter(job, self._timeline, self.faults, calm, rng)
        self._network = Network(job, self.faults, calm, rng)
        self.judge = Judge(job.layout(), epoch=self._reporter.epoch, now=0.0, limits=limits)
        self._policy = Policy(Costs(restart_s=30.0))

    def second(self, now: float) -> list[Verdict]:
        """What the judge says at a moment, after the reports of the second before it."""
        self._timeline.advance(now)
        samples = self._network.samples(now, self.judge.probes)
        self.judge.hear(self._reporter.reports(now, samples), now)
        found = self.judge.judge(now)
        self._timeline.forget(now - 2.0)
        return found

    def acts(self, found: list[Verdict], now: float) -> list[Decision]:
        """What the policy would restart for these verdicts. It has a spare node, and nothing is done about it here."""
        nodes = tuple(range(self.scenario.job.nodes + 1))
        step = int(self.judge.fleet.rows["step"].max())
        facts = Facts(step, nodes, len(nodes) - 1)
        decisions = [self._policy.decide(verdict, facts, now) for verdict in found]
        return [decision for decision in decisions if decision.act in RESTARTS]


def attempt(scenario: Scenario) -> Outcome:
    """Judge a scenario to its end, or until all that struck is found and the job stands."""
    run = Run(scenario)
    outcome = Outcome(scenario, run.faults)
    known: set[tuple[Syndrome, frozenset[tuple[str, int]]]] = set()
    now = 0.0
    while not _is_over(outcome, now):
        now += 1.0
        outcome.seconds = now
        found = run.second(now)
        outcome.acts += run.acts(found, now)
        for verdict in found:
            key = (verdict.syndrome, named(verdict))
            if key not in known:
                known.add(key)
                outcome.said.append(Said(now, verdict))
    return outcome


def _is_over(outcome: Outcome, now: float) -> bool:
    scenario = outcome.scenario
    if now < scenario.begin_s + 3.0:
        return False
    if not outcome.faults:
        return now > scenario.begin_s + scenario.horizon_s
    struck = [fault.struck_s for fault in outcome.faults if fault.struck_s < INF]
    if not struck:
        return now > scenario.begin_s + WAIT_MAX_S
    waiting = [
        fault for fault in outcome.struck if not (said := outcome.found(fault)) or not outcome.names(said, fault)
    ]
    stands = any(said.verdict.syndrome in STANDS for said in outcome.said)
    if not waiting and (stands or now > max(struck) + 20.0):
        return True
    return now > max(struck) + scenario.horizon_s


@dataclass(slots=True)
class Score:
    """What came of one class of faults."""

    faults: int = 0
    found: int = 0
    right: int = 0
    seconds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """What came of many scenarios."""

    runs: int = 0
    healthy: int = 0
    restarts: int = 0
    """Of healthy jobs."""
    simulated_s: float = 0.0
    classes: dict[str, Score] = field(default_factory=lambda: defaultdict(Score))
    syndromes: dict[str, Score] = field(default_factory=lambda: defaultdict(Score))
    made_up: list[tuple[int, Said]] = field(default_factory=list)
    missed: list[tuple[int, Fault, Said | None]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.healthy += not outcome.faults
        self.restarts += len(outcome.acts) if not outcome.faults else 0
        self.simulated_s += outcome.seconds
        self.made_up += [(outcome.scenario.seed, said) for said in outcome.made_up]
        for fault in outcome.struck:
            said = outcome.found(fault)
            right = said is not None and outcome.names(said, fault)
            scores = [self.classes[fault.ill.value]]
            if fault.ill not in APART:
                scores.append(self.syndromes[fault.syndrome.value])
                if not right:
                    self.missed.append((outcome.scenario.seed, fault, said))
            for score in scores:
                score.faults += 1
                score.found += said is not None
                score.right += right
                if said is not None:
                    score.seconds.append(said.at_s - fault.struck_s)
                    score.steps.append((said.at_s - fault.struck_s) / outcome.scenario.job.step_s)

    def total(self) -> Score:
        """All classes that count for the bar."""
        total = Score()
        for score in self.syndromes.values():
            total.faults += score.faults
            total.found += score.found
            total.right += score.right
        return total

    @property
    def recall(self) -> float:
        total = self.total()
        return total.found / total.faults if total.faults else 1.0

    @property
    def accuracy(self) -> float:
        """Of the faults that were found: how many have exactly their culprits named."""
        total = self.total()
        return total.right / total.found if total.found else 1.0

    @property
    def precision(self) -> float:
        """Of all verdicts: how many were true."""
        found = sum(score.found for score in self.classes.values())
        return found / (found + len(self.made_up)) if found else 1.0


def judge_seed(seed: int, ranks: tuple[int, int]) -> Outcome:
    """Draw and judge; a whole of its own, for a pool of processes."""
    return attempt(draw(seed, ranks))


def table(scores: dict[str, Score]) -> list[str]:
    """Lines for people: class, faults, recall, culprits right, time to verdict (median and worst, in seconds and steps)."""
    lines = [f"{'':26s} {'faults':>6s} {'recall':>7s} {'culprit':>7s} {'median':>8s} {'worst':>8s} {'in steps':>9s}"]
    for name, score in sorted(scores.items()):
        share = score.found / score.faults
        right = score.right / score.found if score.found else 0.0
        times = (
            (
                f"{statistics.median(score.seconds):6.1f} s",
                f"{max(score.seconds):6.1f} s",
                f"{statistics.median(score.steps):9.1f}",
            )
            if score.seconds
            else ("-", "-", "-")
        )
        lines.append(
            f"{name:26s} {score.faults:6d} {share:7.3f} {right:7.3f} {times[0]:>8s} {times[1]:>8s} {times[2]:>9s}"
        )
    return lines
