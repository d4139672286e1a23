"""From verdicts to actions, with agents and rounds in one thread and simulated time: one restart for one fault, at most."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from tests.agents import Job, running

from ckptd.ckpt.inventory import Captures
from ckptd.ckpt.model import Version
from ckptd.ckpt.rounds import GIVEN_UP_EXIT
from ckptd.daemon.launch_events import BarAsked
from ckptd.daemon.observe.bailiff import AGAIN_S, AGENTS_S, Action, Bailiff, Scene, facts_of
from ckptd.daemon.watch.policy import NOWHERE, Act, Costs, Policy
from ckptd.daemon.watch.verdicts import Syndrome, Verdict

INCIDENT = 7


class Trial:
    """A job's agents, and a bailiff at their collector. Rank r lives on node r of the first `world`."""

    def __init__(self, job: Job, *, act: str = "restart", costs: Costs | None = None, world: int = 2) -> None:
        self.job, self.world = job, world
        self.bailiff = Bailiff(act, Policy(costs or Costs()))
        self.epoch, self.step = 0, 0
        self.said: list[str] = []
        self.begin_life()

    @property
    def scene(self) -> Scene:
        return Scene(self.job.ledger, self.job.rounds.breach)

    def begin_life(self) -> None:
        """The trainers of the newest round are there."""
        self.epoch += 1
        self.bailiff.begins(self.epoch, self.scene)

    def rejoin(self) -> None:
        """The agents of a round that is over join anew, and their trainers begin."""
        for node in self.job.members:
            self.job.join(node)
        self.begin_life()

    def judged(self, syndrome: Syndrome, *nodes: int, loss_s: float = 0.0, origin: int = NOWHERE) -> Action:
        """The bailiff hears a verdict on these nodes, and what it asks for at once is asked."""
        verdict = Verdict(syndrome, f"{syndrome.value}!", nodes, nodes, loss_s=loss_s, epoch=self.epoch)
        where = tuple(range(self.world))
        facts = facts_of(self.scene, self.step, where, origin=origin, stood=self.step)
        action = self.bailiff.take(INCIDENT, verdict, facts, self.scene, self.job.now)
        self.run()
        return action

    def run(self, seconds: float = 0.0) -> int:
        """Time passes; whatever is due is asked for. How much that was."""
        self.job.passes(seconds)
        self.said += [said for _, said in self.bailiff.settled(self.scene)]
        errands = self.bailiff.errands(self.job.now)
        for errand in errands:
            problem = self.job.ask(0, errand.event)
            self.job.tell()
            self.said.append(self.bailiff.heard(errand, problem, self.job.now))
        return len(errands)

    def goes_on(self) -> bool:
        return self.job.round.runs


def test_a_hang_restarts_all_agents_once() -> None:
    """They are told why; and no longer asked once the round is over."""
    trial = Trial(running(2))
    action = trial.judged(Syndrome.NON_COMMUNICATION_HANG, 1)
    assert (action.decision.act, action.ends_life) == (Act.RESTART, True)
    assert trial.job.round.over == "non-communication hang!"
    assert [trial.run(1.0) for _ in range(20)] == [0] * 20


def test_a_restart_that_is_asked_for_twice_is_one() -> None:
    """By another verdict on the same life, and by word that comes when the next round goes on."""
    trial = Trial(running(2))
    trial.judged(Syndrome.NON_COMMUNICATION_HANG, 1)
    assert trial.judged(Syndrome.COMMUNICATION_HANG, 0).decision.act is Act.IGNORE
    old = trial.bailiff._event(trial.judged(Syndrome.CRASH, 0).decision)
    trial.rejoin()
    assert "restarted already" in str(trial.job.launches[0].ask(old, trial.job.ledger))
    trial.job.tell()
    assert trial.goes_on()


def test_an_operator_s_restart_and_a_verdict_on_the_same_life_are_one() -> None:
    """The round is over already: nobody is asked, and the record says by whom it was."""
    trial = Trial(running(2))
    trial.job.restart(1, "rank 0 looks odd")
    action = trial.judged(Syndrome.NON_COMMUNICATION_HANG, 0)
    assert action.done == "the agents restart already: rank 0 looks odd"
    trial.rejoin()
    assert trial.run(AGAIN_S) == 0
    assert trial.goes_on()


