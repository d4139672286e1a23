"""A sample of the crash points; `make crash` runs them all."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.crash.__main__ import parse
from tests.crash.scenes import Cut, Stage, close_to
from tests.crash.victim import PLAN, STEPS, Steps, kind_of

CUTS = (
    "capture:0:rename rank-#.slot-#.json:1:SIGKILL",
    "capture:1:fsync:1:SIGSTOP",
    "capture:0:rename step-##.e#:1:SIGKILL",
    "start:1:rename daemon.json:1:SIGKILL",
    "rebuild:0:serve a range:1:SIGKILL",
)


@pytest.mark.slow
def test_a_daemon_stopped_at_any_step_loses_nothing() -> None:
    """One cluster takes them all, one after another, each with a second fault now and then."""
    stage = Stage(seed=3)
    reached = 0
    with stage.open():
        for text in CUTS:
            outcome = stage.run(parse(text))
            assert not outcome.problem, f"{text}: {outcome.problem}"
            assert outcome.state in ("old", "new")
            reached += outcome.reached
    assert reached >= len(CUTS) - 2, f"only {reached} of {len(CUTS)} steps were reached: have they got other names?"


@pytest.mark.slow
def test_the_steps_of_a_capture_are_seen() -> None:
    """The enumeration sees files, renames, syncs, shared memory and messages."""
    stage = Stage()
    with stage.open():
        names = {name for name, _ in stage.steps_of("capture", 0)}
    assert {"take commit", "send Ledger", "sum the pieces", "write a parity", "serve a range"} <= names
    assert {"rename rank-#.slot-#.json", "fsync", "rename step-##.e#", "rename manifest.json"} <= names


def test_a_plan_stops_at_its_step_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted by name, from the moment the plan stands."""
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda _, number: sent.append(number))
    steps = Steps(tmp_path)
    steps.step("fsync")
    assert not (tmp_path / STEPS).exists()
    (tmp_path / PLAN).write_text(json.dumps({"name": "fsync", "occurrence": 2, "signal": "SIGTERM"}))
    for name in ("fsync", "write", "fsync", "fsync"):
        steps.step(name)
    assert sent == [signal.SIGTERM]
    assert (tmp_path / STEPS).read_text().split("\n")[:-1] == ["fsync 1", "write 1", "fsync 2", "fsync 3"]


def test_names_stand_for_a_kind_of_file() -> None:
    assert kind_of("/x/rank-00003.0a1b2c3d.safetensors") == "rank-#.#.safetensors"
    assert kind_of(Path("/x/parity-000-001-00.e2.s17.0123abcd.json")) == "parity-#-#-#.e#.s#.#.json"
    assert kind_of(7) == "descriptor"


def test_a_cut_is_replayed_from_what_is_printed() -> None:
    cut = Cut("capture", 1, "rename step-##.e#", 1, "SIGKILL")
    assert parse(str(cut)) == cut
    assert close_to(("fsync", 4))
    assert not close_to(("send Report", 4))
