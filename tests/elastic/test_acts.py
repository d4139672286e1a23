"""A rank hangs, and nobody but the daemons acts: who it was, the restart, and the same losses as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster
from tests.elastic import hanging_worker
from tests.elastic.jobs import Agents, agents, over
from tests.payload import JOB

from ckptd.daemon.observe.incidents import TIMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STEPS, CULPRIT, AT = 60, 1, 30
HANG_S = 15.0
FENCED_S = 3.0
"""From the verdict to the end of a culprit that hangs, with what the court's second adds."""


def undisturbed() -> dict[tuple[int, int], str]:
    """By rank and step, the losses of both ranks computed here, without processes: what gloo adds up, added up."""
    model, optimizer = hanging_worker.made()
    losses = {}
    for step in range(1, STEPS + 1):
        for rank in range(2):
            losses[rank, step] = float(hanging_worker.loss_of(model, rank, step).detach()).hex()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def losses(job: Agents) -> dict[tuple[int, int], set[str]]:
    """By rank and step, every loss that any life has written."""
    found: dict[tuple[int, int], set[str]] = {}
    for path in job.folder.glob("losses-*.jsonl"):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            found.setdefault((said["rank"], said["step"]), set()).add(said["loss"])
    return found


def incidents(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.document(0, "Incidents")["incidents"]
    return found


def test_a_rank_that_hangs_is_named_and_the_job_restarts_by_itself_with_the_same_losses() -> None:
    """One restart, one incident, the whole timeline; and no trainer's failure is counted for it."""
    with Cluster(2, parity=1) as cluster, agents() as job:
        worker = str(Path(hanging_worker.__file__))
        script = (worker, str(job.folder), str(STEPS), str(CULPRIT), str(AT))
        for node in range(2):
            options = ("--nnodes", "2", "--nproc-per-node", "1", "--warm-workers", "--max-restarts", "0")
            job.start(str(node), cluster.run_dir(node), *options, script=script)
        assert {name: process.wait(60.0) for name, process in job.processes.items()} == {"0": 0, "1": 0}

        (incident,) = incidents(cluster)
        assert incident["verdict"]["class"] == "non-communication hang"
        assert incident["verdict"]["suspects"] == {"ranks": [CULPRIT], "nodes": [1], "links": []}
        assert incident["decision"]["act"] == "restart in place"
        assert incident["decision"]["done"] == "the agents were asked to restart"
        assert incident["chosen"]["step"] >= AT - 2
        assert not incident["open"]

        times = [incident["times"][name] for name in TIMES]
        assert times == sorted(times)
        fault, detected, isolated, *_ = times
        assert abs(fault - float((job.folder / "hung").read_text())) < 2.0
        assert detected - fault < HANG_S
        assert isolated - detected < FENCED_S

        assert len(cluster.events(0, "round")) == 2
        assert over(cluster, 0)[0].startswith(f"rank {CULPRIT}: no movement for ")
        shown = [sys.executable, "-m", "ckptd.daemon.cli", "incidents", "1", "--run-dir", str(cluster.run_dir(0))]
        told = subprocess.run([*shown, "--job", JOB], capture_output=True, check=True, timeout=30, text=True).stdout
        assert "decision: restart in place" in told

        expected = undisturbed()
        assert losses(job) == {key: {loss} for key, loss in expected.items()}
