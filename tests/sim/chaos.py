"""One random run: a cluster, a job and faults out of a seed, all within the fault model (docs/faults.md).

`Truth` checks the promises after every event and `Job` at every restore. Here are what a decision may choose, and that the
cluster makes progress, protects everything again and forgets nobody once the faults have stopped.
"""

from __future__ import annotations

from tests.sim.faults import Faults
from tests.sim.job import Job, Life
from tests.sim.network import Net
from tests.sim.poison import Poison
from tests.sim.scenario import Options, Scenario, draw
from tests.sim.world import TIMING, World

from ckptd.ckpt.model import Table, Version

PROGRESS_S = 25.0
"""Within this time after the last fault a newer version is sealed, and persisted if anything is."""
REST_S = 6.0
"""Within this time after the job has stopped everything is protected again, and nobody waits."""


class Chaos:
    """`Chaos(draw(seed)).run()` raises AssertionError where a promise is broken."""

    def __init__(self, scenario: Scenario | int) -> None:
        self.scenario = scenario if isinstance(scenario, Scenario) else draw(scenario)
        options = self.scenario.options
        self.world = _world(self.scenario)
        place = [rank % options.nodes for rank in range(options.ranks)]
        self.job = Job(self.world, place, list(options.sizes), step_s=options.step_s)
        self.job.moves, self.job.resizes = options.moves, options.resizes
        self.faults = Faults(self.world, self.job, beyond=self.scenario.beyond)
        self.poison = Poison(self.world, self.job, self.scenario.seed, options.bars)
        self._judged: set[int] = set()

    def run(self) -> None:
        world, job = self.world, self.job
        world.boot()
        job.launch()
        world.run(0.6)
        for fault in self.scenario.faults:
            world.run(fault.after_s)
            self.judge()
            self.poison.strike()
            self.faults.strike(fault)
        world.run(0.5)
        self.judge()
        world.note(-1, "HEALED")
        self.faults.heal()
        start, stored = self._sealed_somewhere(), max(world.manifests, default=None)
        persists = bool(self.scenario.options.persist_every)

        def progress() -> bool:
            newest = max(world.manifests, default=None)
            if self.scenario.beyond:  # everything may be lost, and the count begin anew
                return bool(self._sealed_somewhere()) and self._sealed_somewhere() != start
            return _newer(world.sealed, start) and (not persists or _newer(newest, stored))

        done = world.run(PROGRESS_S, progress)
        self.judge()
        newest = max(world.manifests, default=None)
        assert done, f"no progress: sealed {start} -> {world.sealed}, on storage {stored} -> {newest}"
        assert self.scenario.beyond or world.run(REST_S, lambda: not self.surplus()), f"surplus: {self.surplus()}"
        job.stop()
        world.note(-1, "JOB ENDS")
        assert self.scenario.beyond or world.run(REST_S, self.is_at_rest), f"not at rest: {self.unrest()}"

    def _sealed_somewhere(self) -> Version | None:
        views = (host.node.sealed for host in self.world.hosts if host.node)
        return max((version for version in views if version), default=None)

    def is_at_rest(self) -> bool:
        return not self.unrest()

    def _unprotected(self, table: Table) -> str:
        """What is missing for the newest sealed version to be protected by all nodes under this table alone, or ''."""
        hosts = self.world.hosts
        lacking = [host.index for host in hosts if not self.world.truth.whole(host.index, table)]
        older = [
            host.index
            for host in hosts
            if any(p.version == table.version and kept.table != table for p, kept in host.parities.items())
        ]
        if len(table.map.nodes) < len(hosts):
            return f"{table.version} is protected by nodes {sorted(table.map.nodes)} only"
        if lacking:
            return f"nodes {lacking} lack something of {table.version}"
        return f"nodes {older} keep parities of older maps" if older else ""

    def surplus(self) -> list[str]:
        """Old images of ranks that capture on another node now, or nowhere any more: they would stay there for ever."""
        attached = [(host.index, rank) for host in self.world.hosts if host.node for rank, _ in host.node.ranks]
        where = {rank: {index for index, other in attached if other == rank} for _, rank in attached}
        pinned = {host.node.ledger.persist for host in self.world.hosts if host.node and host.node.ledger}
        return [
            f"node {host.index} keeps {old.version} of rank {old.slot.rank}"
            for host in self.world.hosts
            for old in host.records.values()
            if host.node and host.node.sealed and old.version < host.node.sealed and old.version not in pinned
            and host.index not in where.get(old.slot.rank, {host.index} if old.slot.rank < len(self.job.place) else ())
        ]  # fmt: skip

    def unrest(self) -> list[str]:
        """What is not as it should be in a cluster that has been left alone."""
        world = self.world
        guards = world.truth.guards(world.sealed) if world.sealed else []
        found = [self._unprotected(table) for table in guards]
        found = [] if not guards or "" in found else found[:1]
        live = [host for host in world.hosts if host.node]
        found += [f"node {h.index} runs a job" for h in live if h.node and (h.node.duties.rebuilding)]
        keep = self.scenario.options.keep_last
        stored = sorted(version for version in world.manifests if not self.poison.bars(version))
        if keep and len(stored) > keep + 1:  # one may be in the making, or have failed to go
            found.append(f"storage keeps {len(stored)} versions, {keep} are wanted: {stored}")
        views = {host.node.sealed for host in live if host.node}
        if len(views) > 1:
            found.append(f"the nodes disagree about what is sealed: {views}")
        return found

    # ---- decisions ------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Decisions: never older than what was sealed and is not barred, where every node could be heard."""
        for number, life in enumerate(self.job.lives):
            if number in self._judged or life.decision is None:
                continue
            self._judged.add(number)
            self.poison.judge(life, self.faults.calm_since)
            calm = life.asked_at > self.faults.calm_since + 2 * TIMING.lost_after_s
            if self.world.truth.promises_p1 and calm and life.sealed_before:
                _judge(life, life.sealed_before, barred=self.poison.bars(life.sealed_before))


def _judge(life: Life, sealed: Version, *, barred: bool) -> None:
    decision = life.decision
    assert decision
    assert decision.version, f"P1: a fresh start although {sealed} was sealed: {decision.reason}"
    assert barred or decision.version >= sealed, (
        f"P1: {decision.version} was chosen although {sealed} was sealed: {decision.reason}"
    )


def _world(scenario: Scenario) -> World:
    options: Options = scenario.options
    world = World(
        options.nodes,
        seed=scenario.seed,
        work_s=(0.0005, options.work_s),
        parity=options.parity,
        group_size=options.group_size,
        slots=options.slots,
        persist_every=options.persist_every,
        keep_last=options.keep_last,
        domains=tuple(f"rack-{node % options.domains}" for node in range(options.nodes)) if options.domains else (),
    )
    world.net = Net((0.0005, options.delay_s), loss=options.loss, repeat=options.repeat, late=options.late)
    for host in world.hosts:
        drift = world.rng.uniform(-options.drift, options.drift)
        host.clock = (world.rng.uniform(0.0, 1e5), 1.0 + drift)
    world.truth.promises_p1 = not scenario.beyond
    return world


def _newer(version: Version | None, than: Version | None) -> bool:
    return version is not None and (than is None or version > than)
