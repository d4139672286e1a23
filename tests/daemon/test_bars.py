"""Bars among the nodes: every node passes them on, so they outlive whoever made them; and nothing else changes."""

from __future__ import annotations

from typing import Any

from tests.agents import LOST_AFTER_S, running
from tests.sim.job import Job
from tests.sim.world import TIMING, World

from ckptd.ckpt.model import Version
from ckptd.daemon.launch import Launch
from ckptd.daemon.launch_events import BarAsked
from ckptd.daemon.rounds import Rounds

V = Version(1, 20)


def test_a_bar_outlives_the_collector_and_every_single_daemon() -> None:
    """A collector without memory hears it from the nodes, a daemon without memory from the collector."""
    job = running(3)
    job.ask(1, BarAsked(0, "poison", V))
    job.tell()
    job.rounds = Rounds("other", LOST_AFTER_S)
    job.launches[1] = Launch(1, 3)
    job.tell()
    assert job.ledger
    assert job.ledger.barred.why(V) == "poison"
    assert [half.barred for half in job.launches] == [job.ledger.barred] * 3


def test_a_collector_that_takes_over_knows_what_was_barred_before() -> None:
    """Also where no other node is heard yet."""
    job = running(3)
    job.ask(0, BarAsked(0, "poison", V))
    job.tell()
    assert job.ledger
    successor = Rounds("boot-1", LOST_AFTER_S)
    successor.follow(job.ledger)
    job.rounds, job.silent = successor, {1, 2}
    job.launches[0] = Launch(0, 3)
    job.tell()
    assert job.ledger.barred.why(V) == "poison"


def test_what_is_lifted_at_one_node_is_lifted_at_all_and_a_bar_ends_no_round() -> None:
    job = running(2)
    job.ask(0, BarAsked(0, "poison", V))
    job.tell()
    assert job.round.runs
    job.ask(1, BarAsked(0, "it was the data", None, lift=True))
    job.tell()
    assert job.ledger
    assert job.ledger.barred.bars == ()
    assert [half.barred.bars for half in job.launches] == [()] * 2


def training(**settings: Any) -> tuple[World, Job]:
    """Three nodes whose job has persisted a step and sealed newer ones."""
    world = World(3, seed=11, persist_every=1, **settings)
    world.boot()
    job = Job(world, [0, 1, 2], [300] * 3)
    job.launch()
    assert world.run(20.0, lambda: len(world.manifests) > 1 and world.sealed is not None and world.sealed.step > 4)
    return world, job


def bar(world: World, node: int, version: Version | None, *, lift: bool = False) -> None:
    world.ask(world.hosts[node], lambda ticket: BarAsked(ticket, "poison", version, lift), lambda _: None)
    world.run(2 * TIMING.report_every_s)


def next_life(world: World, job: Job) -> tuple[Version | None, str]:
    """Kill a trainer; what the next life is restored from, and why."""
    lives = len(job.lives)
    job.kill(1)
    assert world.run(20.0, lambda: len(job.lives) > lives and job.life.decision is not None)
    assert job.life.decision
    return job.life.decision.version, job.life.decision.reason


def test_the_next_life_begins_before_what_is_barred_though_the_collector_is_lost() -> None:
    """Real nodes: barred at one, decided at another. The barred version stays sealed, and the job seals on from there."""
    world, job = training()
    sealed = world.sealed
    assert sealed is not None
    bar(world, 2, Version(sealed.epoch, sealed.step - 1))
    job.evacuate(0)
    job.lose(0)
    assert world.run(20.0, lambda: len(job.lives) > 1 and job.life.decision is not None)
    assert job.life.decision
    version = job.life.decision.version
    assert version is not None
    assert version.step < sealed.step - 1
    assert "poison" in job.life.decision.reason
    assert world.sealed is not None
    assert world.sealed >= sealed  # the world checks after every event that it can be had
    before = world.sealed
    assert world.run(20.0, lambda: world.sealed != before), "nothing is sealed any more"


def test_the_newest_step_is_restored_again_once_the_bar_is_lifted() -> None:
    world, job = training()
    assert world.sealed is not None
    bar(world, 0, Version(world.sealed.epoch, 1))
    bar(world, 1, None, lift=True)
    sealed = world.sealed
    version, reason = next_life(world, job)
    assert version is not None
    assert version >= sealed
    assert "poison" not in reason


def test_where_everything_is_barred_the_job_goes_on_all_the_same() -> None:
    world, job = training()
    assert world.sealed is not None
    bar(world, 0, Version(world.sealed.epoch, 0))
    version, reason = next_life(world, job)
    assert version is not None
    assert "all are barred" in reason
