"""TorchTitan's checkpoint manager with `checkpoint.folder="ckptd://t"`, beside real daemons."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.integrations.launch import run_ranks
from tests.payload import JOB

pytestmark = pytest.mark.slow

SAVED = 3


def run(cluster: Cluster, directory: Path, life: int, kill_at: int = 0) -> list[list[str]]:
    """Run two ranks; what each printed."""
    places = ",".join(str(cluster.run_dir(node)) for node in (0, 1))
    arguments = (str(directory), str(life), places, str(kill_at))
    printed = run_ranks("tests.integrations.titan_worker", 2, *arguments, environment={"CKPTD_JOB": JOB})
    return [out.split() for out in printed]


def test_the_folders_url_is_all_it_takes(tmp_path: Path) -> None:
    """Two ranks are killed and a node's memory is lost: the manager loads the newest step that it had saved, and the steps
    after it have the bits that they had before."""
    with Cluster(2, parity=1) as cluster:
        killed = run(cluster, tmp_path, 1, kill_at=SAVED)
        cluster.lose(1)
        cluster.restart(1)
        resumed = run(cluster, tmp_path, 2)
    assert [rank[0] for rank in killed + resumed] == ["0", "0", str(SAVED), str(SAVED)]
    for before, after in zip(killed, resumed, strict=True):
        assert len(set(before)) == len(before) > 1 + SAVED
        assert after[1:] == before[1 + SAVED :]
