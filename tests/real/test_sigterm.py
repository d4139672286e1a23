"""SIGTERM with a grace time: the last step is on storage before the trainers are gone, and the training goes on from it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tests.real.training import SLOWER, Training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GRACE_S = 25.0


def told_to_end(job: Training, *options: str) -> None:
    """Train for a while, send SIGTERM, and see the trainer leave within its grace time."""
    trainer = job.start(f"--sigterm-grace-s={GRACE_S}", *options)
    job.wait_step(20)
    began = time.monotonic()
    trainer.terminate()
    trainer.wait(100)
    assert time.monotonic() - began < GRACE_S
    assert trainer.returncode != 0
    assert not job.events("done")


def persisted(job: Training) -> list[int]:
    return sorted(int(path.name.removeprefix("step-").split(".")[0]) for path in (job.storage / "t").glob("step-*"))


def forget_memory(job: Training) -> None:
    """As if the nodes were given to somebody else: only storage is left."""
    job.kill_daemon()
    shutil.rmtree(job.segments)


def test_the_last_step_is_persisted_and_gone_on_from(tmp_path: Path) -> None:
    """It is one step on all ranks, though none was due for an hour, and no bit differs afterwards."""
    settings: dict[str, Any] = {"STORAGE": str(tmp_path / "storage")}
    with Training(150, ranks=2, model=SLOWER, **settings) as job:
        job.storage = tmp_path / "storage"
        expected = job.run("--no-checkpoint")
        told_to_end(job, "--every=1h")
        lasts = {job.events("step", rank)[-1]["step"] for rank in range(2)}
        # `step` returns no more on who was told; the one before it is the last that was logged.
        (step,) = persisted(job)
        assert lasts == {step - 1}
        forget_memory(job)
        assert job.run() == expected
        assert job.events("restored")[-1]["step"] == step
