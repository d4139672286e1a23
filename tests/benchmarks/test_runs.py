"""One real run: what the comparison rests on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
from benchmarks.cluster import SHM
from benchmarks.peers import named
from benchmarks.runs import Plan, RunFailedError, measure
from benchmarks.venvs import Ready
from benchmarks.workload import Workload

PLAN = Plan(state_bytes=4 << 20, matmuls=1, steps=2, every=1, threads=1)
HERE = Ready(Path(sys.executable), "0")


def test_the_workload_changes_with_each_update_and_is_the_same_for_the_same_seed() -> None:
    """And its state is what was asked for, to within the optimizer's step counts."""
    one, other = (Workload(4 << 20, matmuls=1, seed=3) for _ in range(2))
    assert one.digest() == other.digest()
    assert abs(one.state_bytes() - (4 << 20)) < 4096
    one.update()
    assert one.digest() != other.digest()
    other.load(one.state())
    assert one.digest() == other.digest()


def test_a_state_too_small_for_its_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes of state"):
        Workload(1 << 20, matmuls=1, seed=1)


@pytest.mark.slow
def test_a_run_restores_the_bytes_of_its_last_snapshot_and_leaves_nothing() -> None:
    """After the kill of the trainer and the loss of its node, which `sealed` claims. The training went on meanwhile."""
    outcome = measure(named("ckptd sealed"), HERE, PLAN)
    assert outcome.restored_ok
    assert len(outcome.measured["blocked_s"]) == PLAN.steps
    assert not list(SHM.glob(f"ckptd-bench-{os.getpid()}-*"))
    assert not [child for child in psutil.Process().children() if "benchmarks" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_system_that_fails_says_why() -> None:
    """Here: it is not installed in the environment that it is run in."""
    with pytest.raises(RunFailedError, match="No module named 'torchsnapshot'"):
        measure(named("torchsnapshot"), HERE, PLAN)
