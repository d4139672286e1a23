"""What one simulated run is: its options and its faults, all drawn from one seed before anything starts.

Each fault carries a seed of its own, so that leaving one out (`tests.sim.shrink`) does not change what the others do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from random import Random

FAULTS: dict[str, int] = {
    "trainer": 4,
    "hang": 3,
    "daemon": 4,
    "fuse": 5,
    "node": 5,
    "leave": 2,
    "cut": 3,
    "cut_at_seal": 3,
    "slow_link": 1,
    "pause": 3,
    "storage_down": 2,
    "tmpfs_full": 2,
    "damage": 3,
    "rot": 1,
    "net": 2,
    "trip_wire": 2,
}
"""The kinds of faults (the methods of `tests.sim.faults.Faults`) and how often they are drawn."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong `after_s` seconds after the fault before it. Which node, and for how long, follow from `seed`."""

    number: int
    after_s: float
    kind: str
    seed: int


@dataclass(frozen=True, slots=True)
class Options:
    """The shape of a cluster and its job."""

    nodes: int
    parity: int
    group_size: int
    slots: int
    persist_every: int | str
    keep_last: int
    ranks: int
    sizes: tuple[int, ...]
    step_s: float
    work_s: float
    """The longest time that a job of a daemon takes before it reads, and again before its event comes."""
    moves: float
    resizes: float
    """How often a life has another number of ranks than the one before it, and where each stands is drawn anew."""
    bars: float
    """How often the newest steps are barred before a fault (`tests.sim.poison`)."""
    delay_s: float
    loss: float
    repeat: float
    late: float
    domains: int
    """How many failure domains the nodes stand in; 0: none is known."""
    drift: float
    """How much faster or slower a node's clock may go than another's."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. `beyond` allows losses that are more than the code can bear: then P1 is off, all else must hold."""

    seed: int
    options: Options
    faults: tuple[Fault, ...]
    beyond: bool = False

    def keeping(self, numbers: set[int]) -> Scenario:
        """The same run with some of its faults only. The times between the others stay as they were."""
        kept, waited = [], 0.0
        for fault in self.faults:
            waited += fault.after_s
            if fault.number in numbers:
                kept.append(replace(fault, after_s=waited))
                waited = 0.0
        return replace(self, faults=tuple(kept))

    def __str__(self) -> str:
        shape = " ".join(f"{name}={value}" for name, value in asdict(self.options).items() if name != "sizes")
        return f"seed {self.seed}{' beyond the model' if self.beyond else ''}: {shape}"


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = Random(seed)
    kinds = list(FAULTS)
    resizes = Random(f"{seed}/resizes").choice(
        (0.0, 0.0, 0.0, 0.4)
    )  # by itself: all else of a seed is as it was before
    options = _options(rng, resizes, bars=Random(f"{seed}/bars").choice((0.0, 0.0, 0.0, 0.4)))
    count = rng.choice((0, 3, 6, 6, 10, 15))
    gap_s = rng.choice((0.3, 0.7, 1.2))
    faults = tuple(
        Fault(number, rng.uniform(0.02, gap_s), rng.choices(kinds, list(FAULTS.values()))[0], rng.getrandbits(32))
        for number in range(count)
    )
    return Scenario(seed, options, faults, beyond=rng.random() < 0.08)


def _options(rng: Random, resizes: float, bars: float) -> Options:
    # Most faults need three or four nodes, which are simulated ten times as fast as sixteen.
    nodes = rng.choice((3, 3, 4)) if rng.random() < 0.75 else rng.choice((2, 4, 5, 5, 6, 6, 7, 8, rng.randint(9, 16)))
    parity = rng.choice((1, 1, 2, 2, 3)) if nodes > 3 else rng.randint(1, max(1, nodes - 1))
    ranks = rng.choice((nodes, nodes, nodes, max(1, nodes - 1), 2 * nodes if nodes < 6 else nodes))
    lossy = rng.random() < 0.5
    return Options(
        nodes=nodes,
        parity=parity,
        group_size=rng.choice((max(3, parity + 1), max(4, parity + 2), 8)),
        slots=rng.choice((2, 3, 3, 4)),
        persist_every=rng.choice((0, 1, "1s", 10)),
        keep_last=rng.choice((0, 0, 2, 3)),
        ranks=ranks,
        sizes=tuple(rng.choice((3, 40, 64, 100, 200)) for _ in range(ranks)),
        step_s=rng.choice((0.05, 0.2, 0.4)),
        work_s=rng.choice((0.01, 0.1, 0.3)),
        moves=rng.choice((0.0, 0.0, 0.5)),
        resizes=resizes,
        bars=bars,
        delay_s=rng.choice((0.005, 0.05, 0.2)),
        loss=rng.choice((0.05, 0.3)) if lossy else 0.0,
        repeat=rng.choice((0.0, 0.2)),
        late=rng.choice((0.0, 0.02)) if lossy else 0.0,
        domains=rng.choice((0, 0, 2, 3)),
        drift=rng.choice((0.0, 0.0, 0.02, 0.1)),
    )
