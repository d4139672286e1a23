"""The alarm of a storage that neither takes anything nor fails."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ckptd.daemon import tables
from ckptd.daemon.jobs import PERSIST, PUBLISH, Jobs
from ckptd.daemon.progress import Progress
from ckptd.daemon.record import EventRecord
from ckptd.daemon.storage_watch import StorageWatch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stuck_is_said_once_and_so_is_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After so many seconds without a byte; not again while it lasts; moving bytes end it, and so does the work's end."""
    clock = Clock()
    progress, record = Progress(clock), EventRecord(tmp_path / "events.jsonl", 0)
    jobs = cast("Jobs", SimpleNamespace(progress=progress, storage_problem="disk on fire"))
    watch = StorageWatch(jobs, record, "s3://b/job", 1e6)
    watch.close()
    watch._after_s = 60.0
    assert watch.status() == {"where": "s3://b/job", "stuck_s": 0.0, "problem": "disk on fire"}
    with caplog.at_level(logging.WARNING):
        with progress.of(PERSIST, 1000) as add:
            add(10)
            for seconds, stuck in ((59.0, 0.0), (1.0, 60.0), (20.0, 80.0)):
                clock.now += seconds
                watch.look()
                assert watch.status()["stuck_s"] == stuck
            add(1)
            watch.look()
            assert watch.status()["stuck_s"] == 0.0
        with progress.of(PUBLISH, 1):
            clock.now += 61.0
            watch.look()
        watch.look()
    record.close()
    entries = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["storage_stuck", "storage_moves"] * 2
    assert (entries[0]["done"], entries[0]["total"], entries[0]["seconds"]) == (10, 1000, 60.0)
    assert caplog.text.count("has taken nothing for 60 s; training and snapshots in memory go on") == 1


@pytest.mark.parametrize(("where", "after_s"), [("", 60.0), ("/p", 0.0)])
def test_where_there_is_nothing_to_watch(tmp_path: Path, where: str, after_s: float) -> None:
    """Without storage, or switched off: no thread, and never stuck."""
    clock = Clock()
    jobs = cast("Jobs", SimpleNamespace(progress=Progress(clock), storage_problem=""))
    watch = StorageWatch(jobs, EventRecord(tmp_path / "events.jsonl", 0), where, after_s)
    assert not watch._thread.is_alive()
    with jobs.progress.of(PERSIST, 1):
        clock.now += 1e6 if not after_s else 0.0
        assert watch.status()["stuck_s"] == 0.0
    watch._record.close()
    watch.close()


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ({}, []),
        ({"where": "/p", "stuck_s": 0.0, "problem": ""}, []),
        (
            {"where": "/p", "stuck_s": 75.2, "problem": "x"},
            ["storage /p has taken nothing for 75 s; check it and the way"],
        ),
        ({"where": "/p", "stuck_s": 0.0, "problem": "no space"}, ["not persisted: no space"]),
    ],
)
def test_status_says_what_is_wrong(content: dict[str, Any], lines: list[str]) -> None:
    """One line where something is wrong, none where all is well."""
    shown = tables._storage(content)
    assert len(shown) == len(lines)
    assert all(text.startswith(line) for text, line in zip(shown, lines, strict=True))


def test_status_shows_what_is_on_its_way() -> None:
    """How much of this node's part is on storage, while it is written."""
    work = {PERSIST: {"done": 3_000_000, "total": 8_000_000}, "verify": {"done": 0, "total": 1}}
    assert tables._on_its_way(work) == [("on its way to storage", "3.0 MB of 8.0 MB")]
    assert tables._on_its_way({}) == []
