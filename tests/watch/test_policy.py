"""When the next life has to begin before the newest step: decisions about crashes and hangs of one job after the other."""

from __future__ import annotations

from ckptd.daemon.watch.policy import EXIT_NO_PROGRESS, NOWHERE, Act, Decision, Facts, Policy, Retreat
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
