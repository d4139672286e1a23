"""The faults of the simulated world, each a method, each within the fault model (docs/faults.md) unless `beyond`."""

from __future__ import annotations

from random import Random

from tests.sim.job import Job
from tests.sim.memory import Host
from tests.sim.network import Net
from tests.sim.scenario import Fault
from tests.sim.truth import UNNOTICED_S
from tests.sim.world import World

from ckptd.ckpt.groups import groups_in
from ckptd.ckpt.model import Table
from ckptd.daemon import events as ev


class Faults:
    """Strikes a world and its job. `rng` is set anew for each fault, from the fault's own seed."""

    def __init__(self, world: World, job: Job, *, beyond: bool = False) -> None:
        self.world, self.job, self.beyond = world, job, beyond
        self.rng = Random(0)
        self.calm_since = 0.0
        """Since when every node has had a daemon and every link has worked: before, silence may be taken for loss."""

    def strike(self, fault: Fault) -> None:
        self.rng = Random(fault.seed)
        self.world.note(-1, f"FAULT {fault.number}: {fault.kind}")
        getattr(self, f"_{fault.kind}")()

    def heal(self) -> None:
        """No faults from here on; what is down comes up."""
        world = self.world
        world.fuse, world.storage.works, world.net = None, True, Net()
        world.exorcise()
        world.cuts.clear()
        for host in world.hosts:
            host.full = False
            if host.node is None:
                world.boot(host.index)
        for life in self.job.lives:
            for proc in life.procs:
                proc.captures = True

    def _unrest(self, seconds: float) -> None:
        self.calm_since = max(self.calm_since, self.world.now + seconds)

    def _some_host(self) -> int:
        return self.rng.randrange(len(self.world.hosts))

    # ---- processes ------------------------------------------------------------------------------------

    def _trainer(self) -> None:
        if self.job.lives:
            self.job.kill(self.rng.randrange(len(self.job.place)))

    def _hang(self) -> None:
        if self.job.lives:
            self.world.run(1.0, lambda: any(proc.filling for proc in self.job.life.procs))
            self.job.hang(self.rng.uniform(0.5, 4.0))

    def _trip_wire(self) -> None:
        """The trip wires of one rank throw its snapshots away for a while."""
        if self.job.lives:
            proc = self.rng.choice(self.job.life.procs)
            proc.captures = not proc.captures

    def _daemon(self) -> None:
        self._restart_later(self._some_host(), kill=True)

    def _fuse(self) -> None:
        """The daemon dies between two effects, some time soon."""
        host = self._some_host()
        lasts = self.rng.uniform(0.05, 2.0)
        self.world.fuse = (host, self.rng.randrange(40))
        self.world.burnt = lambda: self._boot_later(host, lasts)

    def _pause(self) -> None:
        """The daemon is stopped for a while, or its clock jumps ahead."""
        host, lasts = self.world.hosts[self._some_host()], self.rng.uniform(0.1, 3.0)
        if self.rng.random() < 0.7:
            self.world.freeze(host.index, lasts)
            self._unrest(lasts)
        else:
            host.clock = (host.clock[0] + lasts, host.clock[1])
            self._unrest(0.5)

    def _restart_later(self, index: int, *, kill: bool) -> None:
        if kill:
            self.world.crash(index)
        self._boot_later(index, self.rng.uniform(0.05, 2.0))

    def _boot_later(self, index: int, after_s: float) -> None:
        world = self.world
        if world.hosts[index].node is not None:
            return
        boots = world.hosts[index].boots
        self._unrest(after_s)

        def boot() -> None:
            if world.hosts[index].boots == boots and world.hosts[index].node is None:
                world.boot(index)

        world.at(after_s, boot)

    # ---- nodes ----------------------------------------------------------------------------------------

    def _node(self) -> None:
        """Nodes are lost, as many as the code allows, and empty ones take their place."""
        wanted = self.rng.choice((1, 1, 2, 3))
        for _ in range(wanted):
            index = self._some_host()
            if self._may_lose(index):
                lingers = self.rng.uniform(0.5, 6.0) if self.rng.random() < 0.3 else 0.0
                self.job.lose(index, lingers)
                self._restart_later(index, kill=False)

    def _leave(self) -> None:
        """A node is lost, and nothing takes its place for long: its ranks go elsewhere, the others go on."""
        index = self._some_host()
        if len(self.world.hosts) > 1 and self._may_lose(index):
            self.job.evacuate(index)
            self.job.lose(index)
            self._boot_later(index, self.rng.uniform(4.0, 9.0))
            if self.rng.random() < 0.7:  # what comes next meets a cluster that goes on without it
                self._let_leave()
                self.world.run(self.rng.uniform(0.0, 1.5))

    def _let_leave(self) -> None:
        """Wait until somebody counts a node as gone for good."""
        nodes = [host for host in self.world.hosts if host.node]
        self.world.run(6.0, lambda: any(host.node and host.node.ledger and host.node.ledger.left for host in nodes))

    def _may_lose(self, index: int) -> bool:
        """Whether the newest sealed version bears the loss, under the newest map that it is protected under.

        Under older ones it may bear more for a moment; but their parities are on their way out.
        """
        truth = self.world.truth
        if self.beyond:
            return True
        if truth.sealed is None:  # a seal may come that counts on who is lost now
            lately = {index} | {node for node in range(len(self.world.hosts)) if self._is_late(node)}
            groups = groups_in(self.world.config(0).whole_map)
            return all(len(lately & set(group.nodes)) <= group.layout.m for group in groups)
        guards = truth.guards(truth.sealed)
        return bool(guards) and self._bears(guards[0], index)

    def _bears(self, table: Table, index: int) -> bool:
        for group in groups_in(table.map):
            broken = [node for node in group.nodes if node == index or self._is_broken(node, table)]
            if len(broken) > group.layout.m:
                return False
        return True

    def _is_broken(self, index: int, table: Table) -> bool:
        """Whether a node lacks something that is sealed, or was struck so lately that a seal may yet count on it."""
        host = self.world.hosts[index]
        flipped = any(segment.flipped for segment in host.parities.values())
        return self._is_late(index) or bool(host.damaged) or flipped or not self.world.truth.whole(index, table)

    def _is_late(self, index: int) -> bool:
        return self.world.now - self.world.lost_at.get(index, -9.0) < UNNOTICED_S

    # ---- the network ----------------------------------------------------------------------------------

    def _net(self) -> None:
        """The network becomes another one."""
        loss, repeat, late = (self.rng.choice(rates) for rates in ((0.0, 0.05, 0.3), (0.0, 0.2), (0.0, 0.02)))
        self.world.net = Net((0.0005, self.rng.choice((0.005, 0.05, 0.2))), loss=loss, repeat=repeat, late=late)

    def _slow_link(self) -> None:
        """One direction of a link takes seconds."""
        link, net = (self._some_host(), self._some_host()), self.world.net
        net.slow[link] = self.rng.uniform(0.2, 2.0)
        lasts = self.rng.uniform(0.5, 3.0)
        self._unrest(lasts + net.slow[link])
        self.world.at(lasts, net.slow.clear)

    def _cut(self) -> None:
        """A node is cut off in one direction or both, or the cluster falls in two."""
        nodes = range(len(self.world.hosts))
        side = {node for node in nodes if self.rng.random() < 0.5} or {0}
        cuts = {(a, b) for a in nodes for b in nodes if (a in side) != (b in side)}
        if self.rng.random() < 0.5:
            cuts = {(a, b) for a, b in cuts if a in side}
        self.world.cuts = cuts
        outlasts = self.rng.random() < 0.15  # the patience: each side goes on without the other
        lasts = self.rng.uniform(4.0, 8.0) if outlasts else self.rng.uniform(0.3, 2.5)
        self._unrest(lasts)
        self.world.at(lasts, cuts.clear)
        if outlasts:
            self._let_leave()

    def _cut_at_seal(self) -> None:
        """The cluster falls in two just when somebody has learned of a seal and the others have not."""
        before = self.world.sealed
        self.world.run(1.0, lambda: self.world.sealed != before)
        self._cut()

    # ---- storage and memory -----------------------------------------------------------------------------

    def _storage_down(self) -> None:
        """Storage fails (full, or gone) in whatever it is asked for, for a while."""
        self.world.storage.works = False
        self.world.at(self.rng.uniform(0.2, 4.0), lambda: setattr(self.world.storage, "works", True))

    def _rot(self) -> None:
        """A byte of a persisted file reads wrong for a while: never given to a trainer, and memory still has the step."""
        storage, rng = self.world.storage, self.rng
        if not self.world.manifests:
            return
        version = rng.choice(sorted(self.world.manifests))
        rank = rng.randrange(self.world.manifests[version].world)
        good = storage.files[version, rank]
        good.rotten = True
        self.world.at(1.0, lambda: setattr(good, "rotten", False))

    def _tmpfs_full(self) -> None:
        """Nothing new fits into a node's memory for a while; what has its place stays."""
        host = self.world.hosts[self._some_host()]
        host.full = True
        self.world.at(self.rng.uniform(0.2, 3.0), lambda: setattr(host, "full", False))

    def _damage(self) -> None:
        """A bit of a slot or a parity flips, and a reader finds it. It counts as the loss of the node."""
        host = self.world.hosts[self._some_host()]
        if host.node is None or not host.node.scanned or not self._may_lose(host.index):
            return
        if host.records and self.rng.random() < 0.5:
            found = host.records[self.rng.choice(sorted(host.records, key=lambda slot: (slot.rank, slot.index)))]
            host.files[found.slot][0] ^= 1
            host.damaged.append(found)
        elif host.parities:
            self._damage_parity(host)

    def _damage_parity(self, host: Host) -> None:
        parity = self.rng.choice(sorted(host.parities, key=lambda p: (p.version, p.stripe, p.row)))
        segment = host.parities[parity]
        segment.data[self.rng.randrange(len(segment.data))] ^= 1
        segment.flipped = True
        self.world.at(self.rng.uniform(0.0, 0.5), lambda: self.world.tell(host, ev.ParityDamaged(parity)))
