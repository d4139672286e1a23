"""`ckptd run` on one machine: one command, and nothing stays behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from tests.cluster import shm_dir, until
from tests.elastic.jobs import RUN, Agents, agents, now

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def start(job: Agents, shm: str, *options: str) -> None:
    job.start("0", job.folder / "n0", "--nproc-per-node", "2", *options, CKPTD_SEGMENT_DIR=shm)


def test_a_job_on_one_machine_starts_its_daemon_and_takes_it_along() -> None:
    """Done: exit code 0, no process, no memory."""
    with shm_dir() as shm, agents() as job:
        begun = now()
        start(job, str(shm / "memory"))
        job.training(2, begun)
        assert job.finish() == {"0": 0}
        assert job.marked() == []
        assert list(shm.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_leaves_no_process(how: signal.Signals) -> None:
    """Also a stopped trainer is ended, within the 2 s that it has for that."""
    with shm_dir() as shm, agents() as job:
        begun = now()
        start(job, str(shm / "memory"))
        ranks = job.training(2, begun)
        os.kill(ranks[1]["pid"], signal.SIGSTOP)
        job.processes["0"].send_signal(how)
        assert job.processes["0"].wait(20.0) == 128 + how
        assert job.marked() == []
        assert list(shm.iterdir()) == []  # these trainers have captured nothing


def test_the_snapshots_of_an_interrupted_job_stay_for_the_next_start() -> None:
    """The same command goes on from them; here with a module as script, forked warm."""
    with shm_dir() as shm, agents() as job:
        memory = shm / "memory"

        def train(steps: int) -> None:
            script = ("-m", "ckptd.examples.train_gpt", "--layers=1", "--width=16", f"--steps={steps}")
            job.start("0", job.folder / "n0", "--warm-workers", script=script, CKPTD_SEGMENT_DIR=str(memory))

        train(100_000)
        until(lambda: "step step=4 " in job.log("0"), "the fourth step, which ends the capture of the third", 60.0)
        job.processes["0"].send_signal(signal.SIGINT)
        assert job.processes["0"].wait(30.0) == 128 + signal.SIGINT
        assert "snapshots stay in" in job.log("0")
        assert list(memory.glob("rank-*"))

        train(1)
        assert job.processes["0"].wait(60.0) == 0
        restored = [line for line in job.log("0").splitlines() if line.startswith("restored step=")]
        assert int(restored[-1].partition("=")[2]) >= 3


def test_trainers_whose_agent_was_killed_do_not_train_on() -> None:
    """The daemon, which goes on, ends them; the next start finds it and its memory."""
    with shm_dir() as shm, agents() as job:
        begun = now()
        start(job, str(shm / "memory"), "--warm-workers")
        job.training(2, begun)
        job.kill_alone("0")
        until(lambda: len(job.marked()) <= 1, "only the daemon lives", 10.0)
        assert (job.folder / "n0" / "ckptd.sock").exists()
        again = now()
        start(job, str(shm / "memory"))
        job.training(2, again)


def test_a_job_that_always_fails_ends_with_torchruns_code_after_its_restarts() -> None:
    with shm_dir() as shm, agents() as job:
        start(job, str(shm / "memory"), "--max-restarts", "1", "--no-python", "/bin/false")
        assert job.processes["0"].wait(60.0) == 1
        assert job.marked() == []


def test_another_backend_is_refused_before_anything_starts() -> None:
    with shm_dir() as shm, agents() as job:
        start(job, str(shm / "memory"), "--rdzv-backend", "c10d")
        assert job.processes["0"].wait(60.0) == 2
        assert "leave the option away" in job.log("0")
        assert list(shm.iterdir()) == []


def test_its_help_is_torchruns_with_what_is_ckptds() -> None:
    done = subprocess.run([sys.executable, *RUN, "--help"], capture_output=True, text=True, timeout=60.0, check=True)
    assert done.stdout.startswith("usage: ckptd run ")
    assert "--nproc-per-node" in done.stdout
    assert "--warm-workers" in done.stdout
