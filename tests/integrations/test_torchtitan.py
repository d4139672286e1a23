"""TorchTitan's checkpoint manager with `checkpoint.folder="ckptd://t"`, beside real daemons.

TorchTitan wants an older `datasets`, and that an older `fsspec`, so it is no package for development. For this test:
`pip install --no-deps torchtitan==0.3.0 tyro docstring-parser typeguard einops spmd_types==0.2.3 tensorboard absl-py`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.integrations.launch import run_ranks
from tests.payload import JOB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("torchtitan") is None, reason="torchtitan is not installed"),
]


def run(cluster: Cluster, directory: Path, life: int, kill_at: int = 0) -> list[list[str]]:
    """Run two ranks; what each printed."""
    places = ",".join(str(cluster.run_dir(node)) for node in (0, 1))
    arguments = (str(directory), str(life), places, str(kill_at))
    printed = run_ranks("tests.integrations.titan_worker", 2, *arguments, environment={"CKPTD_JOB": JOB})
    return [out.split() for out in printed]


def test_the_folders_url_is_all_it_takes(tmp_path: Path) -> None:
    """Two ranks are killed and a node's memory is lost: the manager loads the newest step, and the training ends with the
    bits of one that was not interrupted."""
    with Cluster(2, parity=1) as cluster:
        killed = run(cluster, tmp_path, 1, kill_at=3)
        cluster.lose(1)
        cluster.restart(1)
        resumed = run(cluster, tmp_path, 2)
    with Cluster(2, parity=1) as cluster:
        whole = run(cluster, tmp_path, 3)
    assert [rank[0] for rank in killed + resumed + whole] == ["0", "0", "3", "3", "0", "0"]
    assert resumed[0][-1] == resumed[1][-1] == whole[0][-1]
