"""Which agents train together: what the collector makes of what the nodes say of their agents."""

from __future__ import annotations

from tests.agents import Job, running

from ckptd.ckpt.errors import AccessError, UsageError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.rounds import Agent, Place, Standing
from ckptd.daemon.launch import SILENT_S, Launch
from ckptd.daemon.launch_events import AgentCame, AgentEnded, RestartAsked
from ckptd.daemon.rounds import STRAGGLER_S


def test_a_round_is_formed_when_all_have_come_and_each_learns_its_place() -> None:
    job = Job(3)
    job.join(2)
    job.join(0)
    assert job.states() == ["wait", "wait", "wait"]
    job.join(1)
    places = [job.stands(node).place for node in range(3)]
    assert places == [Place(1, "boot", rank, 3) for rank in range(3)]
    assert {(job.stands(node).host, job.stands(node).port) for node in range(3)} == {("host-0", 1000)}


def test_a_first_round_of_fewer_than_the_most_waits_for_the_last_call() -> None:
    """Each agent that comes starts it anew; the most that may come start at once."""
    job = Job(4, minimum=2, maximum=3)
    job.join(0)
    job.join(1)
    job.passes(29.0)
    assert job.states()[:2] == ["wait", "wait"]
    job.passes(1.0)
    assert job.members == [0, 1]


def test_an_agent_that_asks_again_ends_the_round_for_all_and_the_next_is_formed_when_all_are_back() -> None:
    """In the time that it takes everybody to join again, and with a store at another port or host."""
    job = running(3)
    job.join(1, reason="rank 1 was ended by SIGKILL")
    assert job.stands(0) == Standing("over", "node 1: rank 1 was ended by SIGKILL")
    assert job.stands(1).state == "wait"
    job.join(0)
    assert job.stands(1).reason == "node 2 to join again"
    job.join(2)
    assert (job.round.number, job.members, job.states()) == (2, [0, 1, 2], ["member"] * 3)


def test_a_lost_node_ends_the_round_and_its_replacement_takes_its_place() -> None:
    job = running(3)
    job.lost = {1}
    job.tell()
    assert job.stands(0) == Standing("over", "node 1 is lost")
    job.join(0)
    job.join(2)
    assert job.stands(0).reason == "at least 3 agents, 2 have come; node 1 lost"
    job.launches[1], job.lost = Launch(1, 3), set()
    job.tell()
    job.join(1, "agent-1b")
    assert job.members == [0, 1, 2]
    assert job.stands(1, "agent-1b").state == "member"


def test_the_loss_of_the_node_that_hosts_the_store_is_an_ordinary_one() -> None:
    job = running(3, minimum=2, maximum=3)
    job.lost = {0}
    job.tell()
    job.join(1)
    job.join(2)
    assert (job.members, job.round.host) == ([1, 2], "host-1")


def test_a_spare_waits_while_the_round_is_full_and_takes_the_lost_ones_seat() -> None:
    """The others keep their ranks: their snapshots are where they are."""
    job = running(4, minimum=3)
    assert (job.members, job.stands(3).state) == ([0, 1, 2], "spare")
    assert "all 3 that it takes" in job.stands(3).reason
    job.lost = {1}
    job.tell()
    job.join(0)
    job.join(2)
    assert job.members == [0, 3, 2]


def test_a_spare_is_let_in_while_there_is_room() -> None:
    job = Job(3, minimum=2, maximum=3, last_call_s=0.0)
    job.join(0)
    job.join(1)
    assert job.members == [0, 1]
    job.join(2)
    assert job.stands(0) == Standing("over", "node 2 can be let in")
    job.join(0)
    job.join(1)
    assert job.members == [0, 1, 2]


def test_a_spare_that_wants_more_nodes_than_there_are_disturbs_nobody() -> None:
    job = Job(4, minimum=2, maximum=3, last_call_s=0.0)
    job.join(0)
    job.join(1)
    job.join(2, minimum=4, maximum=4)
    assert job.states()[:2] == ["member", "member"]


def test_agents_that_do_not_agree_are_told() -> None:
    job = Job(3, minimum=2, maximum=2)
    job.join(0)
    job.join(1, minimum=3, maximum=3)
    assert "one wants 3 nodes or more, another 2 or fewer" in job.stands(0).reason


def test_an_agent_without_the_plugin_is_named_by_its_absence() -> None:
    job = Job(2)
    job.join(0)
    assert job.stands(0).reason == "at least 2 agents, 1 have come; no agent waits at node 1"


