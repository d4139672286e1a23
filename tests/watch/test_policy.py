"""Decisions about crashes, hangs and lost nodes of one job after the other: who is kept out, when the next life has to begin
before the newest step, and when the job ends."""

from __future__ import annotations

from dataclasses import replace

from ckptd.daemon.watch.policy import EXIT_FEW_NODES, EXIT_NO_PROGRESS, NOWHERE, Act, Decision, Facts, Policy, Retreat
from ckptd.daemon.watch.verdicts import Syndrome, Verdict


class Lives:
    """Lives of a job on two nodes with a spare, and what is decided at their ends."""

    def __init__(self) -> None:
        self.policy, self.epoch = Policy(), 0

    def ends(self, origin: int, stood: int, syndrome: Syndrome = Syndrome.CRASH) -> Decision:
        """A life that was restored from `origin` ends at step `stood`. An hour lies between two: blame is no matter here."""
        return self.policy.decide(self.verdict(syndrome), self.facts(origin, stood), 3600.0 * 9 * self.epoch)

    def verdict(self, syndrome: Syndrome) -> Verdict:
        self.epoch += 1
        return Verdict(syndrome, "!", (1,), (1,), epoch=self.epoch)

    @staticmethod
    def facts(origin: int, stood: int) -> Facts:
        return Facts(stood, (0, 1, 2), 2, origin, stood)


def test_two_crashes_at_the_same_step_bar_what_the_second_life_began_with() -> None:
    """And each crash there after that bars what its life began with, back and back."""
    lives = Lives()
    assert lives.ends(NOWHERE, 24).retreat is None
    second = lives.ends(24, 24)
    assert second.retreat == Retreat(24, "trainers crashed 2 times at step 24 after it")
    assert (second.act, "not from step 24: trainers crashed 2 times" in second.reason) == (Act.RESTART, True)
    assert lives.ends(20, 24).retreat == Retreat(20, "trainers crashed 3 times at step 24 after it")


def test_crashes_at_other_steps_bar_nothing_before_the_tries_are_used_up() -> None:
    """Two lives from one step may end before the best one did, wherever that is; then an older step."""
    lives = Lives()
    lives.ends(NOWHERE, 24)
    assert lives.ends(20, 23).retreat is None
    assert lives.ends(20, 22, Syndrome.NON_COMMUNICATION_HANG).retreat == Retreat(
        20, "2 lives that began with it came no further than step 24"
    )


def test_progress_forgets_what_was_counted() -> None:
    """A life that comes further than all before shows that its step is sound."""
    lives = Lives()
    lives.ends(NOWHERE, 24)
    assert lives.ends(20, 25).retreat is None
    assert lives.ends(20, 24).retreat is None


def test_a_life_that_never_had_its_state_and_a_lost_node_say_nothing_about_a_step() -> None:
    """Neither does a restart for slowness."""
    lives = Lives()
    lives.ends(20, 24)
    for _ in range(2):
        assert lives.ends(20, 0).retreat is None
    lives = Lives()
    for _ in range(4):
        assert lives.ends(20, 24, Syndrome.NODE_LOST).retreat is None


def test_a_job_that_begins_anew_each_time_has_nothing_to_bar() -> None:
    """It is restarted as often as any, and given up with the code that says so."""
    lives = Lives()
    decided = [lives.ends(NOWHERE, 3) for _ in range(6)]
    assert [decision.retreat for decision in decided] == [None] * 6
    assert [decision.act for decision in decided] == [*[Act.RESTART] * 5, Act.GIVE_UP]
    assert decided[-1].exit_code == EXIT_NO_PROGRESS


def test_a_crash_that_comes_to_light_when_the_next_life_trains_counts_once() -> None:
    """Agents may be faster than the judge."""
    lives = Lives()
    lives.ends(NOWHERE, 24)
    late = lives.verdict(Syndrome.CRASH)
    assert lives.policy.witness(late, lives.facts(24, 24)) == Retreat(
        24, "trainers crashed 2 times at step 24 after it"
    )
    assert lives.policy.witness(late, lives.facts(24, 24)) is None
    assert lives.policy.witness(lives.verdict(Syndrome.NON_COMMUNICATION_HANG), lives.facts(24, 24)) is None


def crash(epoch: int, *nodes: int, syndrome: Syndrome = Syndrome.CRASH) -> Verdict:
    return Verdict(syndrome, "!", nodes, nodes, epoch=epoch)


def test_blame_decays() -> None:
    """Two faults within the hour put a node out; the same two with half a day between are two accidents."""
    quick, slow = Policy(), Policy()
    facts = Facts(1, (0, 1, 2), 2)
    for policy, later_s in ((quick, 600.0), (slow, 12 * 3600.0)):
        assert policy.decide(crash(1, 1), facts, 0.0).act is Act.RESTART
        assert policy.blame(1, 3600.0) == 0.5
        second = policy.decide(crash(2, 1), replace(facts, step=2), later_s)
        assert (second.act, second.nodes) == ((Act.ISOLATE, (1,)) if policy is quick else (Act.RESTART, ()))


def test_who_is_put_out_again_stays_out_for_longer() -> None:
    """Twice as long each time, a day at most."""
    policy, facts = Policy(), Facts(1, (0, 1, 2), 2)
    out = [
        policy.decide(crash(epoch, 1), replace(facts, step=epoch), 1000.0 * epoch).isolate_s for epoch in range(1, 14)
    ]
    assert [seconds for seconds in out if seconds][:4] == [600.0, 1200.0, 2400.0, 4800.0]
    assert max(out) == 86400.0


def test_fewer_nodes_than_min_are_waited_for_and_then_the_job_ends_for_another_start() -> None:
    """A lost node is waited for; the exit code does not forbid to try again. Who is merely guilty stays in."""
    policy, facts = Policy(), Facts(1, (0, 1), 2)
    lost = crash(1, 1, syndrome=Syndrome.NODE_LOST)
    first = policy.decide(lost, facts, 0.0)
    assert first.act is Act.WARN
    assert "1 nodes would be left, and the job needs 2 (MIN): waiting for a node, 0 of 600 s" in first.reason
    assert policy.decide(lost, facts, 600.0).act is Act.WARN
    end = policy.decide(lost, facts, 601.0)
    assert (end.act, end.exit_code) == (Act.GIVE_UP, EXIT_FEW_NODES)
    for epoch in (2, 3):
        kept = policy.decide(crash(epoch, 1), replace(facts, step=epoch), 700.0)
        assert (kept.act, kept.nodes) == (Act.RESTART, ())
    assert "should stay out, but 1 nodes would be left" in kept.reason
