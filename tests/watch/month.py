"""A healthy day of 1,024 ranks, with everything harmless that a day brings; thirty of them are a month."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.watch.campaign import Outcome, Run, Said
from tests.watch.faults import Calm, Pause, named
from tests.watch.job import Job
from tests.watch.scenario import Scenario

from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import Phase
from ckptd.daemon.watch.verdicts import Syndrome

DAY_S = 86400.0
SHAPES = ((1, 128, 8), (2, 64, 8), (4, 32, 8), (8, 16, 8), (4, 64, 4), (1, 1024, 1))


def draw_day(seed: int, seconds: float = DAY_S) -> Scenario:
    """A job of 1,024 ranks on 128 nodes with steps of 4 to 25 s, and a day of it."""
    rng = Random(f"day {seed}")
    pp, dp, tp = rng.choice(SHAPES)
    micro = 2 if pp > 1 else 1
    step = rng.uniform(4.0, 25.0)
    work = step / (micro + pp - 1)
    job = Job(
        pp, dp, tp, 8, micro, rng.randint(1, 4), work * 0.33, work * 0.6, step * 0.02, step * 0.03,
        work * 0.02, step * 0.08, work * 0.01, rng.uniform(0.005, 0.04), rng.uniform(0.002, 0.015),
        waits_known=rng.random() < 0.5,
    )  # fmt: skip
    return Scenario(seed, job, (), _calm(rng, job, seconds), seconds, 0.0)


def _calm(rng: Random, job: Job, seconds: float) -> Calm:
    steps, everyone = int(seconds / job.step_s), tuple(range(job.ranks))
    pauses: list[Pause] = []
    for number in range(20, steps, max(20, int(1800.0 / job.step_s))):
        pauses.append(Pause(number, rng.uniform(1.0, 60.0), everyone, Phase.CHECKPOINT))
        if rng.random() < 0.3:
            who = everyone if rng.random() < 0.5 else (0,)
            pauses.append(Pause(number + 5, rng.uniform(10.0, 900.0), who, Phase.EVALUATION))
        if rng.random() < 0.1:
            pauses.append(Pause(number + 7, rng.uniform(5.0, 120.0), (rng.choice(everyone),), Phase.COMPILE))
        for _ in range(rng.randint(0, 3)):
            who = (rng.choice(everyone),)
            pauses.append(Pause(number + rng.randint(8, 40), job.step_s * rng.uniform(0.3, 3.0), who))
    stalls = tuple(
        (rng.randrange(20, max(21, steps)), rng.randint(1, 30), job.step_s * rng.uniform(0.2, 1.5)) for _ in range(6)
    )
    bursts = tuple((rng.uniform(0.0, seconds), rng.uniform(1.0, 60.0), rng.randrange(job.nodes)) for _ in range(200))
    babbler = rng.randrange(job.ranks) if rng.random() < 0.1 else -1
    return Calm(
        tuple(pause for pause in pauses if pause.ranks != (babbler,)),
        stalls,
        collections=rng.choice((0.0, 0.005, 0.02)),
        loss=rng.choice((0.001, 0.01, 0.03)),
        bursts=bursts,
        liar=rng.randrange(job.nodes) if rng.random() < 0.1 else -1,
        liar_from_s=seconds / 2,
        babbler=babbler,
        flood=rng.randrange(job.nodes) if rng.random() < 0.1 else -1,
        ghosts=rng.random() < 0.2,
    )


def watch_day(seed: int, period_s: float = 1.0, seconds: float = DAY_S) -> Outcome:
    """Judge a whole day, each period, and remember what was said and what the policy would have restarted.

    With a longer period than the daemons' second a day is cheaper, and not easier for the judge: a standstill lasts
    until it is looked at, every step's times are in the digests, and a report that is lost is missed for longer. Links
    have their samples more seldom, so their window is as much longer.
    """
    scenario = draw_day(seed, seconds)
    limits = Limits()
    run = Run(scenario, replace(limits, frame_s=limits.frame_s * period_s, fresh_s=max(limits.fresh_s, 1.5 * period_s)))
    outcome = Outcome(scenario, [])
    known: set[tuple[Syndrome, frozenset[tuple[str, int]]]] = set()
    while outcome.seconds < seconds:
        outcome.seconds += period_s
        found = run.second(outcome.seconds)
        outcome.acts += run.acts(found, outcome.seconds) if found else []
        for verdict in found:
            key = (verdict.syndrome, named(verdict))
            if key not in known:
                known.add(key)
                outcome.said.append(Said(outcome.seconds, verdict))
    return outcome