def test_a_verdict_on_an_earlier_life_does_nothing() -> None:
    """Also when the policy has not restarted that life: the ledger knows a newer one."""
    trial = Trial(running(2))
    assert trial.job.ledger is not None
    newer = replace(trial.job.ledger.reports[0], captures=(Captures(0, 3, epoch=5),))
    trial.job.ledger = replace(trial.job.ledger, reports=(newer, *trial.job.ledger.reports[1:]))
    verdict = Verdict(Syndrome.NON_COMMUNICATION_HANG, "late", (1,), (1,), epoch=1)
    action = trial.bailiff.take(INCIDENT, verdict, facts_of(trial.scene, 0, (0, 1)), trial.scene, 0.0)
    assert action.decision.act is Act.IGNORE
    assert "the job is in epoch 5" in action.decision.reason
    assert trial.bailiff.errands(100.0) == []


def test_a_death_is_left_to_the_agents_who_see_it_and_acted_on_where_they_do_not() -> None:
    """Only an agent can tell that its own trainer failed, which spends one of its restarts."""
    trial = Trial(running(2))
    assert trial.judged(Syndrome.CRASH, 1).decision.act is Act.RESTART
    assert trial.run(AGENTS_S / 2) == 0
    trial.job.join(1, reason="rank 1 was ended by SIGKILL")
    assert trial.run(AGENTS_S) == 0
    assert trial.job.round.over == "node 1: rank 1 was ended by SIGKILL"
    assert trial.said == ["the agents restart by themselves: node 1: rank 1 was ended by SIGKILL"]

    deaf = Trial(running(2))
    deaf.judged(Syndrome.CRASH, 1)
    assert deaf.run(AGENTS_S) == 1
    assert not deaf.goes_on()


def test_what_does_not_come_about_is_asked_for_again() -> None:
    """The core may be busy, or a collector may have changed between."""
    trial = Trial(running(2))
    trial.job.launches[0].ask = lambda *_: None  # type: ignore[method-assign]
    trial.judged(Syndrome.NON_COMMUNICATION_HANG, 1)
    assert [trial.run(1.0) for _ in range(10)].count(1) == 2


def test_a_false_witness_restarts_nobody() -> None:
    """Nodes whose reports come to the collector are not lost, whoever says so; not even all of them."""
    trial = Trial(running(3), world=3)
    for accused in ((1,), (0, 1, 2)):
        action = trial.judged(Syndrome.NODE_LOST, *accused)
        assert action.decision.act is Act.WARN
        assert "come as ever" in action.decision.reason
    assert trial.run(60.0) == 0
    assert trial.goes_on()


def test_a_job_that_makes_no_progress_is_given_up_with_the_code_that_says_so() -> None:
    """Five restarts at one step; the agents' exit code is 93."""
    trial = Trial(running(2), costs=Costs(cycles=5))
    for _ in range(5):
        assert trial.judged(Syndrome.NON_COMMUNICATION_HANG).decision.act is Act.RESTART
        trial.rejoin()
    action = trial.judged(Syndrome.NON_COMMUNICATION_HANG)
    assert (action.decision.act, action.decision.exit_code) == (Act.GIVE_UP, GIVEN_UP_EXIT)
    assert [(trial.job.stands(node).state, trial.job.stands(node).end) for node in (0, 1)] == [
        ("closed", "given up")
    ] * 2
    assert trial.said[-1] == "the agents were asked to give up, with exit code 93"
    assert trial.judged(Syndrome.CRASH, 1).decision.act is Act.IGNORE


def test_progress_gives_new_tries() -> None:
    """A job that gets further each time is restarted as often as it needs."""
    trial = Trial(running(2), costs=Costs(cycles=2))
    for _ in range(20):
        trial.step += 1
        assert trial.judged(Syndrome.NON_COMMUNICATION_HANG).decision.act is Act.RESTART
        trial.rejoin()


def test_advice_is_given_and_nothing_is_done() -> None:
    """Where the setting says so, and where no agents of ckptd are; once for each life."""
    for trial, why in ((Trial(running(2), act="advise"), "is set to advise"), (Trial(Job(2)), "no agents of ckptd")):
        action = trial.judged(Syndrome.NON_COMMUNICATION_HANG, 1)
        assert action.decision.act is Act.RESTART
        assert why in action.done
        assert not action.ends_life
        assert trial.judged(Syndrome.CRASH, 0).decision.act is Act.IGNORE
        assert trial.run(100.0) == 0


