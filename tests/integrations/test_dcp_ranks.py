"""Real ranks of FSDP2 with AdamW save by `ckptd.dcp` into real daemons, and other numbers of ranks come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster
from tests.integrations.launch import run_ranks
from tests.payload import JOB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MODULE = "tests.integrations.dcp_worker"


def run(cluster: Cluster, world: int, directory: Path, mode: str, nodes: list[int]) -> list[dict[str, Any]]:
    """Run all ranks, rank r beside the daemon of `nodes[r]` or the last of them; what each printed."""
    places = ",".join(str(cluster.run_dir(node)) for node in nodes)
    printed = run_ranks(MODULE, world, str(directory), mode, places, environment={"CKPTD_JOB": JOB})
    return [json.loads(out.splitlines()[-1]) for out in printed]


def test_four_ranks_come_back_as_two_one_and_three(tmp_path: Path) -> None:
    """Parameters, optimizer state and plain values are equal bit by bit: four ranks' save on two, and what these save anew
    on one and three, after the coordinator's node was lost: its image, with DCP's metadata, is decoded from parity. The
    second save in a thread copies less than the first: what is left are shards whose memory is padded."""
    with Cluster(4, parity=1) as cluster:
        saved = run(cluster, 4, tmp_path, "save", [0, 1, 2, 3])
        digest = saved[0]["digests"][-1]
        assert [rank["digests"][-1] for rank in saved] == [digest] * 4
        assert all(second < first for first, second in (rank["copied"] for rank in saved))
        assert [rank["digest"] for rank in run(cluster, 2, tmp_path, "load", [1, 2])] == [digest] * 2
        refused = run(cluster, 2, tmp_path, "wrong", [0, 1])
        assert {(rank["kind"], rank["changed"]) for rank in refused} == {("StateError", False)}
        assert "float32 [33, 8] in the checkpoint, float32 [35, 8] here" in refused[0]["error"]
        cluster.lose(1)
        cluster.wait_lost(1)
        for world, nodes in ((1, [0]), (3, [0, 2, 3])):
            assert [rank["digest"] for rank in run(cluster, world, tmp_path, "load", nodes)] == [digest] * world
        assert "parity" in cluster.events(3, "gathered")[-1]["sources"]


def test_another_mesh_loads_what_one_has_saved(tmp_path: Path) -> None:
    """FSDP to hybrid sharding, that to tensor parallelism under FSDP, and that to FSDP again: equal bit by bit."""
    with Cluster(1, parity=0) as cluster:
        for rank in run(cluster, 4, tmp_path, "meshes", [0]):
            assert len(rank["pairs"]) == 3
            assert [before for before, _ in rank["pairs"]] == [after for _, after in rank["pairs"]]
