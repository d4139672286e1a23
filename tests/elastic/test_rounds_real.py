"""Real daemons, agents and gloo ranks: what dies or hangs is noticed, and the job goes on with everybody who is left.

Times are bounded by what is promised and by how long torch takes to be imported, which these trainers have behind them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from tests.cluster import Cluster, until
from tests.elastic.jobs import RUN, TORCHRUN, Agents, agents, formed_after_s, now, over
from tests.payload import JOB

from ckptd.ckpt.rounds import GIVEN_UP_EXIT, ISOLATED_EXIT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
REFORM_S = 2.0
"""What is promised from the word on."""
NODES = ("--nnodes", "2", "--nproc-per-node", "2")


def start(job: Agents, cluster: Cluster, *nodes: int, command: list[str] = RUN) -> None:
    warm = ("--warm-workers",) if command is RUN else ()
    for node in nodes:
        job.start(f"{node}", cluster.run_dir(node), *NODES, *warm, command=command)


def test_two_nodes_and_a_spare_survive_a_killed_rank_a_stopped_one_and_the_loss_of_the_first_node() -> None:
    """The first node has rank 0, the round's store and the collector; no other agent ends, and all end well."""
    with Cluster(3, parity=1) as cluster, agents() as job:
        begun = now()
        start(job, cluster, 0, 1)
        first = job.training(4, begun)
        assert [first[rank]["node"] for rank in range(4)] == ["0", "0", "1", "1"]
        start(job, cluster, 2)
        until(lambda: "a place: round 1 has all 2" in job.log("2"), "the spare waiting", 60.0)

        os.kill(first[3]["pid"], signal.SIGKILL)
        second = job.restarted(4)
        assert over(cluster, 0)[0].startswith("node 1: rank 3 was ended by SIGKILL")

        os.kill(second[0]["pid"], signal.SIGSTOP)
        command = [sys.executable, "-m", "ckptd.daemon.cli", "restart", "--reason", "rank 0 hangs"]
        where = ["--run-dir", str(cluster.run_dir(1)), "--job", JOB]  # any node's daemon passes it on
        subprocess.run([*command, *where], check=True, timeout=30.0, stdout=subprocess.DEVNULL)
        job.restarted(4)
        assert over(cluster, 0)[-1] == "rank 0 hangs"
        assert max(formed_after_s(cluster, 0)) < REFORM_S

        job.kill("0")
        cluster.lose(0)
        fourth = job.restarted(4)
        assert [fourth[rank]["node"] for rank in range(4)] == ["2", "2", "1", "1"]  # node 1 keeps its ranks
        assert "node 0 is lost" in over(cluster, 1)
        assert max(formed_after_s(cluster, 1)) < REFORM_S
        assert job.finish() == {"1": 0, "2": 0}


def test_a_plain_torchrun_is_isolated_with_its_own_exit_code_and_the_others_go_on_until_they_give_up() -> None:
    """With the backend as a plug-in, without TORCH_DISABLE_SHARE_RDZV_TCP_STORE, and beside a trainer that is stopped."""
    with Cluster(3, parity=1) as cluster, agents() as job:
        begun = now()
        start(job, cluster, 0, 1, command=TORCHRUN)
        first = job.training(4, begun)
        start(job, cluster, 2, command=TORCHRUN)
        until(lambda: "a place: round 1 has all 2" in job.log("2"), "the spare waiting", 60.0)

        os.kill(first[0]["pid"], signal.SIGSTOP)
        cluster.client(0).restart("it is slow", isolate=[1])
        second = job.restarted(4)
        assert max(formed_after_s(cluster, 0)) < REFORM_S
        assert {second[rank]["node"] for rank in range(4)} == {"0", "2"}
        assert job.processes["1"].wait(10.0) == ISOLATED_EXIT
        assert "this node is isolated: it is slow" in job.log("1")

        cluster.client(2).restart("no progress in 5 restarts", give_up=True)
        assert [job.processes[name].wait(30.0) for name in ("0", "2")] == [GIVEN_UP_EXIT, GIVEN_UP_EXIT]
