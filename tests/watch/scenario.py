"""Draws a job, what is done to it, and what harmless things happen to it, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from tests.watch.engine import touches
from tests.watch.faults import LINKS, SLOWS, Calm, Fault, Ill, Pause
from tests.watch.job import Job, draw_job

from ckptd.daemon.watch.observations import NO_GROUP, Phase

ALONE = (
    Ill.KILL, Ill.NODE_LOST, Ill.STOP, Ill.HANG, Ill.HANG_LOADER, Ill.HANG_GIL, Ill.STUCK, Ill.CUT,
    Ill.DELAY, Ill.DELAY_LOADER, Ill.SLOW_CPU, Ill.SLOW_RX, Ill.SLOW_TX, Ill.SLOW_LINK, Ill.LOSSY,
    Ill.FAINT, Ill.HIDDEN,
)  # fmt: skip
SLOWNESS = (Ill.DELAY, Ill.SLOW_CPU, Ill.SLOW_RX, Ill.SLOW_TX, Ill.SLOW_LINK)
STANDING = (Ill.STOP, Ill.HANG, Ill.HANG_GIL)
SLOW = SLOWS | LINKS
WARM_STEPS = 24


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    job: Job
    ills: tuple[Fault, ...]
    calm: Calm
    begin_s: float
    """When the faults begin."""
    horizon_s: float
    """How long after that the judge may take."""

    @property
    def faults(self) -> list[Fault]:
        return list(self.ills)


def draw(seed: int, ranks: tuple[int, int] = (8, 2048)) -> Scenario:
    """Half of the scenarios are healthy; of the others every third has two faults at once."""
    rng = Random(f"watch {seed}")
    job = draw_job(rng, *ranks)
    begin = WARM_STEPS * job.step_s + 20.0 + rng.uniform(0.0, 2.0 * job.step_s)
    ills: tuple[Fault, ...] = ()
    if seed % 2:
        chosen = _pair(rng) if seed % 6 == 5 else (rng.choice(ALONE),)
        made: list[Fault] = []
        for ill in chosen:
            later = rng.uniform(0.0, 0.1 if ill is Ill.KILL else 2.0) if made else 0.0
            made.append(_make(ill, job, begin + later, rng, made))
        job = _fitting(job, chosen)
        ills = tuple(made)
    calm = _calm(rng, job, begin, healthy=not ills)
    slow = [
        30.0 * (job.step_s + fault.delay_s * job.micro) * max(1.0, fault.factor) for fault in ills if fault.ill in SLOWS
    ]
    horizon = max(60.0, 8.0 * job.step_s + 30.0, *slow)
    return Scenario(seed, job, ills, calm, begin, horizon)


def _pair(rng: Random) -> tuple[Ill, ...]:
    """Two of one sort: a death hides a hang, and what makes a job stand hides what makes it slow."""
    sort = rng.choice((SLOWNESS, STANDING, STANDING, (Ill.KILL,), (Ill.NODE_LOST,)))
    return rng.choice(sort), rng.choice(sort)


def _fitting(job: Job, ills: tuple[Ill, ...]) -> Job:
    """A hidden slow rank needs a network that everybody waits for longer than for it."""
    if Ill.HIDDEN not in ills:
        return job
    values = {name: getattr(job, name) for name in job.__slots__}
    return Job(**values | {"dp_s": 1.5 * job.bwd_s, "buckets": 4})


def _make(ill: Ill, job: Job, at: float, rng: Random, others: list[Fault]) -> Fault:
    taken = {rank for fault in others for rank in fault.ranks} | {
        rank for fault in others for node in fault.nodes for rank in _on(job, node)
    }
    if _needs(ill) > job.nodes or (ill in {Ill.HANG_LOADER, Ill.DELAY_LOADER} and not _loaders(job, taken)):
        ill = Ill.DELAY if ill in SLOW else Ill.HANG
    if ill is Ill.HIDDEN and (job.dp < 4 or job.pp > 1):
        ill = Ill.DELAY
    free = [rank for rank in range(job.ranks) if rank not in taken] or list(range(job.ranks))
    rank = rng.choice(free)
    node = rank // job.per_node
    delay = job.step_s * rng.uniform(0.2, 1.5)
    makers: dict[Ill, Callable[[], Fault]] = {
        Ill.KILL: lambda: Fault(ill, at, (rank,), deaths=_deaths(job, (rank,), rng)),
        Ill.NODE_LOST: lambda: Fault(ill, at, _on(job, node), (node,), deaths=_deaths(job, _on(job, node), rng)),
        Ill.STOP: lambda: Fault(ill, at, (rank,)),
        Ill.HANG: lambda: Fault(ill, at, (rank,)),
        Ill.HANG_GIL: lambda: Fault(ill, at, (rank,)),
        Ill.HANG_LOADER: lambda: Fault(ill, at, (rng.choice(_loaders(job, taken)),), segments=frozenset({"load"})),
        Ill.STUCK: lambda: _stuck(job, at, rng),
        Ill.CUT: lambda: _link(ill, job, at, rng),
        Ill.DELAY: lambda: Fault(
            ill, at, (rank,), segments=frozenset({rng.choice(("fwd", "bwd", "opt"))}), delay_s=delay
        ),
        Ill.DELAY_LOADER: lambda: Fault(
            ill, at, (rng.choice(_loaders(job, taken)),), segments=frozenset({"load"}), delay_s=delay
        ),
        Ill.SLOW_CPU: lambda: Fault(ill, at, _on(job, node), factor=rng.uniform(1.3, 3.0)),
        Ill.SLOW_RX: lambda: Fault(ill, at, nodes=(node,), factor=rng.uniform(2.0, 10.0)),
        Ill.SLOW_TX: lambda: Fault(ill, at, nodes=(node,), factor=rng.uniform(2.0, 10.0)),
        Ill.SLOW_LINK: lambda: _link(ill, job, at, rng),
        Ill.LOSSY: lambda: _link(ill, job, at, rng),
        Ill.FAINT: lambda: Fault(
            ill, at, (rank,), segments=frozenset({"fwd"}), delay_s=job.step_s * rng.uniform(0.05, 0.15) / job.micro
        ),
        Ill.HIDDEN: lambda: Fault(ill, at, (rank,), segments=frozenset({"tail"}), delay_s=job.bwd_s * 0.15),
    }
    return makers[ill]()


def _needs(ill: Ill) -> int:
    """How many nodes a job must have for a fault to be told from its neighbours: of two nodes a slow side is a slow link."""
    if ill in {Ill.SLOW_RX, Ill.SLOW_TX, Ill.SLOW_LINK, Ill.LOSSY}:
        return 4
    return {Ill.NODE_LOST: 3, Ill.CUT: 3}.get(ill, 1)


def _on(job: Job, node: int) -> tuple[int, ...]:
    return tuple(range(node * job.per_node, min(job.ranks, (node + 1) * job.per_node)))


def _loaders(job: Job, taken: set[int]) -> list[int]:
    first = range(job.dp * job.tp)
    return [rank for rank in first if rank not in taken] if job.dp * job.tp > 1 else []


def _deaths(job: Job, ranks: tuple[int, ...], rng: Random) -> tuple[tuple[int, float], ...]:
    """With gloo, peers that are connected to a dead process raise an error soon; with NCCL they hang."""
    if rng.random() < 0.4:
        return ()
    peers: set[int] = set()
    for ids in job.groups().values():
        touched = {int(ids[rank]) for rank in ranks} - {NO_GROUP}
        peers.update(map(int, np.flatnonzero(np.isin(ids, list(touched)))))
    return tuple((peer, rng.uniform(0.02, 2.0)) for peer in sorted(peers - set(ranks)))


def _stuck(job: Job, at: float, rng: Random) -> Fault:
    """The members of one group never come out of a collective, and no link is to blame."""
    groups = job.groups()
    slots = [slot for slot in ("world", "tp", "dp") if (groups[slot] != NO_GROUP).all()]
    if not slots:
        return Fault(Ill.HANG, at, (rng.randrange(job.ranks),))
    slot = rng.choice(slots)
    group = int(rng.choice(sorted(set(map(int, groups[slot])))))
    return Fault(Ill.STUCK, at, tuple(map(int, np.flatnonzero(groups[slot] == group))), slot=slot, group=group)


def _link(ill: Ill, job: Job, at: float, rng: Random) -> Fault:
    """A link that the job's own traffic uses, if there is one."""
    groups = job.groups()
    factor = rng.uniform(4.0, 12.0) if ill is Ill.LOSSY else rng.uniform(2.5, 10.0)
    lost = rng.uniform(0.05, 0.2) if ill is Ill.LOSSY else 0.0
    for _ in range(200):
        receiver, sender = rng.sample(range(job.nodes), 2)
        if rng.random() < 0.9:
            sender = (receiver + rng.choice((1, -1))) % job.nodes
        fault = Fault(ill, at, nodes=(receiver, sender), factor=factor, lost=lost)
        for slot in ("tp", "dp", "fw_out", "world"):
            for group in {int(groups[slot][rank]) for rank in _on(job, receiver)} - {NO_GROUP}:
                members = np.flatnonzero(groups[slot] == group)
                if slot == "fw_out":
                    members = np.flatnonzero((groups["fw_out"] == group) | (groups["fw_in"] == group))
                if touches(fault, job, slot, members):
                    return fault
    return Fault(Ill.HANG, at, (rng.randrange(job.ranks),))


