"""Incident records: whole lines, a bounded number of files, and what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.observe import incidents as module
from ckptd.daemon.observe.incidents import Incidents, summary

VERDICT = {"class": "crash", "suspects": {"ranks": [3], "nodes": [1], "links": []}, "reason": "r"}


def test_a_record_is_kept_and_summed_up(tmp_path: Path) -> None:
    """The last verdict, the first of each time, what was chosen, and whether it is over; after a restart as well."""
    made = Incidents(tmp_path / "i")
    number = made.open({"t": 10.0, "event": "opened", "verdict": VERDICT, "t_fault": 9.0, "t_detected": 10.0})
    chosen = {"epoch": 2, "step": 40, "tier": "parity"}
    made.add(number, {"t": 12.0, "event": "resumed", "chosen": chosen, "lost_steps": 3, "t_state_ready": 12.0})
    assert made.summaries()[0]["open"]
    made.add(number, {"t": 13.0, "event": "first step", "t_first_step": 13.0})
    made.add(number, {"t": 13.0, "event": "closed", "reason": "it trains"})
    found = Incidents(tmp_path / "i").summaries()
    times = {"t_fault": 9.0, "t_detected": 10.0, "t_state_ready": 12.0, "t_first_step": 13.0}
    assert found == [
        {
            "id": 1,
            "open": False,
            "verdict": VERDICT,
            "chosen": chosen,
            "lost_steps": 3,
            "decision": None,
            "times": times,
        },
    ]


def test_the_oldest_make_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that fails for ever fills no disk; numbers are not used again."""
    monkeypatch.setattr(module, "KEPT", 3)
    made = Incidents(tmp_path / "i")
    for _ in range(5):
        made.open({"t": 1.0, "event": "opened"})
    assert [item["id"] for item in made.summaries()] == [5, 4, 3]
    assert made.open({"t": 1.0, "event": "opened"}) == 6


def test_a_record_has_a_bounded_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many entries nor a long one make it grow beyond."""
    monkeypatch.setattr(module, "LINES_MAX", 10)
    made = Incidents(tmp_path / "i")
    number = made.open({"t": 1.0, "event": "opened"})
    made.add(number, {"t": 1.0, "event": "stack", "text": "x" * module.LINE_MAX})
    for _ in range(50):
        made.add(number, {"t": 1.0, "event": "verdict"})
    assert len(made.entries(number)) < 10


def test_half_a_line_and_nonsense_are_skipped(tmp_path: Path) -> None:
    """What a daemon that was killed left behind is read as far as it goes."""
    made = Incidents(tmp_path / "i")
    number = made.open({"t": 1.0, "event": "opened", "verdict": VERDICT})
    with (tmp_path / "i" / "000001.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"t": NaN}\n[1]\n{"event": "clo')
    assert [entry["event"] for entry in made.entries(number)] == ["opened"]
    with pytest.raises(UsageError, match="the newest are: 1"):
        made.entries(7)


def test_entries_of_another_version_sum_up_to_nothing() -> None:
    """Fields of other types are not taken."""
    found = summary(4, [{"verdict": "x", "t_fault": "yesterday", "event": 7}])
    assert (found["verdict"], found["times"], found["open"]) == (None, {}, True)
