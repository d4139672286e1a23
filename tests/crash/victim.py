"""A daemon that can be stopped before any primitive step: `python -m tests.crash.victim serve ...` instead of `ckptd serve`.

The calls by which a daemon changes a file, writes to shared memory, or sends and takes a message are wrapped, in this
process only. While the file `plan.json` stands in the run directory, each is a *step*: its name is written to
`steps.txt` beside it, and where the plan says so the process sends itself a signal, just before the step is made.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptd.daemon import channel, cli, peers, range_reader, range_server, segments, server, symbols
from ckptd.erasure import Code

PLAN, STEPS = "plan.json", "steps.txt"


class Steps:
    """Counts the steps by name while a plan stands, and stops the process at the planned one."""

    def __init__(self, directory: Path) -> None:
        self._plan, self._steps = directory / PLAN, directory / STEPS
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._stamp = -1

    def step(self, name: str) -> None:
        """A step named `name` is about to be made."""
        try:
            stamp = self._plan.stat().st_mtime_ns
            plan = json.loads(_read(self._plan))
        except (OSError, ValueError):
            return
        with self._lock:
            if stamp != self._stamp:  # another plan: count anew
                self._stamp = stamp
                self._seen.clear()
            self._seen[name] += 1
            occurrence = self._seen[name]
            descriptor = _OPEN(self._steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            _WRITE(descriptor, f"{name} {occurrence}\n".encode())
            os.close(descriptor)
        if (name, occurrence) == (plan["name"], plan["occurrence"]):
            os.kill(os.getpid(), signal.Signals[plan["signal"]])


_OPEN, _WRITE = os.open, os.write


def _read(path: Path) -> bytes:
    descriptor = _OPEN(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def kind_of(path: object) -> str:
    """A file's name without its numbers and random parts."""
    name = Path(os.fsdecode(path)).name if isinstance(path, str | bytes | os.PathLike) else "descriptor"
    return re.sub(r"[0-9a-f]{8}|\d+", "#", name)


def wrap(steps: Steps) -> None:
    """Wrap what this process does to the outside."""
    for name in ("unlink", "mkdir", "rmdir"):
        _before(os, name, lambda *args, name=name: f"{name} {kind_of(args[0])}", steps)
    for name in ("rename", "replace"):
        _before(os, name, lambda *args, name=name: f"{name} {kind_of(args[1])}", steps)
    for name in ("fsync", "posix_fallocate", "ftruncate"):
        _before(os, name, lambda *_, name=name: name, steps)
    _before(os, "open", lambda path, flags, *_: f"create {kind_of(path)}" if flags & os.O_CREAT else "", steps)
    _before(os, "write", lambda *_: "write", steps)
    _before(Path, "write_text", lambda path, *_: f"fill {kind_of(path)}", steps)
    _before(segments.Segments, "record", lambda *_: "sum the pieces", steps)
    _before(Code, "encode", lambda *_: "write a parity", steps)
    _before(Code, "decode", lambda *_: "write decoded bytes", steps)
    _before(peers.Peers, "send", lambda _, to, letter: f"send {type(letter).__name__}", steps)
    _before(peers, "letter_in", lambda *_: "take a letter", steps)
    _before(range_reader.RangeReader, "read", lambda *_: "ask for a range", steps)
    _before(channel.PlainChannel, "receive_into", lambda *_: "write received bytes", steps)
    _before(range_server.RangeServer, "_answer", lambda *_: "serve a range", steps)
    _before(symbols.Symbols, "_own", lambda *_: "copy own bytes", steps)
    for name in ("attach", "decide", "join", "gather", "release", "begin", "commit"):
        _before(server.LocalServer, name, lambda *_, name=name: f"take {name}", steps)


def _before(owner: Any, name: str, label: Callable[..., str], steps: Steps) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        what = label(*args)
        if what:
            steps.step(what)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def main() -> None:
    wrap(Steps(Path(sys.argv[sys.argv.index("--run-dir") + 1])))
    cli.main()


if __name__ == "__main__":
    main()