def test_an_isolated_node_is_out_and_stays_out_until_it_is_let_in() -> None:
    """A new agent there is kept out too; the others go on with a spare."""
    job = running(3, minimum=2)
    assert job.restart(2, "it is slow", isolate=(1,)) is None
    assert job.stands(0) == Standing("over", "node 1 is isolated: it is slow")
    assert job.stands(1) == Standing("isolated", "it is slow")
    job.join(0)
    assert job.members == [0, 2]
    job.launches[1].ended(AgentEnded("agent-1", "gone"))
    job.join(1, "agent-1b")
    assert job.stands(1, "agent-1b").state == "isolated"
    assert job.launches[0].ask(RestartAsked(0, "replaced", admit=(1,)), job.ledger) is None
    job.tell()
    assert job.stands(1, "agent-1b").state == "spare"
    assert job.round.runs


def test_isolating_more_than_can_be_spared_is_refused_and_nothing_is_done() -> None:
    job = running(2)
    problem = job.restart(0, isolate=(1,))
    assert isinstance(problem, UsageError)
    assert "1 agents are left and 2 are needed" in str(problem)
    assert job.states() == ["member", "member"]


def test_a_restart_asked_twice_happens_once() -> None:
    """Also when the second word comes late, after the next round was formed."""
    job = running(2)
    late = RestartAsked(0, "hang")
    before = job.ledger
    assert job.restart(0, "hang") is None
    assert job.restart(1, "hang") is None
    assert job.stands(1) == Standing("over", "hang")
    job.join(0)
    job.join(1)
    assert job.round.number == 2
    assert job.launches[1].ask(late, before) is None
    job.tell()
    assert job.round.runs


def test_a_job_that_is_given_up_ends_for_all_and_says_so() -> None:
    job = running(2)
    job.restart(1, "no progress", give_up=True)
    assert job.stands(0) == Standing("closed", "no progress", end="given up")


def test_agents_that_have_failed_for_good_close_the_job() -> None:
    job = running(2)
    job.launches[1].ended(AgentEnded("agent-1", "failed", "exit code 1"))
    job.tell()
    assert job.stands(0) == Standing("closed", "the agent of node 1 gave up: exit code 1", end="failed")


def test_a_finished_job_is_closed_for_its_spares_and_open_for_the_next_one() -> None:
    job = running(3, minimum=2)
    for node in (0, 1):
        job.launches[node].ended(AgentEnded(f"agent-{node}", "done"))
    job.tell()
    assert job.stands(2) == Standing("closed", "the job is done", end="done")
    job.launches[2].ended(AgentEnded("agent-2", "done"))
    for node in (0, 1):
        job.join(node, f"next-{node}")
    assert (job.round.number, job.members) == (2, [0, 1])


def test_who_fails_after_another_has_finished_joins_no_round_any_more() -> None:
    job = running(2)
    job.launches[0].ended(AgentEnded("agent-0", "done"))
    job.tell()
    assert job.stands(1).state == "member"
    job.join(1, reason="exit code 1")
    assert job.stands(1).end == "done"


def test_a_member_that_does_not_come_back_is_left_behind_in_the_end() -> None:
    """A daemon lives and its agent does not move: a torchrun that is stopped."""
    job = running(3, minimum=2, maximum=3)
    job.restart(0)
    job.join(0)
    job.join(1)
    job.passes(STRAGGLER_S - 1)
    assert not job.round.runs
    job.passes(1.0)
    assert job.members == [0, 1]


def test_an_agent_whose_process_is_gone_is_noticed_though_its_node_lives() -> None:
    job = running(2)
    job.launches[1].ended(AgentEnded("agent-1", "gone"))
    job.tell()
    assert job.stands(0) == Standing("over", "the agent of node 1 is gone")


def test_a_second_agent_of_a_node_is_refused_while_the_first_lives() -> None:
    job = running(2)
    assert isinstance(job.join(1, "another"), AccessError)
    assert job.states() == ["member", "member"]


def test_an_agent_that_cannot_be_watched_is_gone_when_it_is_silent() -> None:
    half = Launch(0, 1)
    half.came(AgentCame(1, Agent("a", 1, "h", 1, 1, 1), pid=0), Ledger(0, "b", 1, nodes=1), 0.0)
    ended = []
    for now in (SILENT_S - 1, SILENT_S):
        half.tick(now)
        assert half.agent
        ended.append(half.agent.ended)
    assert ended == ["", "gone"]


def test_more_nodes_than_the_job_has_are_refused() -> None:
    job = Job(2, minimum=3)
    problem = job.join(0)
    assert isinstance(problem, UsageError)
    assert "3 nodes or more" in str(problem)
