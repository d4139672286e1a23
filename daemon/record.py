"""The event record: one JSON object a line, for people, for the demo and for whoever asks later what happened."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)

_ROTATE_BYTES = 16 * 1024 * 1024


class EventRecord:
    """Appends to `path`; one older file is kept when it grows beyond 16 MiB. May be used from several threads."""

    def __init__(self, path: Path, node: int) -> None:
        self._path, self._node = path, node
        self._lock = threading.Lock()
        self._file = path.open("ab", buffering=0)

    def write(self, event: str, fields: dict[str, object]) -> None:
        """Add an entry with the wall-clock time."""
        entry = {"t": time.time(), "node": self._node, "event": event, **fields}
        with self._lock:
            if not self._file.closed:
                try:
                    self._file.write(json.dumps(entry).encode() + b"\n")
                    if self._file.tell() > _ROTATE_BYTES:
                        self._rotate()
                except OSError as error:  # a full disk must not end a daemon whose snapshots are in memory
                    log.warning("%s: %s; an event is not in it", self._path, error.strerror)
        details = " ".join(f"{name}={value}" for name, value in fields.items())
        log.log(logging.DEBUG if event == "captured" else logging.INFO, "%s %s", event, details)

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _rotate(self) -> None:
        self._path.rename(self._path.with_name(self._path.name + ".1"))
        full, self._file = self._file, self._path.open("ab", buffering=0)
        full.close()
