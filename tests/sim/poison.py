"""Steps that are barred while a run goes on, as after crashes at one place, and what must hold of the decisions then."""

from __future__ import annotations

from random import Random

from tests.sim.job import Job, Life
from tests.sim.world import TIMING, World

from ckptd.ckpt.barred import Bar, Barred
from ckptd.ckpt.model import Version
from ckptd.daemon.launch_events import BarAsked

HEARD_S = TIMING.lost_after_s
"""After so long in calm every node knows of a bar."""


class Poison:
    """Bars the newest steps now and then and has the job restart; `often` says how often it is asked to."""

    def __init__(self, world: World, job: Job, seed: int, often: float) -> None:
        self._world, self._job, self._often = world, job, often
        self._rng = Random(f"{seed}/poison")
        self._bars: list[tuple[float, Bar]] = []
        self._lifted_at = float("-inf")

    def strike(self) -> None:
        """Perhaps: somewhere a word comes that bars the newest sealed steps, or lifts all bars; then a trainer dies."""
        world, rng, sealed = self._world, self._rng, self._world.sealed
        if rng.random() >= self._often or sealed is None or not self._job.lives:
            return
        host = rng.choice([host for host in world.hosts if host.node] or world.hosts)
        if host.node is None:
            return
        bar = None
        if rng.random() < 0.2:
            self._lifted_at = world.now
        else:
            bar = Version(max(host.node.epoch, sealed.epoch), max(0, sealed.step - rng.randrange(3)))
            self._bars.append((world.now, Bar(len(self._bars), bar, "poison")))
        world.note(host.index, "BARS", version=str(bar))
        world.ask(host, lambda ticket: BarAsked(ticket, "poison", bar, lift=bar is None), lambda _: None)
        if rng.random() < 0.5:
            world.run(1.5 * HEARD_S)
        self._job.kill(rng.randrange(len(self._job.place)))

    def bars(self, version: Version) -> bool:
        """Whether somebody may have heard that a version is barred, and may know it still."""
        return bool(Barred(0, tuple(bar for _, bar in self._bars)).why(version))

    def judge(self, life: Life, calm_since: float) -> None:
        """A life that began when all knew of a bar has passed over what it bars, unless nothing else was left."""
        assert life.decision
        version = life.decision.version
        if version is None or "all are barred" in life.decision.reason:
            return
        known = [bar for at, bar in self._bars if max(calm_since, self._lifted_at) < at < life.asked_at - HEARD_S]
        broken = [bar for bar in known if bar.covers(version)]
        assert not broken, f"{version} was chosen although {broken[-1]} was known: {life.decision.reason}"
