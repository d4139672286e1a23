"""Reports as Markdown, and their places in the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import pages, plots
from benchmarks.publish import PAGE

ROW: dict[str, Any] = {
    "version": "1.2",
    **{
        f"{name}": 2.0
        for name in ("blocked_ms", "added_ms", "first_ms", "setup_ms", "cpu_s_per_gb", "trainer_cpu_s_per_gb")
    },
    **{f"{name}_spread": [1.0, 3.0] for name in ("blocked_ms", "added_ms", "first_ms", "cpu_s_per_gb")},
    "memory_bytes": 3 << 20,
    "memory_bytes_spread": [3 << 20, 3 << 20],
    "survives": ["trainer", "node"],
    "restored_ok": True,
    "skipped": 0,
    "timeline": {"step_ms": [10.0, 30.0, 10.0], "snapshots": [1]},
}
REPORT: dict[str, Any] = {
    "machine": {"arch": "x86_64", "cores": 2, "python": "3.11.7"},
    "date": "2026-01-02",
    "state_bytes": 256 << 20,
    "step_ms": 10.0,
    "whole_step_ms": 40.0,
    "steps": 30,
    "every": 5,
    "rounds": 3,
    "threads": 1,
    "baseline": {"step_ms": [10.0, 10.0, 10.0]},
    "systems": {"ckptd sealed": ROW, "torch.save": {**ROW, "restored_ok": False, "survives": [], "skipped": 2}},
    "unavailable": {"nvrx async": "AssertionError: no `CUDA`"},
}


def test_a_section_is_replaced_between_its_comments_and_nothing_else() -> None:
    page = "a\n<!-- begin stall -->\nold\n<!-- end stall -->\nb\n<!-- begin gpu -->\nkept\n<!-- end gpu -->\n"
    once = pages.spliced(page, "stall", "new\n")
    assert once == page.replace("old", "new")
    assert pages.spliced(once, "stall", "new") == once


@pytest.mark.parametrize("page", ["", "<!-- begin stall -->", "<!-- end stall --> <!-- begin stall -->"])
def test_a_page_without_the_comments_is_refused(page: str) -> None:
    with pytest.raises(pages.MissingMarkersError, match="begin stall"):
        pages.spliced(page, "stall", "text")


@pytest.mark.parametrize("section", ["stall", "recover", "persist", "gpu"])
def test_the_page_has_a_place_for_every_section(section: str) -> None:
    assert "MARK" in pages.spliced(PAGE.read_text(), section, "MARK")


def test_a_median_stands_with_its_spread_unless_there_is_none() -> None:
    assert pages.spread(ROW, "blocked_ms", 2) == "2.00 (1.00 to 3.00)"
    assert pages.spread(ROW, "memory_bytes", 0, 1 << 20) == "3"


def test_the_table_says_what_is_not_restored_left_out_and_not_to_be_had() -> None:
    text = pages.stall([REPORT], ["cpu.png"])
    lines = text.splitlines()
    assert "| ckptd sealed | 2.00 (1.00 to 3.00) |" in text
    assert any(
        line.startswith("| torch.save (2 snapshots left out)") and line.endswith("| nothing | **no** |")
        for line in lines
    )
    assert "- nvrx async could not be had here: `AssertionError: no 'CUDA'`" in lines
    assert "2026-01-02, x86_64, 2 cores, Python 3.11.7; ckptd 1.2, torch.save 1.2" in text
    assert "![cpu.png](benchmarks/cpu.png)" in lines


def test_the_kills_are_counted_in_the_page() -> None:
    """With what a system said the first time that it got stuck."""
    kills = {"kills": 100, "loads": 97, "torn": 1, "refused": 2, "lost_steps_mean": 0.5, "lost_steps_max": 1}
    stuck = ["no word for 30 s", "no word for 30 s"]
    text = pages.recover(
        {**REPORT, "restores": {}, "kill_state": "32MiB", "kills": {"torch.save": {**kills, "stuck": stuck}}}
    )
    assert "| torch.save | 100 | 97 | 1 | 2 | 0.50 | 1 |" in text
    assert text.splitlines().count("- torch.save, stuck: `no word for 30 s`") == 1


@pytest.mark.slow
def test_every_plot_is_a_picture(tmp_path: Path) -> None:
    """Also of figures that a logarithmic axis can't show: a snapshot that adds less than nothing."""
    report = {**REPORT, "systems": {"ckptd sealed": {**ROW, "added_ms": -3.0, "blocked_ms": 0.0}, "torch.save": ROW}}
    plots.stalls([report, report], tmp_path / "stall.png")
    plots.timeline(report, tmp_path / "timeline.png")
    plots.cpu(report, tmp_path / "cpu.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
