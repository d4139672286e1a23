"""Every way of training in `matrix.py` goes on bit by bit after a restart in fresh objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.fakes import FakeChannel
from tests.integrations.matrix import JOBS, KEPT, SLOW, STEPS, Job

from ckptd.ckpt.model import Version
from ckptd.integrations.checkpointer import Checkpointer


def assert_goes_on(directory: Path, make: Callable[[], Job]) -> None:
    """Train through, capturing every step; restore the `KEPT`th into fresh objects and compare all that follows."""
    torch.manual_seed(0)
    job = make()
    with Checkpointer(job="job", channel=FakeChannel(directory), on_error="raise", **job.objects) as ck:
        losses = []
        for step in range(1, STEPS + 1):
            losses.append(job.update())
            ck.step(step)
        expected = job.fingerprint()
    assert ck.stats.captured == STEPS
    channel = FakeChannel(directory)
    for step in range(KEPT + 1, STEPS + 1):
        channel.image(Version(1, step)).unlink()
    torch.manual_seed(99)
    again = make()
    with Checkpointer(job="job", channel=channel, on_error="raise", **again.objects) as ck:
        assert ck.restore() == KEPT
        assert [again.update() for _ in range(STEPS - KEPT)] == losses[KEPT:]
    assert again.fingerprint() == expected


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_restart_changes_nothing(tmp_path: Path, name: str) -> None:
    """Losses, parameters, buffers, optimizer state, schedules and random numbers are those of the uninterrupted run."""
    assert_goes_on(tmp_path, JOBS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.filterwarnings("ignore")
def test_a_restart_changes_nothing_compiled(tmp_path: Path, name: str) -> None:
    """The same where torch compiles the model."""
    assert_goes_on(tmp_path, SLOW[name])
