"""The examples for frameworks as a user runs them, with a daemon that the first start brings along, killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import SHM, Cluster, until
from tests.payload import JOB
from tests.processes import has_ended, wait_ended

ROOT = Path(__file__).parents[2]
EXAMPLES = ["train_trainer", "train_lightning", "train_accelerate", "train_torchtitan"]
STEPS = 24
WORLD, RANKS_STEPS = 2, 12
pytestmark = pytest.mark.slow


class Forge:
    """The process that lives are forked from."""

    def __init__(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCH"))}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.integrations.lives"], cwd=ROOT, text=True,
            env=clean | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, **order: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    forge = Forge()
    try:
        yield forge
    finally:
        forge.close()


class Job:
    """One example with directories and a daemon of its own."""

    def __init__(self, forge: Forge, example: str, folder: Path, segments: Path) -> None:
        self._forge, self._example, self._folder, self._segments = forge, example, folder, segments
        self._environment = {
            "CKPTD_JOB": "t", "CKPTD_RUN_DIR": str(folder / "run"), "CKPTD_SEGMENT_DIR": str(segments), "CKPTD_NICE": "0",
        }  # fmt: skip
        self._lives = 0

    def start(self, *options: str) -> int:
        self._lives += 1
        argv = [f"--steps={STEPS}", f"--events={self._events}", *options]
        return self._forge.ask(
            example=f"ckptd.examples.{self._example}", argv=argv, environment=self._environment,
            output=str(self._folder / f"life-{self._lives}.log"),
        )  # fmt: skip

    def end(self, pid: int) -> int:
        return self._forge.ask(wait=pid)

    def forget(self) -> None:
        """Lose the daemon and all that it kept."""
        self.close()
        shutil.rmtree(self._segments)
        self._segments.mkdir(mode=0o700)
        self._environment["CKPTD_RUN_DIR"] = str(self._folder / "other")

    def run(self) -> list[dict[str, Any]]:
        """Train to the end; the events of that life."""
        code = self.end(self.start())
        assert code == 0, (self._folder / f"life-{self._lives}.log").read_text()[-4000:]
        return self.events()

    @property
    def _events(self) -> Path:
        return self._folder / f"life-{self._lives}.jsonl"

    def events(self) -> list[dict[str, Any]]:
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def close(self) -> None:
        """End the daemon."""
        lock = self._segments / "lock"
        text = lock.read_text() if lock.exists() else ""
        if text.isdigit() and not has_ended(int(text)):
            os.kill(int(text), signal.SIGKILL)
            wait_ended(int(text))


@pytest.fixture
def job(forge: Forge, request: pytest.FixtureRequest) -> Iterator[Job]:
    folder = Path(tempfile.mkdtemp(prefix="ckptd-"))
    segments = Path(tempfile.mkdtemp(prefix="ckptd-test-", dir=SHM))
    job = Job(forge, request.param, folder, segments)
    try:
        yield job
    finally:
        job.close()
        shutil.rmtree(segments, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("job", EXAMPLES, indirect=True)
def test_an_example_that_is_killed_resumes_bit_identically(job: Job) -> None:
    """The same losses, parameters and optimizer state as without the kill."""
    killed = job.start("--pace=0.05")
    until(lambda: len(job.events()) > 13, "thirteen steps, which is in the middle of the second epoch")
    os.kill(killed, signal.SIGKILL)
    assert job.end(killed) == -signal.SIGKILL
    resumed = job.run()
    assert 9 <= resumed[0]["step"] < STEPS
    assert len(resumed) == STEPS - resumed[0]["step"] + 2  # each step once
    job.forget()
    whole = job.run()
    assert len(whole) == STEPS + 2
    assert resumed[-1]["losses"] == whole[-1]["losses"]
    assert resumed[-1]["digest"] == whole[-1]["digest"]
    told = len(resumed) - 1
    assert [event["loss"] for event in resumed[1:told]] == [event["loss"] for event in whole[-told:-1]]


class Ranks:
    """The ranks of one life over gloo, each beside the daemon of its number, or the last one."""

    def __init__(self, forge: Forge, example: str, cluster: Cluster, folder: Path, *options: str) -> None:
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._forge, self._folder = forge, folder
        self.pids = [
            forge.ask(
                example=example, output=str(folder / f"{rank}.log"),
                argv=[f"--events={folder}/{rank}.jsonl", *options],
                environment={
                    "CKPTD_JOB": JOB, "CKPTD_RUN_DIR": str(cluster.run_dir(min(rank, len(cluster.addresses) - 1))),
                    "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD),
                    "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "t",  # what Lightning knows torchrun by
                },
            )
            for rank in range(WORLD)
        ]  # fmt: skip

    def events(self, rank: int = 0) -> list[dict[str, Any]]:
        path = self._folder / f"{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def end(self, code: int) -> list[list[dict[str, Any]]]:
        """Wait for it; the events of each rank."""
        ends = [self._forge.ask(wait=pid) for pid in self.pids]
        assert ends == [code] * WORLD, (self._folder / "0.log").read_text()[-4000:]
        return [self.events(rank) for rank in range(WORLD)]


@pytest.mark.parametrize("name", ["train_accelerate", "train_trainer"])
def test_two_ranks_go_on_bit_identically(forge: Forge, tmp_path: Path, name: str) -> None:
    """The same losses on each rank, and the same parameters and optimizer state, as without the kill."""
    example, steps = f"ckptd.examples.{name}", f"--steps={RANKS_STEPS}"
    with Cluster(1, parity=0) as cluster:
        first = Ranks(forge, example, cluster, tmp_path / "first", steps, "--pace=0.1")
        until(lambda: len(first.events()) > 6, "six steps")
        for pid in first.pids:
            os.kill(pid, signal.SIGKILL)
        first.end(-signal.SIGKILL)
        resumed = Ranks(forge, example, cluster, tmp_path / "resumed", steps).end(0)
    with Cluster(1, parity=0) as cluster:
        whole = Ranks(forge, example, cluster, tmp_path / "whole", steps).end(0)
    assert 3 <= resumed[0][0]["step"] < RANKS_STEPS
    for one, other in zip(resumed, whole, strict=True):
        assert one[-1]["digest"] == other[-1]["digest"]
        told = len(one) - 1
        assert [event["loss"] for event in one[1:told]] == [event["loss"] for event in other[-told:-1]]


@pytest.mark.parametrize(
    ("worker", "options"),
    [("lightning_worker", ["--strategy=parallel"]), ("lightning_worker", ["--strategy=fsdp"]), ("titan_worker", [])],
)
def test_saves_by_url_go_on_bit_identically(forge: Forge, tmp_path: Path, worker: str, options: list[str]) -> None:
    """Lightning's sharded strategies and TorchTitan's manager: two ranks are killed and a node's memory is lost, and the
    steps after the newest that was saved have the bits that they had before."""
    example, saved = f"tests.integrations.{worker}", 3
    with Cluster(2, parity=1) as cluster:
        killed = Ranks(forge, example, cluster, tmp_path / "killed", *options, f"--saved={saved}")
        before = killed.end(-signal.SIGKILL)
        cluster.lose(1)
        cluster.restart(1)
        after = Ranks(forge, example, cluster, tmp_path / "resumed", *options).end(0)
    for one, other in zip(before, after, strict=True):
        assert (one[0], other[0]) == ({"begins": 0}, {"begins": saved})
        assert len({event["digest"] for event in one[1:]}) == 6
        assert other[1:] == one[1 + saved :]
