"""The court acts: what is decided and done is in the record, with the whole timeline from the fault to the next step."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.agents import Job as Agents
from tests.agents import running
from tests.observe.test_court import Job

from ckptd.ckpt.model import Version
from ckptd.ckpt.sighting import Decided
from ckptd.daemon.launch_events import BarAsked, RestartAsked
from ckptd.daemon.observe.bailiff import Scene
from ckptd.daemon.observe.court import QUIET_S
from ckptd.daemon.observe.incidents import TIMES
from ckptd.daemon.watch.observations import GroupProgress, Phase, Process, RankDigest


class Acting:
    """Two ranks whose agents are asked what their court wants."""

    def __init__(self, folder: Path, agents: Agents) -> None:
        self.job, self.agents = Job(folder), agents
        self.asked: list[RestartAsked | BarAsked] = []
        self.job.court.on_errand = self.ask
        self.see()

    def ask(self, event: RestartAsked | BarAsked) -> str:
        self.asked.append(event)
        return self.agents.ask(0, event)

    def see(self) -> None:
        """What the agents and their rounds have come to is known to the court."""
        self.agents.now = self.job.now
        self.agents.tell()
        self.job.scene = Scene(self.agents.ledger, self.agents.rounds.breach)

    def hang(self, rank: int, seconds: int) -> None:
        """A rank stands still, and the other waits for it."""
        other = self.job.digests[1 - rank].step
        self.job.set(1 - rank, groups=(GroupProgress(5, other + 1, other, 1),))
        self.wait(seconds)

    def wait(self, seconds: int) -> None:
        """Time passes, and nothing moves."""
        for _ in range(seconds):
            self.job.train(1, moving=())
            self.see()

    def end_trainers(self) -> None:
        """The agents end their trainers; some time later they die."""
        for rank in range(2):
            self.job.set(rank, process=Process.GONE, exit=-9)

    def next_life(self) -> None:
        for node in range(2):
            self.agents.join(node)
        self.job.epoch += 1
        self.job.digests = [RankDigest(rank, step=40, phase=Phase.START) for rank in range(2)]
        self.see()


@pytest.fixture
def acting(tmp_path: Path) -> Acting:
    return Acting(tmp_path, running(2))


def test_a_hang_is_acted_on_and_its_record_has_the_whole_timeline(acting: Acting) -> None:
    """One incident, however the trainers die of the restart, and however long the next life takes to begin."""
    acting.job.train(10)
    acting.hang(1, 8)
    assert len(acting.asked) == 1
    acting.end_trainers()
    acting.wait(int(QUIET_S) + 5)
    assert acting.job.incidents[0]["open"]
    acting.next_life()
    acting.wait(1)
    acting.job.train(3)
    (found,) = acting.job.incidents
    assert found["decision"]["act"] == "restart in place"
    assert found["decision"]["done"] == "the agents were asked to restart"
    assert "it waits in no collective" in found["decision"]["reason"]
    times = [found["times"][name] for name in TIMES]
    assert times == sorted(times)
    assert times[2] > times[1], "it was over before its processes were"
    assert not found["open"]
    assert len(acting.asked) == 1


def test_without_agents_the_advice_is_in_the_record_and_in_the_status(tmp_path: Path) -> None:
    """And the incident is over when the hang ends by itself."""
    acting = Acting(tmp_path, Agents(2))
    acting.job.train(10)
    acting.hang(1, 8)
    decided = acting.job.court.suspicions()[0]["decision"]
    assert decided["act"] == "restart in place"
    assert "advice only" in decided["done"]
    assert acting.asked == []
    acting.job.train(int(QUIET_S) + 3)
    assert [item["open"] for item in acting.job.incidents] == [False]


def test_what_is_refused_is_in_the_record_once_for_each_reason(acting: Acting) -> None:
    """It is asked again and again, and the record stays short."""
    acting.job.court.on_errand = lambda _: "no collector was heard yet"
    acting.job.train(10)
    acting.hang(1, 60)
    entries = acting.job.court.recorded(1)["entries"]
    assert [e["done"] for e in entries if e["event"] == "acted"] == ["refused: no collector was heard yet"]


def test_a_slow_rank_is_watched_with_what_it_costs(acting: Acting) -> None:
    """It is not worth a restart yet: that is said once, and nobody is asked for anything."""
    for slow_s in (0.1, 0.3):
        for rank, own_s in ((0, 0.1), (1, slow_s)):
            acting.job.set(rank, own_s=(own_s,) * 10)
        acting.job.train(20, step_s=slow_s)
    decided = [
        e for e in acting.job.court.recorded(0)["incidents"] if e["verdict"]["class"] == "non-communication slow"
    ]
    assert [item["decision"]["act"] for item in decided] == ["warn"]
    assert "not worth a restart yet" in decided[0]["decision"]["reason"]
    entries = acting.job.court.recorded(decided[0]["id"])["entries"]
    assert [entry["event"] for entry in entries].count("decided") == 1
    assert acting.asked == []


def test_nobody_asks_for_anything_in_a_healthy_job(acting: Acting) -> None:
    """A long run with agents: no decision, no errand."""
    for _ in range(60):
        acting.job.train(1)
        acting.see()
    assert acting.asked == []
    assert acting.job.incidents == []
    assert acting.agents.round.runs


def test_an_operator_s_restart_leaves_no_incident(acting: Acting) -> None:
    """The trainers that are ended for it have not crashed."""
    acting.job.train(10)
    acting.see()
    acting.agents.restart(1, "new settings")
    acting.see()
    acting.end_trainers()
    acting.wait(3)
    acting.next_life()
    acting.job.train(3)
    assert acting.job.incidents == []


def test_a_node_s_loss_is_recorded_with_its_place_kept_free(acting: Acting) -> None:
    """The survivor that dies of it, a moment before the node counts as lost, is no incident, also when the node is back."""
    acting.job.train(10)
    acting.job.set(0, process=Process.GONE, exit=1)
    acting.job.say((0,))
    acting.agents.lost.add(1)
    acting.see()
    acting.job.train(3, moving=(), speaking=(0,))
    acting.agents.lost.clear()
    acting.see()
    acting.job.set(1, process=Process.GONE, exit=-9)
    acting.job.train(3, moving=())
    (found,) = acting.job.incidents
    assert found["verdict"]["class"] == "node lost"
    assert found["verdict"]["suspects"] == {"ranks": [1], "nodes": [1], "links": []}
    assert found["decision"]["done"].startswith("its place is free for who comes")
    assert {"t_fault", "t_detected", "t_isolated"} == set(found["times"])
    assert acting.asked == []


def test_a_second_crash_at_the_same_step_is_recorded_with_what_is_barred_for_it(acting: Acting) -> None:
    """The step where the culprit stood counts, not that of a rank that was one further."""
    acting.job.train(10)
    step = acting.job.digests[0].step
    acting.job.set(0, step=step + 1)
    acting.job.set(1, process=Process.GONE, exit=-9)
    acting.wait(1)
    acting.end_trainers()
    acting.next_life()
    acting.job.decided = Decided(acting.job.epoch, step - 5, "own")
    acting.job.digests = [RankDigest(rank, step=step - 5, phase=Phase.START) for rank in range(2)]
    acting.wait(1)
    acting.job.train(1)
    acting.job.set(0, step=step + 1)
    acting.job.set(1, process=Process.GONE, exit=-9)
    acting.wait(1)
    retreats = [item["decision"]["retreat"] for item in acting.job.incidents]
    assert retreats == [{"step": step - 5, "reason": f"trainers crashed 2 times at step {step} after it"}, None]
    assert acting.agents.ledger is not None
    assert acting.agents.ledger.barred.why(Version(1, step - 5))
    entries = acting.job.court.recorded(acting.job.incidents[0]["id"])["entries"]
    assert any("no life begins from" in entry["done"] for entry in entries if entry["event"] == "acted")
