"""The event record: every line is one entry, it does not grow for ever, and a full disk costs entries only."""

from __future__ import annotations

import errno
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptd.daemon import record as module
from ckptd.daemon.record import EventRecord


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_entries_of_many_threads(tmp_path: Path) -> None:
    """Entries written at the same time are whole lines, and a restart appends to them."""
    path = tmp_path / "events.jsonl"
    for start in (0, 100):
        record = EventRecord(path, node=3)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i, record=record: record.write("test", {"i": i}), range(start, start + 100)))
        record.close()
    record.write("late", {})  # after the end: nobody is there to read it
    found = entries(path)
    assert sorted(entry["i"] for entry in found if isinstance(entry["i"], int)) == list(range(200))
    assert {(entry["node"], entry["event"]) for entry in found} == {(3, "test")}


def test_it_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit the file becomes the older one, and no entry is lost meanwhile."""
    monkeypatch.setattr(module, "_ROTATE_BYTES", 1000)
    path = tmp_path / "events.jsonl"
    record = EventRecord(path, node=0)
    for i in range(30):
        record.write("test", {"i": i})
    record.close()
    kept = entries(tmp_path / "events.jsonl.1") + entries(path)
    assert [entry["i"] for entry in kept] == list(range(30))[-len(kept) :]
    assert len(kept) > 10
    assert path.stat().st_size <= 1100


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where an entry can't be written the log says so, and writing goes on afterwards."""
    caplog.set_level(logging.INFO)
    record = EventRecord(tmp_path / "events.jsonl", node=0)

    def full(_: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record, "_file", SimpleNamespace(closed=False, write=full))
        record.write("first", {"i": 1})
    assert "No space left on device; an event is not in it" in caplog.text
    assert "first i=1" in caplog.text
    record.write("second", {})
    record.close()
    assert [entry["event"] for entry in entries(tmp_path / "events.jsonl")] == ["second"]
