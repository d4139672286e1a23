"""The batch script for Slurm, run as it is with stand-ins for Slurm's commands and for ckptd: what it decides."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster import until
from tests.examples.scripts import BASH, EXAMPLES

from ckptd.ckpt.rounds import GIVEN_UP_EXIT, ISOLATED_EXIT

pytestmark = pytest.mark.slow
NODES = 3
STUBS = {
    # Each task in a process of its own, as on a node of its own; knows only the options that the script has a use for.
    "srun": r"""
count=$SLURM_JOB_NUM_NODES
while [[ $1 == --* ]]; do
    case $1 in
        --overlap | --no-kill | --kill-on-bad-exit=0 | --wait=0 | --gres=none) shift ;;
        --nodes) count=$2; shift 2 ;;
        --nodelist | --ntasks) shift 2 ;;
        *) echo "srun: unrecognized option $1" >&2; exit 1 ;;
    esac
done
for ((node = 0; node < count; node++)); do
    SLURM_NODEID=$node CKPTD_RUN_DIR=$CKPTD_RUN_DIR-$node "$@" &
done
worst=0
for task in $(jobs -p); do
    code=0
    wait "$task" || code=$?
    ((code > worst)) && worst=$code
done
exit "$worst"
""",
    "scontrol": r"""
case $1 in
    show) for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do echo "n$node"; done ;;
    requeue) echo "$2" >"$FAKE/requeued" ;;
esac
""",
    "squeue": 'echo "n[0-2]"',
    "ckptd": r"""
echo "$@, as node ${CKPTD_NODE-} with $(basename "$CKPTD_SECRET_FILE")" >>"$FAKE/$1-$SLURM_NODEID"
case $1 in
    serve) exec sleep 60 ;;
    run) code=$(cat "$FAKE/code-$SLURM_NODEID"); [[ $code == waits ]] && exec sleep 60; exit "$code" ;;
esac
""",
}


class Job:
    """One start of the batch script; `codes` are what the agents end with, or that they wait for a signal."""

    def __init__(self, folder: Path, codes: list[str], restarts: int = 0) -> None:
        self.folder = folder
        for name, text in STUBS.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (folder / name).chmod(0o755)
        for node, code in enumerate(codes):
            (folder / f"code-{node}").write_text(code)
            run_dir = folder / f"ckptd-{os.getuid()}-77-{restarts}-{node}"
            run_dir.mkdir()
            with socket.socket(socket.AF_UNIX) as daemon:
                daemon.bind(str(run_dir / "ckptd.sock"))
        slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": str(NODES), "SLURM_JOB_NODELIST": "n[0-2]"}
        slurm |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "SLURM_"))}
        own = {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE": str(folder), "TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [BASH, str(EXAMPLES / "slurm" / "train.sbatch"), "train.py", "--name", "two words"],
            env=kept | own | slurm | {"SHARED": str(folder / "shared")}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def end(self) -> tuple[int, bool]:
        """Wait for the script's end: its exit code, and whether it has asked for a requeue."""
        said, _ = self.process.communicate(timeout=30.0)
        print(said)
        return self.process.returncode, (self.folder / "requeued").exists()

    def kill(self) -> None:
        """Whatever is left of it, after a test that has failed in the middle."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Job]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a job in a folder with a short path, as sockets stand in it; nothing of it is left afterwards."""
    folder, jobs = Path(tempfile.mkdtemp(prefix="ckptd-slurm-")), []

    def started(codes: list[str], restarts: int = 0) -> Job:
        jobs.append(Job(folder, codes, restarts))
        return jobs[-1]

    yield started
    for job in jobs:
        job.kill()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("codes", "restarts", "expected"),
    [
        (["0", "0", "0"], 0, (0, False)),
        (["0", str(ISOLATED_EXIT), "0"], 0, (0, False)),
        ([str(GIVEN_UP_EXIT)] * 3, 0, (GIVEN_UP_EXIT, False)),
        (["1", "143", "1"], 0, (0, True)),
        (["1", "1", "1"], 19, (0, True)),
        (["1", "1", "1"], 20, (1, False)),
    ],
    ids=["done", "a node kept out", "given up", "failed", "failed again", "failed too often"],
)
def test_what_the_agents_say_decides(start: Start, codes: list[str], restarts: int, expected: tuple[int, bool]) -> None:
    """Requeued unless it is done, was given up, or has failed too often. No daemon stays."""
    assert start(codes, restarts).end() == expected


def test_daemons_and_agents_are_told_who_they_are(start: Start) -> None:
    """Each daemon and agent its node; one agent fewer trains than there are nodes; the script as it was."""
    job = start(["0"] * NODES)
    assert job.end() == (0, False)
    shared = job.folder / "shared" / "77"
    for node in range(NODES):
        served, ran = ((job.folder / f"{command}-{node}").read_text() for command in ("serve", "run"))
        assert served == f"serve --node {node} --clean-exit, as node  with secret\n"
        assert ran.startswith(f"run --nnodes {NODES - 1} --nproc-per-node 8 ")
        assert ran.endswith(f"train.py --name two words, as node {node} with secret\n")
    assert stat.S_IMODE((shared / "secret").stat().st_mode) == 0o600
    assert len((shared / "secret").read_text()) == 64


def test_the_time_limit_ends_the_agents_and_requeues(start: Start) -> None:
    """SIGUSR1 to the script is SIGTERM to the agents; the daemons are there until those have ended."""
    job = start(["waits"] * NODES)
    pids = [job.folder / f"ckptd-{os.getuid()}-77-0-{node}.agent" for node in range(NODES)]
    until(lambda: all(pid.exists() and pid.read_text() for pid in pids), "agents started")
    until(lambda: all((job.folder / f"run-{node}").exists() for node in range(NODES)), "agents run")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == (0, True)
    codes = [(job.folder / "shared" / "77" / "codes" / str(node)).read_text() for node in range(NODES)]
    assert codes == ["143\n"] * NODES
