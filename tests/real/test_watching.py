"""Real ranks over gloo beside real daemons: what goes wrong is recorded with its culprit in time; what is harmless, not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from tests.cluster import Cluster, until
from tests.payload import JOB
from tests.real.watched import Watched

from ckptd.daemon.observe.incidents import TIMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

START_S = 60.0
"""Until the ranks have begun, on a machine that is busy with other things."""
HANG_S = 15.0
DEATH_S = 1.0


def times(incident: dict[str, Any]) -> float:
    """From the fault to the verdict, in seconds."""
    found: float = incident["times"]["t_detected"] - incident["times"]["t_fault"]
    return found


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("sleep:2:60", "it waits in no collective"),
        ("gil:1:60", "something holds the GIL"),
        ("stop:1:60", "its process is stopped"),
    ],
)
def test_a_hang_has_its_culprit(fault: str, said: str) -> None:
    """A rank that sleeps in its own code, one that holds the interpreter's lock in a C call, and one that is stopped."""
    what, culprit, _ = fault.split(":")
    world = 4 if what == "sleep" else 2
    with Cluster(world, parity=1) as cluster, Watched(cluster, world, 4000, fault) as ranks:
        incident = ranks.first_incident(START_S + HANG_S)
        assert incident["verdict"]["class"] == "non-communication hang"
        assert incident["verdict"]["suspects"]["ranks"] == [int(culprit)]
        assert times(incident) < HANG_S
        assert ranks.status()["suspicions"][0]["incident"] == incident["id"]
        until(lambda: said in ranks.status()["suspicions"][0]["reason"], said, 10.0)  # what it does may be seen later
        if what == "sleep":
            until(lambda: "in misbehave" in ranks.shown(cluster.run_dir(0)), "the culprit's stack")


def test_a_death_is_noticed_at_once_and_the_next_life_is_told() -> None:
    """Who was killed is named before who broke down for that; the record goes on to the restart's first step."""
    with Cluster(2, parity=1) as cluster:
        with Watched(cluster, 2, 4000, "kill:1:60") as ranks:
            incident = ranks.first_incident(START_S)
            assert incident["verdict"]["class"] == "crash"
            assert incident["verdict"]["suspects"] == {"ranks": [1], "nodes": [1], "links": []}
            assert "SIGKILL" in incident["verdict"]["reason"]
            assert times(incident) < DEATH_S
        with Watched(cluster, 2, 4000) as ranks:
            until(lambda: not ranks.incidents()[-1]["open"], "the record is closed", START_S)
            incident = ranks.incidents()[-1]
            assert incident["chosen"]["step"] == 50
            assert incident["chosen"]["tier"] in ("own", "peer")
            assert 5 <= incident["lost_steps"] <= 10
            assert set(incident["times"]) == set(TIMES)
            assert "advice only" in incident["decision"]["done"]


def test_a_slow_rank_is_named() -> None:
    """A rank whose own work takes 150 ms longer from step 100 on. A quiet machine takes 11 steps, a busy one some more."""
    with Cluster(2, parity=1) as cluster, Watched(cluster, 2, 4000, "slow:1:100") as ranks:
        incident = ranks.first_incident(START_S)
        assert incident["verdict"]["class"] == "non-communication slow"
        assert incident["verdict"]["suspects"]["ranks"] == [1]
        newest = cluster.document(0, "Status")["captured"]["step"]
        assert 100 <= newest <= 200  # every tenth is captured, and heard of later


def test_a_long_evaluation_is_nobody_s_fault() -> None:
    """9 s in which one rank evaluates and the other waits for it; then they train on, and end."""
    with Cluster(2, parity=1) as cluster, Watched(cluster, 2, 120, "eval:1:60") as ranks:
        until(lambda: all(rank.poll() == 0 for rank in ranks.ranks), "the end of the training", START_S + 30)
        assert ranks.incidents() == []
        assert ranks.status() == {"suspicions": [], "remarks": []}
        command = [sys.executable, "-m", "ckptd.daemon.cli", "incidents", "--job", JOB, "--json"]
        done = subprocess.run(
            [*command, "--run-dir", str(cluster.run_dir(0))], capture_output=True, check=True, timeout=60
        )
        assert json.loads(done.stdout)["incidents"] == []
