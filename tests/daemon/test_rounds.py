"""Which agents train together: what the collector makes of what the nodes say of their agents."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptd.ckpt.errors import AccessError, CkptdError, UsageError
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.rounds import Agent, Isolation, Place, Round, Standing, isolated
from ckptd.daemon.launch import SILENT_S, Launch
from ckptd.daemon.launch_events import AgentCame, AgentEnded, RestartAsked
from ckptd.daemon.rounds import STRAGGLER_S, Rounds, waits_for

LOST_AFTER_S = 2.0


class Job:
    """Some nodes' halves and one collector, without daemons: everybody hears everything at once."""

    def __init__(self, nodes: int, minimum: int = 0, maximum: int = 0, last_call_s: float = 30.0) -> None:
        self.nodes, self.now = nodes, 0.0
        self.minimum, self.maximum, self.last_call_s = minimum or nodes, maximum or minimum or nodes, last_call_s
        self.launches = [Launch(node, nodes) for node in range(nodes)]
        self.lost: set[int] = set()
        self.silent: set[int] = set()
        """Nodes that a new collector has not heard yet."""
        self.joins: dict[str, int] = {}
        self.rounds = Rounds("boot", LOST_AFTER_S)
        self.ledger: Ledger | None = None
        self.tell()

    def tell(self) -> None:
        """Reports go to the collector and its ledger to the nodes, twice, as places are told again."""
        for _ in range(2):
            reports = tuple(
                Report(node, f"boot-{node}", 1, agent=half.agent, wish=half.wish, isolations=half.isolations)
                for node, half in enumerate(self.launches)
                if node not in self.lost | self.silent
            )
            facts = Ledger(0, "boot", 1, nodes=self.nodes, reports=reports, lost=tuple(sorted(self.lost)))
            self.ledger = self.rounds.advance(facts, self.now)
            self.rounds.check_invariants()
            for node, half in enumerate(self.launches):
                if node not in self.lost:
                    half.follow(self.ledger)
                    half.check_invariants()

    def join(self, node: int, name: str = "", reason: str = "", **other: int) -> CkptdError | None:
        """The node's agent asks for a round."""
        name = name or f"agent-{node}"
        self.joins[name] = self.joins.get(name, 0) + 1
        agent = Agent(
            name, self.joins[name], f"host-{node}", 1000 + node, other.get("minimum", self.minimum),
            other.get("maximum", self.maximum), self.last_call_s, reason=reason,
        )  # fmt: skip
        problem = self.launches[node].came(AgentCame(1, agent, pid=77), self.ledger, self.now)
        self.tell()
        return problem

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell()

    def stands(self, node: int, name: str = "") -> Standing:
        return self.launches[node].standing(name or f"agent-{node}", self.ledger)

    def states(self) -> list[str]:
        return [self.stands(node).state for node in range(self.nodes)]

    @property
    def round(self) -> Round:
        assert self.ledger is not None
        assert self.ledger.round is not None
        return self.ledger.round

    @property
    def members(self) -> list[int]:
        return [member.node for member in self.round.members]

    def restart(
        self, node: int, reason: str = "because", isolate: tuple[int, ...] = (), **more: bool
    ) -> CkptdError | None:
        problem = self.launches[node].ask(RestartAsked(0, reason, isolate, **more), self.ledger)
        self.tell()
        return problem


def running(nodes: int, minimum: int = 0, maximum: int = 0) -> Job:
    """A job in which as many agents as may train do so."""
    job = Job(nodes, minimum, maximum)
    for node in range(nodes):
        job.join(node)
    assert job.round.runs
    return job


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
    assert (job.members, job.stands(3).state) == ([0, 1, 2], "wait")
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
    assert job.stands(1, "agent-1b").state == "wait"
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
    half.tick(SILENT_S - 1)
    assert half.agent
    assert not half.agent.ended
    half.tick(SILENT_S)
    assert half.agent.ended == "gone"


def test_more_nodes_than_the_job_has_are_refused() -> None:
    job = Job(2, minimum=3)
    problem = job.join(0)
    assert isinstance(problem, UsageError)
    assert "3 nodes or more" in str(problem)


# ---- collectors come and go -------------------------------------------------------------------------


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
