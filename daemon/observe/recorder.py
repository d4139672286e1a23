"""Reads the status of torch's Flight Recorder: numbers within bounds, whatever the answer holds. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.strict import json_object

ENTRIES_MAX = 4096
GROUPS_MAX = 256
SEQ_MAX = 1 << 31
NAME_MAX = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One collective that the rank has begun."""

    group: int
    """torch's number of the group in this process."""
    name: str
    """The group's name, the same on all its ranks."""
    described: str
    seq: int
    op: int
    """32 bits of a hash over what it does and on what."""
    created_ns: int
    """Of the wall clock."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the recorder says at one moment."""

    progress: Mapping[int, tuple[int, int]]
    """By torch's number of the group: the newest collective that was entered, and the newest that was completed."""
    entries: tuple[Entry, ...]
    """The newest collectives, oldest first; none where only the status was asked for."""


def read_status(answer: bytes) -> Status:
    """The status in a handler's answer. Raises PeerError when it is none; single entries that make no sense are left out."""
    try:
        content = json_object(answer)
    except ValueError as error:
        raise PeerError(f"the recorder's status is not readable: {error}") from error
    stated = content.get("pg_status")
    if not isinstance(stated, dict) or len(stated) > GROUPS_MAX:
        raise PeerError("the recorder's status has no pg_status; is this torch newer than this ckptd?")
    progress = {}
    for key, value in stated.items():
        group = _count(key)
        found = _progress(value) if isinstance(value, dict) else None
        if group is None or found is None:
            raise PeerError("the recorder's status says nonsense of a group")
        progress[group] = found
    raw = content.get("entries")
    entries = [_entry(item) for item in raw[-ENTRIES_MAX:]] if isinstance(raw, list) else []
    return Status(progress, tuple(entry for entry in entries if entry is not None))


def _progress(value: dict[str, Any]) -> tuple[int, int] | None:
    names = ("last_enqueued_collective", "last_started_collective", "last_completed_collective")
    enqueued, started, completed = (_signed(value.get(name)) for name in names)
    if enqueued is None or started is None or completed is None:
        return None
    entered = max(0, enqueued if started < 0 else started)
    return entered, min(entered, max(0, completed))


def _entry(item: Any) -> Entry | None:
    if not isinstance(item, dict) or item.get("is_p2p") is not False:
        return None
    group, seq, created = (_count(item.get(name)) for name in ("pg_id", "collective_seq_id", "time_created_ns"))
    named, what = item.get("process_group"), item.get("profiling_name")
    if group is None or seq is None or created is None or not isinstance(what, str):
        return None
    if not (isinstance(named, list) and len(named) == 2 and all(isinstance(text, str) for text in named)):
        return None
    op = zlib.crc32(f"{what} {item.get('input_sizes')}"[:NAME_MAX].encode(errors="replace"))
    return Entry(group, named[0][:NAME_MAX], named[1][:NAME_MAX], seq, op, created)


def _count(value: Any) -> int | None:
    found = _signed(value, 1 << 63)
    return found if found is not None and found >= 0 else None


def _signed(value: Any, most: int = SEQ_MAX) -> int | None:
    if isinstance(value, str) and len(value) < 20 and value.removeprefix("-").isdecimal() and value.isascii():
        value = int(value)
    return value if type(value) is int and -most < value < most else None
