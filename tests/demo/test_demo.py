"""The whole thing on real processes: daemons, agents and trainers; small, but nothing is pretended."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.demo.options import DemoOptions, Model
from ckptd.daemon.demo.processes import MARK
from ckptd.daemon.demo.run import run_demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = DemoOptions(
    nodes=2,
    steps=45,
    at_step=20,
    persist_every=10,
    timeout_s=150,
    model=Model(layers=2, width=128),
)


def perform(options: DemoOptions, tmp_path: Path) -> tuple[int, dict[str, Any], str]:
    """Run a demo; returns its exit code, its report and what it printed. Nothing may be left of it."""
    before = set(Path("/dev/shm").glob("ckptd-demo-*"))
    text, report = io.StringIO(), tmp_path / "report.json"
    code = run_demo(replace(options, workdir=tmp_path / "w", report=report), Console(file=text, width=120))
    assert set(Path("/dev/shm").glob("ckptd-demo-*")) <= before
    assert not marked_processes()
    assert options.keep == (tmp_path / "w").exists()
    return code, json.loads(report.read_text()) if report.exists() else {}, text.getvalue()


def marked_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if MARK in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def check_recovery(report: dict[str, Any], source: str) -> None:
    """What every recovery that lost at most a few steps has to say."""
    assert report["bit_exact"]
    assert report["restored_from"] == source
    assert report["restored_step"] + report["lost_steps"] >= SMALL.fault_step
    seconds = report["seconds"]
    assert 0 < seconds["t_detected"] < seconds["t_first_step"]
    assert 0 < seconds["t_state_ready"] < seconds["t_first_step"]
    assert all(size > 0 for size in report["bytes"]["payload"] + report["bytes"]["parity"])


def test_lost_nodes_are_rebuilt_from_parity(tmp_path: Path) -> None:
    """Two of three at once, with m = 2; node 0 is one of them, to show that none is special: it is the collector."""
    options = replace(SMALL, nodes=3, parity=2, lose_nodes=(0, 2), keep=True)
    code, report, text = perform(options, tmp_path)
    assert code == 0, text
    check_recovery(report, "parity")
    assert "bit-identical" in text
    assert list((tmp_path / "w" / "storage").rglob("manifest.json")), "--keep leaves the persisted steps"


def test_a_killed_trainer_restores_from_its_own_slot(tmp_path: Path) -> None:
    """Nobody but ckptd notices and restarts; the report has its verdict beside the truth, and how trainers were started."""
    code, report, text = perform(replace(SMALL, kill_ranks=(1,), warm_workers=True), tmp_path)
    assert code == 0, text
    check_recovery(report, "own")
    assert report["injected"] == {"fault": "kill-rank", "ranks": [1], "nodes": [1]}
    assert (report["verdict"]["class"], report["verdict_right"]) == ("crash", True)
    assert report["launched"] == "`ckptd run`, warm trainers"


def test_the_loss_of_all_nodes_falls_back_to_storage_and_says_so(tmp_path: Path) -> None:
    """With torchrun, which knows nothing of ckptd."""
    code, report, text = perform(replace(SMALL, lose_nodes=(0, 1), launcher="torchrun"), tmp_path)
    assert code == 0, text
    check_recovery(report, "storage")
    assert report["restored_step"] % SMALL.persist_every == 0
    assert "more than the parity of 1 can give back" in text


def test_when_the_time_is_up_it_says_where_it_stood_and_cleans_up(tmp_path: Path) -> None:
    code, report, text = perform(replace(SMALL, timeout_s=1.0), tmp_path)
    assert (code, report) == (1, {})
    assert "reference run: waited in vain for the end of the training, limit 1 s; no rank has begun to train" in text


def test_other_people_s_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="expected a new or an empty directory"):
        run_demo(replace(SMALL, workdir=tmp_path / "w"), Console(file=io.StringIO()))
    assert (tmp_path / "w" / "thesis.tex").exists()


def test_a_report_that_could_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory; make it first"):
        run_demo(replace(SMALL, report=tmp_path / "nowhere" / "report.json"), Console(file=io.StringIO()))
