"""One random run: a cluster, a job and faults out of a seed, all within the fault model (docs/faults.md).

`World` checks P1 after every event and `Job` checks P2 at every restore. Here are the faults, what a decision may choose,
and that the cluster makes progress once the faults have stopped.
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.sim.job import Job, Life
from tests.sim.world import TIMING, Net, World

from ckptd.ckpt.model import Version
from ckptd.daemon import events as ev

FAULTS_S = 6.0
PROGRESS_S = 20.0
FAULTS = ("trainer", "daemon", "fuse", "node", "cut", "cut_at_seal", "storage", "damage", "net", "capture")


class Chaos:
    """`Chaos(seed).run()` raises AssertionError where a promise is broken.

    `beyond` draws losses that are more than the code can bear: then P1 is off, all else must hold.
    """

    def __init__(self, seed: int, *, beyond: bool = False) -> None:
        self.rng, self.beyond = Random(seed), beyond
        nodes = self.rng.choice((2, 3, 3, 4, 4, 5))
        parity = self.rng.randint(1, 2) if nodes > 2 else 1
        self.world = World(
            nodes,
            seed=seed,
            work_s=(0.001, self.rng.choice((0.01, 0.1))),
            parity=parity,
            group_size=self.rng.choice((max(3, parity + 1), 8)),
            slots=self.rng.choice((2, 3, 3, 4)),
            persist_every=self.rng.choice((1, 3, 10)),
        )
        ranks = self.rng.choice((nodes, nodes, nodes - 1, 2 * nodes))
        sizes = [self.rng.choice((100, 700, 3000, 300_000)) for _ in range(ranks)]
        place = [rank % nodes for rank in range(ranks)]
        self.job = Job(self.world, place, sizes, step_s=self.rng.choice((0.05, 0.2, 0.4)))
        self.job.moves = self.rng.choice((0.0, 0.0, 0.5))
        self.world.net = self._net()
        self.world.promises_p1 = not beyond
        self.judged: set[int] = set()
        self.trace: list[str] = []
        self.calm_since = 0.0
        """Since when every node has had a daemon and every link has worked: before, silence may be taken for loss."""

    def run(self) -> None:
        world, job = self.world, self.job
        world.boot()
        job.launch()
        while world.now < FAULTS_S:
            world.run(self.rng.uniform(0.1, 1.2))
            self.judge()
            self.fault(self.rng.choice(FAULTS))
        self.heal()
        start, stored = world.sealed, max(world.manifests, default=None)
        done = world.run(
            PROGRESS_S, lambda: _newer(world.sealed, start) and _newer(max(world.manifests, default=None), stored)
        )
        self.judge()
        assert done, (
            f"no progress: sealed {start} -> {world.sealed}, on storage {stored} -> {max(world.manifests, default=None)}"
        )
        world.run(2.0)
        job.stop()
        assert world.run(5.0, self.everything_whole), "not everything is protected again"

    def everything_whole(self) -> bool:
        return all(self.world.whole(host.index) for host in self.world.hosts)

    # ---- faults -------------------------------------------------------------------------------------

    def fault(self, kind: str) -> None:
        self.trace.append(f"{self.world.now:.3f} {kind}")
        getattr(self, f"_{kind}")()

    def _net(self) -> Net:
        slow = self.rng.choice((0.005, 0.05, 0.2))
        loss, repeat, late = (self.rng.choice(rates) for rates in ((0.0, 0.05, 0.3), (0.0, 0.2), (0.0, 0.02)))
        return Net((0.0005, slow), loss=loss, repeat=repeat, late=late)

    def _some_host(self) -> int:
        return self.rng.randrange(len(self.world.hosts))

    def _trainer(self) -> None:
        if self.job.lives:
            self.job.kill(self.rng.randrange(len(self.job.place)))

    def _daemon(self) -> None:
        self._restart_later(self._some_host(), kill=True)

    def _fuse(self) -> None:
        """The daemon dies between two effects, some time soon."""
        host = self._some_host()
        self.world.fuse = (host, self.rng.randrange(40))
        self.world.at(1.0, lambda: self._restart_later(host, kill=False))

    def _restart_later(self, index: int, *, kill: bool) -> None:
        world, boots = self.world, self.world.hosts[index].boots
        if kill:
            world.crash(index)
        if world.hosts[index].node is None:
            self.calm_since = max(self.calm_since, world.now + 2.0)
            world.at(
                self.rng.uniform(0.05, 2.0), lambda: world.boot(index) if world.hosts[index].boots == boots else None
            )

    def _node(self) -> None:
        """A node is lost, if the code allows it, and an empty one takes its place."""
        index = self._some_host()
        if self._may_lose(index):
            self.job.lose(index)
            self._restart_later(index, kill=False)

    def _may_lose(self, index: int) -> bool:
        if self.beyond:
            return True
        group = next(group for group in self.world.groups if index in group.nodes)
        broken = [node for node in group.nodes if node != index and not self.world.whole(node)]
        return len(broken) < group.layout.m

    def _cut(self) -> None:
        """A node is cut off in one direction or both, or the cluster falls in two."""
        nodes = range(len(self.world.hosts))
        side = {node for node in nodes if self.rng.random() < 0.5}
        cuts = {(a, b) for a in nodes for b in nodes if (a in side) != (b in side)}
        if self.rng.random() < 0.5:
            cuts = {(a, b) for a, b in cuts if a in side}
        self.world.cuts = cuts
        lasts = self.rng.uniform(0.3, 2.5)
        self.calm_since = max(self.calm_since, self.world.now + lasts)
        self.world.at(lasts, self.world.cuts.clear)

    def _cut_at_seal(self) -> None:
        """The cluster falls in two just when somebody has learned of a seal and the others have not."""
        before = self.world.sealed
        self.world.run(1.0, lambda: self.world.sealed != before)
        self._cut()

    def _storage(self) -> None:
        self.world.storage_works = not self.world.storage_works

    def _damage(self) -> None:
        """A bit of a slot or a parity flips, and a reader finds it. It counts as the loss of the node."""
        host = self.world.hosts[self._some_host()]
        if host.node is None or not host.node.scanned or not self._may_lose(host.index):
            return
        if host.records and self.rng.random() < 0.5:
            found = self.rng.choice(list(host.records.values()))
            host.files[found.slot][0] ^= 1
            host.damaged.append(found)
        elif host.parities:
            parity = self.rng.choice(list(host.parities))
            host.parities.pop(parity)
            self.world.tell(host, ev.ParityDamaged(parity))

    def _capture(self) -> None:
        """The trip wires of one rank throw its snapshots away for a while."""
        if self.job.lives:
            proc = self.rng.choice(self.job.life.procs)
            proc.captures = not proc.captures

    # ---- what must hold -----------------------------------------------------------------------------

    def judge(self) -> None:
        """Decisions: never older than what was sealed, where every node could be heard; storage only if it is newer."""
        for number, life in enumerate(self.job.lives):
            if number in self.judged or life.decision is None:
                continue
            self.judged.add(number)
            if (
                self.world.promises_p1
                and life.decided_at > self.calm_since + 2 * TIMING.lost_after_s
                and life.sealed_before
            ):
                self._judge(life, life.sealed_before)

    def _judge(self, life: Life, sealed: Version) -> None:
        decision = life.decision
        assert decision
        assert decision.version, f"a fresh start although {sealed} was sealed: {decision.reason}"
        assert decision.version >= sealed, (
            f"{decision.version} was chosen although {sealed} was sealed: {decision.reason}"
        )

    def heal(self) -> None:
        """No faults from here on; what is down comes up."""
        world = self.world
        world.fuse, world.storage_works, world.net = None, True, Net()
        world.cuts.clear()
        for host in world.hosts:
            if host.node is None:
                world.boot(host.index)
        for proc in self.job.life.procs:
            proc.captures = True


def _newer(version: Version | None, than: Version | None) -> bool:
    return version is not None and (than is None or version > than)


def run(seed: int) -> Any:
    chaos = Chaos(seed)
    chaos.run()
    return chaos
