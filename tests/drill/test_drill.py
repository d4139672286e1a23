"""Drills on real processes: a throw-away job, and a running one that has somebody who starts again what ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from rich.console import Console
from tests.cluster import until
from tests.demo.test_demo import marked_processes

from ckptd.ckpt.client import Client
from ckptd.ckpt.errors import AccessError, CkptdError, UsageError
from ckptd.daemon.demo.cluster import ckptd_command
from ckptd.daemon.drill.command import from_arguments, run
from ckptd.daemon.drill.faults import Fault
from ckptd.daemon.drill.job import fill
from ckptd.daemon.drill.named import Target, check, run_named
from ckptd.daemon.drill.run import DrillOptions, run_drill
from ckptd.daemon.drill.strikes import flip_bit

slow = pytest.mark.slow


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@slow
@pytest.mark.timeout(400)
def test_a_throw_away_job_keeps_its_promises(tmp_path: Path) -> None:
    """A lost node, spoiled slots and a cut link in one training, which ends with the bits of an uninterrupted one."""
    before = set(Path("/dev/shm").glob("ckptd-demo-*"))
    out, report = console(), tmp_path / "report.json"
    campaign = from_arguments(["bits=0", "node=1", "link=0-1:corrupt:2"], 2, 1, 3)
    code = run_drill(DrillOptions(campaign=campaign, report=report, workdir=tmp_path / "w"), out)
    told = out.file.getvalue()  # type: ignore[attr-defined]
    assert code == 0, told
    assert set(Path("/dev/shm").glob("ckptd-demo-*")) <= before
    assert not marked_processes()
    assert not (tmp_path / "w").exists()
    content = json.loads(report.read_text())
    (round_,) = content["rounds"]
    assert content["kept"]
    assert round_["bit_exact"]
    assert [outcome["fault"] for outcome in round_["faults"]] == ["bits=0", "node=1", "link=0-1:corrupt:2"]
    assert all(outcome["seconds"]["sealed"] > 0 for outcome in round_["faults"])
    assert "promised is the newest sealed step or a newer one, from parity" in told


class Supervised:
    """A command that is started again whenever it ends, as a service manager does."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._stopped = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def _supervise(self) -> None:
        while not self._stopped.wait(0.1):
            if self._process.poll() is not None:
                self._process = self._start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(10.0)
        self._process.kill()
        self._process.wait(10.0)


@contextlib.contextmanager
def running_job(tmp_path: Path, name: str) -> Iterator[Path]:
    """A one-node job that trains; its run directory."""
    run_dir, segments = tmp_path / "run", Path(f"/dev/shm/ckptd-test-{os.getpid()}-{name}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CKPTD_")}
    environment |= {"CKPTD_RUN_DIR": str(run_dir), "CKPTD_JOB": name, "CKPTD_SEGMENT_DIR": str(segments)}
    daemon = Supervised([*ckptd_command(), "serve"], environment, tmp_path / "daemon.log")
    try:
        until((run_dir / "ckptd.sock").exists, "the daemon's socket")
        sizes = ["--steps=100000", "--pace=0.1", "--layers=1", "--width=32", "--text-bytes=100000"]
        trainer = Supervised(
            [sys.executable, "-m", "ckptd.examples.train_gpt", *sizes], environment, tmp_path / "trainer.log"
        )
        try:
            yield run_dir
        finally:
            trainer.stop()
    finally:
        daemon.stop()
        for path in segments.glob("*"):
            path.unlink()
        segments.rmdir()


def sealed(run_dir: Path, name: str) -> bool:
    with contextlib.closing(Client(run_dir, name)) as client:
        return bool(client.document("Status").get("sealed"))


@slow
@pytest.mark.timeout(300)
def test_a_running_job_is_struck_only_by_name(tmp_path: Path) -> None:
    """What is refused is refused before anything is done; a killed trainer and a killed daemon cost no sealed step."""
    with running_job(tmp_path, "mine") as run_dir:

        def strike(*faults: str, job: str = "mine", yes: bool = False) -> int:
            return run_named(faults, job, run_dir, seed=1, yes=yes, report=tmp_path / "report.json", console=out)

        out = console()
        with pytest.raises(CkptdError, match="belongs to job 'mine'"):
            strike("rank", job="other")
        until(lambda: sealed(run_dir, "mine"), "the first sealed step", 60.0)
        for faults, problem in [
            (("disk",), "only in a throw-away job"),
            (("rank", "link=0-1"), "only in a throw-away job"),
            (("rank=1",), "no such trainer"),
            ((), "name the faults"),
        ]:
            with pytest.raises(UsageError, match=problem):
                strike(*faults)
        with pytest.raises(CkptdError, match="tolerates no loss"):
            strike("node")
        assert not (tmp_path / "report.json").exists()
        assert strike("rank", "daemon") == 0, out.file.getvalue()  # type: ignore[attr-defined]
        told = json.loads((tmp_path / "report.json").read_text())
        assert [item["kept"] for item in told["faults"]] == [True, True]
        assert told["faults"][0]["happened"].startswith("restored step")
        assert told["faults"][1]["happened"] == "the training went on"
        if os.statvfs("/dev/shm").f_bavail * 4096 > 1 << 30:
            with pytest.raises(UsageError, match="would harm others"):
                strike("memory")


def test_only_processes_of_ours_are_struck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of another user is refused, also to root."""
    status = {"trainers": [{"rank": 0, "pid": os.getpid()}], "sealed": {"epoch": 1, "step": 1}, "ok": True}
    (tmp_path / "lock").write_text(str(os.getpid()))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    target = Target("mine", tmp_path, status)
    with pytest.raises(AccessError, match="belongs to user"):
        check(target, Fault("rank", 0), yes=True)


def test_options_that_make_no_sense_together(tmp_path: Path) -> None:
    """Each is refused by name before anything starts."""
    base = {
        "nodes": 3, "parity": 1, "seed": 1, "campaign": None, "minutes": 0.0, "report": None, "workdir": None, "keep": False,
        "segments_root": tmp_path, "job": None, "run_dir": None, "yes": False, "console": console(),
    }  # fmt: skip
    cases: list[tuple[list[str], dict[str, object], str]] = [
        ([], {"yes": True}, "name it with --job"),
        ([], {"run_dir": tmp_path}, "name it with --job"),
        (["node"], {"campaign": tmp_path / "c.toml"}, "leave the faults and --job out"),
        ([], {"campaign": tmp_path / "c.toml"}, "No such file"),
        (["rank"], {"job": "mine", "minutes": 1.0}, "for a throw-away job"),
        ([], {"minutes": -1.0}, "expected 0 to 10000"),
        ([], {"nodes": 0}, "expected 1 to 8"),
        (["node"], {"report": tmp_path / "no" / "r.json"}, "no such directory"),
    ]
    for faults, changes, problem in cases:
        with pytest.raises(UsageError, match=problem):
            run(faults, **(base | changes))  # type: ignore[arg-type]


def test_a_tmpfs_that_is_not_ours_to_fill(tmp_path: Path) -> None:
    """One with more room than half of the memory is left alone."""
    with pytest.raises(UsageError, match="would harm others"):
        fill(tmp_path / "ballast")  # a disk, in this case: far more than the memory
    assert not list(tmp_path.iterdir())


def test_one_bit_is_flipped(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    path.write_bytes(bytes(1000))
    flip_bit(path, Random(1))
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1
