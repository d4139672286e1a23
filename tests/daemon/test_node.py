"""The node as a cluster lives it: named scenes, each with real bytes, in one thread under a virtual clock."""

from __future__ import annotations

from typing import Any

from tests.sim.job import Job
from tests.sim.world import TIMING, World

from ckptd.ckpt.model import Version
from ckptd.daemon import events as ev


def training(nodes: int = 4, **settings: Any) -> tuple[World, Job]:
    """A cluster whose job has sealed a few steps."""
    world = World(nodes, seed=7, **settings)
    world.boot()
    job = Job(world, list(range(nodes)), [700] * nodes)
    job.launch()
    assert world.run(20.0, lambda: step_of(world.sealed) >= 3), "nothing was sealed"
    return world, job


def step_of(version: Version | None) -> int:
    return version.step if version else 0


def goes_on(world: World, seconds: float = 20.0) -> bool:
    """Whether a newer step is sealed within some virtual seconds."""
    before = world.sealed
    return world.run(seconds, lambda: world.sealed != before)


def test_every_node_learns_what_is_sealed() -> None:
    """Once all ranks captured a step and its parity is placed, all nodes say so."""
    world, job = training()
    job.stop()
    world.run(3.0)
    assert {host.node.sealed for host in world.hosts if host.node} == {world.sealed}


def test_a_lost_node_is_noticed_in_time() -> None:
    """A node that falls silent counts as lost after `lost_after_s` and a heartbeat or two."""
    world, _ = training()
    world.crash(2)
    fell = world.now
    assert world.run(10.0, lambda: any(fields["lost"] == 2 for _, fields in world.noted("node_lost")))
    assert world.now - fell < TIMING.lost_after_s + 4 * TIMING.report_every_s


def test_a_replacement_is_whole_again_without_a_new_snapshot() -> None:
    """An empty daemon in a lost node's place rebuilds its images from parity and makes its parities anew."""
    world, job = training()
    job.stop()
    world.run(3.0)
    sealed = world.sealed
    world.crash(1)
    world.lose(1)
    world.run(3.0)
    world.boot(1)
    assert world.run(10.0, lambda: world.whole(1)), "not rebuilt"
    assert world.sealed == sealed


def test_two_lost_nodes_need_two_parities() -> None:
    """With m = 2 both are rebuilt, bit for bit."""
    world, job = training(parity=2)
    job.stop()
    world.run(3.0)
    for node in (0, 3):
        world.crash(node)
        world.lose(node)
    world.run(3.0)
    world.boot(0, 3)
    assert world.run(10.0, lambda: world.whole(0) and world.whole(3)), "not rebuilt"


def test_a_successor_takes_over_from_a_dead_collector() -> None:
    """The job goes on sealing when the lowest node's daemon is gone and its trainers restart, and when it comes back."""
    world, job = training()
    job.lose(0)
    world.run(TIMING.lost_after_s + 1.0)
    assert any(fields["lost"] == 0 for _, fields in world.noted("node_lost"))
    world.boot(0)
    assert goes_on(world)


def test_a_successor_knows_whom_it_came_after_and_when_that_one_was_heard_last() -> None:
    """As long as it leads: that one's last ledger says who was lost with it."""
    world, job = training()
    fell = world.now
    job.lose(0)
    world.run(TIMING.lost_after_s + 1.0)
    successor = world.daemon(1)
    before = successor.collector.before
    assert before is not None
    assert before.collector == 0
    assert [captures.rank for captures in before.reports[0].captures] == [0]
    assert fell - 2 * TIMING.report_every_s < successor.ledger_heard(0) < fell + TIMING.report_every_s
    world.boot(0)
    world.run(TIMING.settle_s)
    assert successor.collector.before is None
    assert successor.ledger_heard(3) == float("-inf")


def test_a_restarted_daemon_finds_everything() -> None:
    """What stood in the slots stands there still; nothing is rebuilt and nothing is forgotten."""
    world, job = training()
    job.stop()
    world.run(3.0)
    sealed, held = world.sealed, dict(world.hosts[2].records)
    world.crash(2)
    world.run(0.3)
    world.boot(2)
    world.run(3.0)
    assert world.daemon(2).sealed == sealed
    assert {found.version for found in held.values()} == {v.version for _, v in world.daemon(2).catalog.holding()}
    assert not world.noted("rebuild")