def _calm(rng: Random, job: Job, begin: float, *, healthy: bool) -> Calm:
    """Harmless things; all of them may happen to healthy jobs, a few to the others."""
    words: list[str] = []

    def happens(word: str, likely: float) -> bool:
        drawn = rng.random() < (likely if healthy else likely / 4)
        if drawn:
            words.append(word)
        return drawn

    def step() -> int:
        return rng.randint(12, WARM_STEPS + 8)

    everyone = tuple(range(job.ranks))
    pauses: list[Pause] = []
    if happens("evaluation of all", 0.2):
        pauses.append(Pause(step(), rng.uniform(5.0, 120.0), everyone, Phase.EVALUATION))
    if happens("evaluation on rank 0", 0.2):
        pauses.append(Pause(step(), rng.uniform(5.0, 120.0), (0,), Phase.EVALUATION))
    if happens("checkpoint", 0.3):
        who = everyone if rng.random() < 0.5 else tuple(rng.sample(everyone, max(1, job.ranks // 8)))
        pauses.append(Pause(step(), rng.uniform(1.0, 40.0), who, Phase.CHECKPOINT))
    if happens("recompile", 0.2):
        who = everyone if rng.random() < 0.5 else (rng.choice(everyone),)
        pauses.append(Pause(step(), rng.uniform(5.0, 60.0), who, Phase.COMPILE))
    if happens("a slow step", 0.4):
        pauses.append(Pause(step(), job.step_s * rng.uniform(0.5, 3.0), (rng.choice(everyone),)))
    stalls = (
        ((step(), rng.randint(1, 20), job.step_s * rng.uniform(0.3, 1.5)),)
        if _can_stall(job) and happens("input", 0.3)
        else ()
    )
    bursts = tuple(
        (begin + rng.uniform(-10.0, 40.0), rng.uniform(1.0, 6.0), rng.randrange(job.nodes))
        for _ in range(rng.randint(1, 4) if happens("bursts", 0.3) else 0)
    )
    oddly = healthy and rng.random() < 0.25
    odd = rng.choice(("liar", "babbler", "flood")) if oddly else ""
    if odd:
        words.append(odd)
    babbler = rng.randrange(job.ranks) if odd == "babbler" else -1
    return Calm(
        tuple(
            pause for pause in pauses if pause.ranks != (babbler,)
        ),  # whose phase nobody knows can't be excused for it
        stalls,
        collections=rng.choice((0.0, 0.01, 0.05)),
        loss=rng.choice((0.0, 0.01, 0.03)),
        bursts=bursts,
        liar=rng.randrange(job.nodes) if odd == "liar" and job.nodes > 2 else -1,
        liar_from_s=begin,
        babbler=babbler,
        flood=rng.randrange(job.nodes) if odd == "flood" else -1,
        ghosts=rng.random() < 0.2,
        words=tuple(words),
    )


def _can_stall(job: Job) -> bool:
    """Where one node's ranks read the input of all, late input is that node's own."""
    return job.dp * job.tp > job.per_node