def test_a_lost_node_is_a_verdict_of_the_membership_and_its_place_stays_free() -> None:
    """Before the judge is sure. Isolated it would not be let in again, nor would its replacement."""
    trial = Trial(running(2), world=2)
    assert trial.bailiff.lost([0, 1], trial.epoch, trial.scene, trial.job.now) == []
    trial.job.lost.add(1)
    trial.job.passes(1.0)
    (verdict,) = trial.bailiff.lost([0, 1], trial.epoch, trial.scene, trial.job.now)
    assert (verdict.syndrome, verdict.ranks, verdict.nodes) == (Syndrome.NODE_LOST, (1,), (1,))
    action = trial.judged(Syndrome.NODE_LOST, 1)
    assert action.done == "its place is free for who comes, and the agents restart: node 1 is lost"
    assert action.ends_life
    assert trial.run(5.0) == 0
    assert trial.job.ledger is not None
    assert trial.job.ledger.isolations == ()


def test_how_long_a_lost_node_was_silent_does_not_follow_from_why_the_round_ended() -> None:
    """Its peers may die of a broken connection at once, and end the round before anybody misses the node."""
    trial = Trial(running(2), world=2)
    trial.job.join(0, reason="rank 0 ended with exit code 1")
    trial.job.passes(1.5)
    trial.job.lost.add(1)
    trial.job.tell()
    scene = replace(trial.scene, gone={1: trial.job.now})
    trial.job.passes(0.25)
    (verdict,) = trial.bailiff.lost([0, 1], trial.epoch, scene, trial.job.now)
    assert dict(verdict.evidence) == {"silent_s": scene.lost_after_s + 0.25}


def test_a_node_that_is_slow_for_long_is_isolated_and_let_in_again_later() -> None:
    """Ski rental: when its slowness has cost as much as a restart, and a spare waits. The isolation has an end."""
    trial = Trial(running(3, 2, 2), costs=Costs(restart_s=10.0, isolate_s=100.0))
    acts = []
    while Act.ISOLATE not in acts:
        trial.step += 5
        trial.job.passes(1.0)
        acts.append(trial.judged(Syndrome.NON_COMMUNICATION_SLOW, 1, loss_s=0.5).decision.act)
        assert len(acts) < 10
    assert acts[:-1] == [Act.WARN] * 4
    assert trial.job.stands(1).state == "isolated"
    trial.job.join(0)
    assert trial.job.members == [0, 2]
    trial.begin_life()
    assert trial.run(90.0) == 0
    assert trial.run(11.0) == 1
    assert trial.said[-1] == "node 1 let in again"
    assert trial.goes_on()


def test_an_isolation_that_is_refused_becomes_a_restart() -> None:
    """The spare that the policy counted on has gone meanwhile."""
    trial = Trial(running(3, 2, 2))
    trial.judged(Syndrome.NON_COMMUNICATION_HANG, 1)
    trial.rejoin()
    before = trial.scene
    trial.job.lost.add(2)
    trial.job.tell()
    verdict = Verdict(Syndrome.NON_COMMUNICATION_HANG, "again", (1,), (1,), epoch=trial.epoch)
    action = trial.bailiff.take(INCIDENT, verdict, facts_of(before, 9, (0, 1)), trial.scene, trial.job.now)
    assert action.decision.act is Act.ISOLATE
    assert trial.run() == 1
    assert "a restart in place instead" in trial.said[-1]
    assert trial.run() == 1
    assert trial.job.round.over == action.decision.reason


def test_a_life_is_over_when_its_round_is() -> None:
    """The next life is not, nor is one of which no round is known."""
    trial = Trial(running(2))
    assert trial.bailiff.over_since(trial.epoch, trial.scene) == inf
    trial.job.passes(10.0)
    trial.job.restart(0, "an operator's")
    trial.job.passes(1.0)
    assert trial.bailiff.over_since(trial.epoch, trial.scene) == 10.0
    trial.rejoin()
    assert trial.bailiff.over_since(trial.epoch - 1, trial.scene) == inf
    assert trial.bailiff.over_since(trial.epoch, trial.scene) == inf