def test_more_losses_than_parity_fall_back_to_storage() -> None:
    """The newest persisted step is chosen, and the decision says why nothing newer was."""
    world, job = training(persist_every=1)
    assert world.run(10.0, lambda: bool(world.manifests))
    world.truth.promises_p1 = False  # two losses with one parity are beyond it
    lives = len(job.lives)
    for node in (1, 2):
        job.lose(node)
    world.run(TIMING.lost_after_s + 1.0)
    world.boot(1, 2)
    assert world.run(20.0, lambda: len(job.lives) > lives and job.life.decision is not None)
    decision = job.life.decision
    assert decision is not None
    assert decision.source == "storage"
    assert "passed over" in decision.reason or decision.version == max(world.manifests)


def test_a_job_goes_on_with_fewer_ranks_and_with_more() -> None:
    """The newest step is chosen whatever its number of ranks, and the decision says so. What the new ranks capture is
    sealed; then nothing is kept of ranks that are no more."""
    world, job = training()
    for place, said in (([0, 2], "captured by 4 ranks, for 2 now"), ([0, 1, 2, 3], "captured by 2 ranks, for 4 now")):
        sealed, lives, job.place = world.sealed, len(job.lives), place
        job.kill(0)
        assert world.run(20.0, lambda: len(job.lives) > lives and job.life.decision is not None)  # noqa: B023
        decision = job.life.decision
        assert decision is not None
        assert decision.version is not None
        assert sealed is not None
        assert decision.version >= sealed
        assert said in decision.reason
        assert world.run(20.0, lambda: world.sealed is not None and world.sealed.epoch == decision.epoch)  # noqa: B023
        world.run(1.0)
        assert {found.slot.rank for host in world.hosts for found in host.records.values()} == set(range(len(place)))


def test_a_killed_trainer_costs_at_most_the_steps_in_flight() -> None:
    """The next life begins in a later epoch from a step that was sealed or newer."""
    world, job = training()
    sealed, lives = world.sealed, len(job.lives)
    job.kill(1)
    assert world.run(20.0, lambda: len(job.lives) > lives and job.life.decision is not None)
    decision = job.life.decision
    assert decision is not None
    assert decision.version is not None
    assert sealed is not None
    assert decision.version >= sealed
    assert decision.epoch > sealed.epoch
    assert goes_on(world)


def test_a_partition_with_two_collectors_does_no_harm() -> None:
    """Both halves have a collector; what was sealed stays recoverable, and the cluster goes on when it is whole."""
    world, _ = training()
    world.cuts = {(a, b) for a in range(4) for b in range(4) if (a < 2) != (b < 2)}
    world.run(4.0)
    leaders = {host.index for host in world.hosts if world.daemon(host.index).collector_index(world.now) == host.index}
    assert leaders == {0, 2}
    world.cuts.clear()
    assert goes_on(world)


def test_lost_and_repeated_letters_only_delay() -> None:
    """With a third of the letters lost and a fifth repeated, steps are sealed all the same."""
    world, _ = training()
    world.net.loss, world.net.repeat = 0.3, 0.2
    assert goes_on(world)


def test_storage_that_fails_does_not_stop_the_snapshots() -> None:
    """Steps go on being sealed in memory while storage is down, and are persisted when it is back."""
    world, _ = training(persist_every=1)
    world.storage.works = False
    stored = len(world.manifests)
    assert goes_on(world)
    assert goes_on(world)
    assert len(world.manifests) <= stored + 1
    world.storage.works = True
    newest = max(world.manifests, default=None)
    assert world.run(30.0, lambda: max(world.manifests, default=None) != newest)


def test_what_is_old_goes_from_storage() -> None:
    """By age alone: at each moment what is younger stands, and the two newest, however old they have become."""
    world, job = training(persist_every=1, keep_for_s=2.0)
    assert world.run(30.0, lambda: len(world.storage.names) >= 4 and step_of(world.sealed) > 20)
    assert max(world.now - named.at for named in world.storage.names.values()) < 4.0
    job.stop()
    world.run(30.0)
    assert len(world.manifests) >= 2, "nothing goes while nothing is persisted"


def test_what_a_trainer_wants_persisted_is_persisted_by_all() -> None:
    """One node says so, wherever the collector is; a collector that takes over meanwhile does it all the same."""
    world, job = training()
    job.stop()
    world.run(3.0)
    sealed, answers = world.sealed, list[bool]()
    assert sealed is not None
    assert not world.manifests
    world.crash(0)
    world.ask(world.hosts[2], lambda ticket: ev.PersistAsked(ticket, sealed), answers.append)
    world.run(1.0)
    world.boot(0)
    assert world.run(20.0, lambda: sealed in world.manifests)
    assert answers == [True]
    world.run(3.0)
    assert set(world.manifests) == {sealed}
