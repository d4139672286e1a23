"""A job whose newest step is poisoned comes back from an older one by itself, and says so wherever one looks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.elastic.jobs import agents

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WORKER = Path(__file__).with_name("poisoned_worker.py")
STEPS, POISON, DIES_AFTER = 26, 12, 23


def test_a_job_that_crashes_again_at_the_same_step_goes_on_from_an_older_one() -> None:
    """The second life begins from the newest step and dies where the first did; the third from one before it."""
    with Cluster(1, parity=0, persist_every=8) as cluster, agents() as job:
        script = (str(WORKER), str(job.folder), *map(str, (STEPS, POISON, DIES_AFTER)))
        options = ("--nnodes", "1", "--nproc-per-node", "1", "--warm-workers")
        job.start("0", cluster.run_dir(0), *options, script=script)
        assert job.processes["0"].wait(90.0) == 0
        assert (job.folder / "lives").read_text().split() == ["0", "16", "8"]

        found = cluster.document(0, "Incidents")["incidents"]
        why = f"trainers crashed 2 times at step {DIES_AFTER} after it"
        assert [item["decision"]["retreat"] for item in found] == [{"step": 16, "reason": why}, None]
        assert [item["chosen"]["step"] for item in found] == [8, 16]
        assert cluster.document(0, "Status")["barred"] == [{"epoch": 2, "step": 16, "reason": why, "alone": False}]
        assert f"passed over step 16 (epoch 1): {why}" in cluster.events(0, "decided")[-1]["reason"]
