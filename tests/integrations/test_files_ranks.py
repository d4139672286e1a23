"""Real ranks of FSDP2 save by stock torch.distributed.checkpoint to `ckptd://`, beside real daemons."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.integrations.files_worker import STEPS
from tests.integrations.launch import run_ranks
from tests.payload import JOB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MODULE = "tests.integrations.files_worker"


def run(cluster: Cluster, directory: Path, life: int, nodes: list[int], kill_at: int = 0) -> list[list[str]]:
    """Run two ranks; what each printed."""
    places = ",".join(str(cluster.run_dir(node)) for node in nodes)
    arguments = (str(directory), str(life), places, str(kill_at))
    return [out.split() for out in run_ranks(MODULE, 2, *arguments, environment={"CKPTD_JOB": JOB})]


def test_a_killed_training_goes_on_from_the_folders_url(tmp_path: Path) -> None:
    """Both ranks are killed in the save of a step and a node's memory is lost: that step does not exist, the one before
    comes back, one rank's files from parity, and the training goes on with the same bits."""
    with Cluster(2, parity=1) as cluster:
        killed = run(cluster, tmp_path, 1, [0, 1], kill_at=STEPS)
        cluster.lose(1)
        cluster.restart(1)
        resumed = run(cluster, tmp_path, 2, [0, 1])
    assert [rank[0] for rank in killed] == ["0", "0"]
    assert resumed == [[str(STEPS - 1), killed[0][-1]]] * 2
