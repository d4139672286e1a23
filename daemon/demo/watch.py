"""Follow the JSON-lines files in which trainers and daemons tell what they do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READ_MAX = 1 << 20
"""Bytes read of one file at a time."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, at `t` (unix seconds), told by a `trainer`, a `daemon`, or the `demo` itself."""

    t: float
    told_by: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"t": self.t, "told_by": self.told_by, "event": self.name, **self.fields}


def parse_line(line: bytes, told_by: str) -> Event | None:
    """Read one line; None when it is not an event (its writer was killed in the middle of it)."""
    try:
        record = json.loads(line)
        return Event(float(record.pop("t")), told_by, str(record.pop("event")), record)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class Tail:
    """Reads what was appended to a file since the last time."""

    def __init__(self, path: Path, told_by: str) -> None:
        self.path, self.told_by = path, told_by
        self.offset = 0
        self.rest = b""

    def read(self) -> list[Event]:
        """The events of all lines that have been completed since. A file that does not exist yet has none."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(READ_MAX)
        except FileNotFoundError:
            return []
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [event for line in lines if (event := parse_line(line, self.told_by))]


class Watch:
    """All files of a run."""

    def __init__(self) -> None:
        self.tails: dict[Path, Tail] = {}
        self.events: list[Event] = []

    def follow(self, path: Path, told_by: str) -> None:
        """Read `path` from its beginning from now on; also to begin again after its file was replaced by a new one."""
        self.tails[path] = Tail(path, told_by)

    def poll(self) -> list[Event]:
        """What is new in all files, in the order of their times."""
        news = sorted((event for tail in self.tails.values() for event in tail.read()), key=lambda event: event.t)
        self.events += news
        return news


def tail_of(path: Path, lines: int) -> list[str]:
    """The last lines of a log, for a person."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
