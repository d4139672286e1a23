"""Incident records: one file of JSON lines for each, in the run directory; a bounded number of files of a bounded length."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.shm import private_dir
from ckptd.ckpt.strict import json_object

log = logging.getLogger(__name__)

KEPT = 200
LINES_MAX = 200
LINE_MAX = 64 * 1024
_FILE = re.compile(r"(\d{6})\.jsonl")
TIMES = ("t_fault", "t_detected", "t_isolated", "t_state_ready", "t_first_step")
"""Of the wall clock of the collector's node, in seconds; absent while not known."""


class Incidents:
    """The records of one node. Methods may be called from many threads; a full disk costs entries and nothing else."""

    def __init__(self, directory: Path) -> None:
        """Raises AccessError when the directory can't be had."""
        self._directory = private_dir(directory)
        self._lock = threading.Lock()
        self._lines: dict[int, int] = {}

    def open(self, entry: Mapping[str, Any]) -> int:
        """Begin a record with its first entry; return its number. The oldest ones make way."""
        with self._lock:
            known = self._numbers()
            number = (known[-1] if known else 0) + 1
            for old in known[: max(0, len(known) - KEPT + 1)]:
                with contextlib.suppress(OSError):
                    self._path(old).unlink()
        self.add(number, entry)
        return number

    def add(self, number: int, entry: Mapping[str, Any]) -> None:
        """Add an entry: `t`, the wall clock, `event`, and what else there is to say."""
        line = json.dumps(dict(entry)).encode()
        with self._lock:
            count = self._lines[number] = self._lines.get(number, 0) + 1
            if count > LINES_MAX or len(line) > LINE_MAX:
                return
            try:
                with self._path(number).open("ab") as file:
                    file.write(line + b"\n")
            except OSError as error:
                log.warning("incident %d: %s; an entry is not in its record", number, error.strerror)

    def entries(self, number: int) -> list[dict[str, Any]]:
        """What was recorded, oldest first. Raises UsageError when there is no such incident here."""
        try:
            with self._path(number).open("rb") as file:
                lines = file.read(LINES_MAX * LINE_MAX).splitlines()
        except OSError as error:
            known = ", ".join(map(str, self._numbers()[-10:])) or "none"
            raise UsageError(f"incident {number} is not recorded here; the newest are: {known}") from error
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line of a daemon that was killed may be half
                found.append(json_object(line))
        return found

    def summaries(self) -> list[dict[str, Any]]:
        """All incidents, newest first."""
        return [summary(number, self.entries(number)) for number in reversed(self._numbers())]

    def _numbers(self) -> list[int]:
        matches = (_FILE.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.jsonl"


def summary(number: int, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What an incident comes to: its last verdict and decision, the times, what was chosen, and whether it is over. Pure."""
    result: dict[str, Any] = {"id": number, "open": True, "verdict": None, "chosen": None, "lost_steps": None}
    result |= {"decision": None, "times": {}}
    for entry in entries:
        if isinstance(verdict := entry.get("verdict"), dict):
            result["verdict"] = verdict
        if isinstance(decision := entry.get("decision"), dict):
            result["decision"] = decision
        if isinstance(done := entry.get("done"), str) and result["decision"] is not None:
            result["decision"] = result["decision"] | {"done": done}
        for name in ("chosen", "lost_steps"):
            if entry.get(name) is not None:
                result[name] = entry[name]
        for name in TIMES:
            if isinstance(at := entry.get(name), int | float):
                result["times"].setdefault(name, at)
        if entry.get("event") == "closed":
            result["open"] = False
    return result
