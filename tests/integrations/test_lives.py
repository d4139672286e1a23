"""Trainings that come back with another number of ranks from real daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster
from tests.integrations.launch import ROOT
from tests.payload import JOB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


class Lives:
    """Runs one life of the job after the other; rank r lives beside the daemon of `nodes[r]` or the last of them."""

    def __init__(self, cluster: Cluster, process: subprocess.Popen[str]) -> None:
        self._cluster, self._process = cluster, process

    def run(self, layout: str, world: int, mode: str, nodes: list[int]) -> list[dict[str, Any]]:
        """What each rank found."""
        run_dirs = [str(self._cluster.run_dir(node)) for node in nodes]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        life = {"layout": layout, "world": world, "mode": mode, "run_dirs": run_dirs}
        print(json.dumps(life), file=self._process.stdin, flush=True)
        found: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        assert not [rank["error"] for rank in found if "error" in rank]
        return found

    def train(self, layout: str, world: int, nodes: list[int]) -> tuple[str, list[dict[str, Any]]]:
        """A life that begins anew; the digest of the state that it leaves."""
        found = self.run(layout, world, "train", nodes)
        assert {rank["reached"] for rank in found} == {"sealed"}
        assert len({rank["digest"] for rank in found}) == 1
        return found[0]["digest"], found

    def restored(self, layout: str, world: int, mode: str, nodes: list[int]) -> tuple[set[str], list[dict[str, Any]]]:
        """A life that restores; the digests of what its ranks have then."""
        found = self.run(layout, world, mode, nodes)
        return {rank["restored"] for rank in found}, found


@contextmanager
def lives(cluster: Cluster, directory: Path) -> Iterator[Lives]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CKPTD_")}
    own = {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "CKPTD_JOB": JOB}
    command = [sys.executable, "-m", "tests.integrations.lives_worker", str(directory)]
    with subprocess.Popen(
        command, cwd=ROOT, env=clean | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Lives(cluster, process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def test_a_job_comes_back_with_another_number_of_ranks(tmp_path: Path) -> None:
    """Parameters, optimizer state and schedule are equal bit by bit: DDP 2 to 1 and 3, FSDP2 4 to 8, 1 and 2, from there to
    3 and to tensor parallelism under FSDP2, hybrid sharding to FSDP2 after a node and its memory were lost. Random numbers
    and position follow their rules, and what the new ranks capture is sealed."""
    with Cluster(4, parity=1) as cluster, lives(cluster, tmp_path) as job:
        state, before = job.train("ddp", 2, [0, 1])
        alone, (one,) = job.restored("ddp", 1, "look", [2])
        assert alone == {state}
        assert (one["random"], one["before"]) == (before[0]["random"], 3 * (1 + 2))
        three, found = job.restored("ddp", 3, "go_on", [0, 1, 2])
        assert three == {state}
        assert {rank["reached"] for rank in found} == {"sealed"}

        state, _ = job.train("fsdp", 4, [0, 1, 2, 3])
        assert job.restored("fsdp", 8, "look", [0, 1, 2, 3])[0] == {state}
        assert job.restored("fsdp", 1, "look", [3])[0] == {state}
        two, found = job.restored("fsdp", 2, "go_on", [1, 2])
        assert two == {state}
        state = found[0]["digest"]
        assert job.restored("fsdp", 3, "look", [0, 1, 3])[0] == {state}
        assert job.restored("tensor_parallel", 4, "look", [0, 1, 2, 3])[0] == {state}

        state, _ = job.train("hsdp", 4, [0, 1, 2, 3])
        cluster.lose(3)
        cluster.wait_lost(3)
        assert job.restored("fsdp", 3, "look", [0, 1, 2])[0] == {state}
        assert "parity" in cluster.events(0, "gathered")[-1]["sources"]
