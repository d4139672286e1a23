"""What becomes of a health checker's word: a warning while the job trains, no second chance when the node is to blame."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.observe.test_court import Job

from ckptd.daemon.observe.court import QUIET_S
from ckptd.daemon.watch.observations import Process
from ckptd.daemon.watch.policy import Act, Facts, Policy
from ckptd.daemon.watch.verdicts import Syndrome, Verdict

FACTS = Facts(step=10, nodes=(0, 1, 2), nodes_min=2, sick={1: "health: ECC"})
CRASH = Verdict(Syndrome.CRASH, "rank 1 went", ranks=(1,), nodes=(1,), epoch=1)


def test_a_sick_node_is_an_incident_and_the_job_goes_on(tmp_path: Path) -> None:
    """As long as its checker says so."""
    job = Job(tmp_path)
    job.train(5)
    for _ in range(3):
        job.now += 1.0
        job.say((1,), sick="health: ECC")
    found = job.incidents[0]
    assert found["verdict"]["class"] == "node unhealthy"
    assert found["verdict"]["suspects"] == {"ranks": [], "nodes": [1], "links": []}
    assert "node 1: health: ECC" in found["verdict"]["reason"]
    assert found["decision"]["act"] == "warn"
    job.train(int(QUIET_S) + 2)
    assert [item["open"] for item in job.incidents] == [False]


def test_who_is_to_blame_and_sick_is_isolated_at_once(tmp_path: Path) -> None:
    """Where a node that is well is given another chance, and where enough others are left."""
    decided = Policy().decide(CRASH, FACTS, 0.0)
    assert (decided.act, decided.nodes) == (Act.ISOLATE, (1,))
    assert "the checker of node 1 says: health: ECC" in decided.reason
    well = Facts(step=10, nodes=(0, 1, 2), nodes_min=2)
    assert Policy().decide(CRASH, well, 0.0).act is Act.RESTART
    few = Facts(step=10, nodes=(0, 1), nodes_min=2, sick=FACTS.sick)
    assert Policy().decide(CRASH, few, 0.0).act is Act.RESTART


@pytest.mark.parametrize("suspects", [(0,), (0, 2)])
def test_a_sick_node_that_nobody_suspects_is_not_to_blame(suspects: tuple[int, ...]) -> None:
    verdict = Verdict(Syndrome.CRASH, "it went", ranks=suspects, nodes=suspects, epoch=1)
    assert Policy().decide(verdict, FACTS, 0.0).act is Act.RESTART


def test_a_crash_on_a_sick_node_is_recorded_with_the_checker_s_word(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.train(5)
    job.say((1,), sick="health: ECC")
    job.set(1, process=Process.GONE, exit=-9)
    job.say((0, 1), sick="health: ECC")
    crash = next(item for item in job.incidents if item["verdict"]["class"] == "crash")
    assert "the checker of node 1 says: health: ECC" in crash["decision"]["reason"]