def test_a_restart_s_cost_is_what_the_last_one_took() -> None:
    """So slow ranks are borne for as long as that is worth it on this cluster."""
    trial = Trial(running(2))
    trial.bailiff.restarted(4.0)
    said = trial.judged(Syndrome.NON_COMMUNICATION_SLOW, 1, loss_s=0.1).decision.reason
    assert "a restart costs 4 s" in said


def crash_twice(trial: Trial) -> Action:
    """At step 24: a life that began anew, and one that was restored from it."""
    trial.step = 24
    trial.judged(Syndrome.CRASH, 1)
    trial.rejoin()
    return trial.judged(Syndrome.CRASH, 1, origin=24)


def why(trial: Trial, *version: int) -> str:
    """Why nothing is restored from a version."""
    assert trial.job.ledger is not None
    return trial.job.ledger.barred.why(Version(*version))


def test_what_a_life_crashed_from_again_is_barred_at_once() -> None:
    """Before its agents are asked for anything: they may begin the next life any moment. Later lives' steps are not."""
    trial = Trial(running(2))
    action = crash_twice(trial)
    assert action.done == f"left to the agents, for {AGENTS_S:g} s"
    assert trial.goes_on()
    assert why(trial, 1, 24) == why(trial, 2, 25) == "trainers crashed 2 times at step 24 after it"
    assert why(trial, 2, 23) == why(trial, 3, 24) == ""
    assert trial.said[-1] == "no life begins from step 24 (epoch 2) or a later step of it any more"


def test_a_bar_that_is_refused_is_asked_for_again_until_the_next_life() -> None:
    """The core of a daemon may be busy for a moment."""
    trial, real = Trial(running(2)), Job.ask
    trial.job.ask = lambda node, event: "busy" if isinstance(event, BarAsked) else real(trial.job, node, event)  # type: ignore[method-assign]
    crash_twice(trial)
    assert trial.said[-1] == "to bar step 24 (epoch 2) was refused: busy"
    trial.job.ask = lambda node, event: real(trial.job, node, event)  # type: ignore[method-assign]
    trial.run(AGAIN_S)
    assert why(trial, 2, 24)

    trial = Trial(running(2))
    trial.job.ask = lambda node, event: "busy"  # type: ignore[method-assign]
    crash_twice(trial)
    trial.job.ask = lambda node, event: real(trial.job, node, event)  # type: ignore[method-assign]
    trial.rejoin()
    trial.run(AGAIN_S)
    assert why(trial, 2, 24) == ""


def test_who_only_advises_bars_nothing_and_says_what_should_be() -> None:
    """Where it is set so, and where no agents of ckptd are."""
    for trial in (Trial(running(2), act="advise"), Trial(Job(2))):
        trial.step = 24
        trial.judged(Syndrome.CRASH, 1)
        trial.begin_life()
        action = trial.judged(Syndrome.CRASH, 1, origin=24)
        assert action.decision.retreat is not None
        assert "not from step 24" in action.decision.reason
        assert why(trial, 2, 24) == ""


def test_a_crash_of_a_life_that_has_a_successor_already_counts_and_ends_nothing() -> None:
    """Warm trainers are back before the judge has heard of the death."""
    trial = Trial(running(2))
    trial.step = 24
    trial.judged(Syndrome.CRASH, 1)
    trial.rejoin()
    assert trial.job.ledger is not None
    newer = replace(trial.job.ledger.reports[0], captures=(Captures(0, 3, epoch=3),))
    scene = replace(trial.scene, ledger=replace(trial.job.ledger, reports=(newer, *trial.job.ledger.reports[1:])))
    verdict = Verdict(Syndrome.CRASH, "late", (1,), (1,), epoch=2)
    for expected in (True, False):
        facts = facts_of(scene, 24, (0, 1), origin=24, stood=24)
        action = trial.bailiff.take(INCIDENT, verdict, facts, scene, trial.job.now)
        assert (action.decision.act, action.ends_life) == (Act.IGNORE, False)
        assert (action.decision.retreat is not None) == expected
    assert trial.run() == 1
    assert why(trial, 2, 24)
    assert trial.run(AGENTS_S) == 0
    assert trial.goes_on()
