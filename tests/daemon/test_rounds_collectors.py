"""Rounds go on while collectors and daemons come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.agents import LOST_AFTER_S, running

from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.rounds import Isolation, Standing, isolated
from ckptd.daemon.launch import Launch
from ckptd.daemon.launch_events import AgentCame
from ckptd.daemon.rounds import Rounds, waits_for


def test_a_new_collector_goes_on_with_the_round_that_was_announced() -> None:
    """It does not take those for gone whom it has not heard yet."""
    job = running(3)
    assert job.ledger
    successor = Rounds("boot-1", LOST_AFTER_S)
    successor.follow(job.ledger)
    job.rounds, job.lost, job.silent = successor, set(), {2}
    job.passes(5.0)
    assert job.round.runs


@pytest.mark.parametrize("heard_late", [False, True])
def test_a_collector_that_has_lost_its_memory_finds_the_round_again(heard_late: bool) -> None:
    """From what the agents say of their places, one after the other."""
    job = running(3)
    job.rounds = Rounds("other", LOST_AFTER_S)
    job.silent = {1} if heard_late else set()
    job.passes(5.0)
    job.silent = set()
    job.passes(5.0)
    assert job.states() == ["member"] * 3
    assert (job.round.number, job.round.key, job.members) == (1, "boot", [0, 1, 2])
    job.join(1)
    job.join(0)
    job.join(2)
    assert job.round.number == 2


def test_a_member_that_is_lost_while_the_collector_has_no_memory_ends_the_round() -> None:
    job = running(3, minimum=2, maximum=3)
    job.rounds, job.lost = Rounds("other", LOST_AFTER_S), {2}
    job.tell()
    job.passes(LOST_AFTER_S)
    assert job.stands(0) == Standing("over", "1 of the 3 agents are not to be found")


def test_a_daemon_that_was_restarted_knows_its_agent_again_and_nobody_restarts() -> None:
    job = running(2)
    known = job.launches[1].agent
    assert known
    job.launches[1] = Launch(1, 2)
    job.passes(LOST_AFTER_S / 2)
    assert job.stands(0).state == "member"
    job.launches[1].came(AgentCame(1, replace(known, since=0), pid=5), None, job.now)
    job.passes(LOST_AFTER_S)
    assert job.states() == ["member", "member"]


def test_an_agent_that_never_calls_its_restarted_daemon_ends_the_round() -> None:
    job = running(2)
    job.launches[1] = Launch(1, 2)
    job.tell()
    job.passes(LOST_AFTER_S)
    assert "has not called since" in job.stands(0).reason


def test_of_two_rounds_that_two_collectors_made_one_stays() -> None:
    """A cut of the network has healed; who is in no round of the ledger joins anew."""
    job = running(4, minimum=2, maximum=4)
    left, right = Rounds("left", LOST_AFTER_S), Rounds("right", LOST_AFTER_S)
    before = job.ledger
    assert before
    for side, lost, mine in ((left, {2, 3}, (0, 1)), (right, {0, 1}, (2, 3))):
        side.follow(before)
        job.rounds, job.lost = side, lost
        job.tell()
        for node in mine:
            job.join(node)
        assert job.members == list(mine)
    job.rounds, job.lost = left, set()
    job.tell()
    assert job.round.key == "right"
    assert job.stands(0) == Standing("over", "round 2 goes on without node 0")


def test_what_is_known_of_isolated_nodes_survives_the_collector() -> None:
    job = running(3, minimum=2)
    job.restart(0, "bad", isolate=(2,))
    job.rounds = Rounds("other", LOST_AFTER_S)
    job.tell()
    assert job.ledger
    assert isolated(job.ledger.isolations) == {2: "bad"}
    assert job.ledger.isolations == (Isolation(2, 1, True, "bad"),)


def test_nothing_is_waited_for_where_no_agent_has_come() -> None:
    assert waits_for(Ledger(0, "b", 1, nodes=2)) == "no agent has joined"
