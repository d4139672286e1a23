"""The collector's own node is lost: its successor says so, with what it has from that one's last ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.agents import LOST_AFTER_S, running
from tests.agents import Job as Agents
from tests.observe.test_court import Job

from ckptd.ckpt.inventory import Captures, Ledger
from ckptd.ckpt.sighting import Decided
from ckptd.daemon.observe.bailiff import Predecessor, Scene
from ckptd.daemon.rounds import Rounds
from ckptd.daemon.watch.observations import Phase, Process, RankDigest

EPOCH = 3


class Takeover:
    """A job of two ranks whose node 0 led; a court that sits at node 1 from now on. A third node may wait as a spare."""

    def __init__(self, folder: Path, agents: Agents) -> None:
        self.agents, self.job = agents, Job(folder)
        self.job.epoch = EPOCH
        self.job.digests = [RankDigest(rank, step=50) for rank in range(2)]
        assert agents.ledger is not None
        self.last = self.with_trainers(agents.ledger)
        self.heard = self.job.now - LOST_AFTER_S

    def with_trainers(self, ledger: Ledger) -> Ledger:
        """The ledger with the captures of ranks 0 and 1."""
        reports = [
            replace(r, captures=(Captures(r.node, 1, epoch=EPOCH),)) if r.node < 2 else r for r in ledger.reports
        ]
        return replace(ledger, reports=tuple(reports))

    def lose(self, node: int = 0) -> None:
        """Node 0 is lost, and node 1 leads after it."""
        successor = Rounds("boot-1", LOST_AFTER_S)
        successor.follow(self.last)
        self.agents.rounds, self.agents.lost, self.agents.now = successor, {node}, self.job.now
        self.see()

    def see(self) -> None:
        self.agents.tell()
        assert self.agents.ledger is not None
        ledger = replace(self.agents.ledger, collector=1)
        self.job.scene = Scene(ledger, self.agents.rounds.breach, LOST_AFTER_S, Predecessor(self.last, self.heard))

    def next_life(self, *nodes: int) -> None:
        """The agents of these nodes go on, one rank each; they were restored from step 47."""
        for node in nodes:
            self.agents.join(node)
        self.see()
        self.job.epoch, self.job.decided = EPOCH + 1, Decided(EPOCH + 1, 47, "parity")


@pytest.fixture
def takeover(tmp_path: Path) -> Takeover:
    return Takeover(tmp_path, running(3, 2, 2))


def test_the_loss_of_the_collector_s_own_node_is_a_verdict_at_once(takeover: Takeover) -> None:
    """With the same fields as any lost node's: who, since when, who heard it last; what is done is what the rounds do."""
    takeover.lose()
    takeover.job.now += 0.5
    takeover.job.say((1,))
    (found,) = takeover.job.incidents
    verdict = found["verdict"]
    assert (verdict["class"], verdict["epoch"]) == ("node lost", EPOCH)
    assert verdict["suspects"] == {"ranks": [0], "nodes": [0], "links": []}
    assert verdict["evidence"] == {"silent_s": LOST_AFTER_S + 0.5}
    assert verdict["reason"] == (
        "node 1 has taken over as collector: it has not heard node 0, the collector before, for 2.5 s, more than 2 s"
    )
    assert found["times"]["t_fault"] == takeover.heard
    assert set(found["times"]) == {"t_fault", "t_detected", "t_isolated"}
    assert found["decision"]["done"] == "its place is free for who comes, and the agents restart: node 0 is lost"


def test_what_becomes_of_it_is_recorded_by_the_successor(takeover: Takeover) -> None:
    """A spare takes the seat: the record has what was restored, the lost steps, the first step, and an end."""
    takeover.lose()
    takeover.job.say((1,))
    takeover.next_life(1, 2)
    takeover.job.digests = [RankDigest(rank, step=47, phase=Phase.START) for rank in (1, 0)]
    for seconds in range(3):  # rank 1 stays at node 1, rank 0 is at node 2 now
        takeover.job.now += 1.0
        takeover.job.digests = [replace(d, step=47 + 5 * seconds) for d in takeover.job.digests]
        takeover.job.say_as({1: 1, 2: 0})
    (found,) = takeover.job.incidents
    assert found["chosen"] == {"epoch": EPOCH + 1, "step": 47, "tier": "parity"}
    assert found["lost_steps"] == 3
    assert not found["open"]
    assert {"t_state_ready", "t_first_step"} <= set(found["times"])


def test_survivors_that_their_agents_have_ended_are_no_crash(takeover: Takeover) -> None:
    """The survivor's death comes to light with its first sighting, when the next round is there already."""
    takeover.lose()
    for node in (1, 2):
        takeover.agents.join(node)
    takeover.see()
    takeover.job.set(1, process=Process.GONE, exit=-9, gone_s=0.1)
    takeover.job.say((1,))
    takeover.job.now += 1.0
    takeover.job.say((1,))
    assert [item["verdict"]["class"] for item in takeover.job.incidents] == ["node lost"]
    assert "another round is the newest" in takeover.job.incidents[0]["decision"]["done"]


def test_a_collector_that_came_back_is_not_lost(takeover: Takeover) -> None:
    """Nobody is, as long as all report: the successor of one whose reports come has nothing to say."""
    takeover.see()
    for _ in range(5):
        takeover.job.now += 1.0
        takeover.job.say((1,))
    assert takeover.job.incidents == []


def test_a_record_does_not_stay_open_at_who_is_the_collector_no_more(takeover: Takeover) -> None:
    """The replacement has the lost node's place, and leads as that one did."""
    takeover.lose()
    takeover.job.say((1,))
    takeover.job.court.adjourn(takeover.job.now + 3.0)
    (found,) = takeover.job.incidents
    assert not found["open"]
    assert takeover.job.court.recorded(found["id"])["entries"][-1] == {
        "t": takeover.job.now + 3.0, "event": "closed", "reason": "another node is the collector from here on",
    }  # fmt: skip
