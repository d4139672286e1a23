"""How a conversion, which is a process of its own, talks to the command line: lines of JSON on its standard output."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ckptd.ckpt.errors import CkptdError

_EVERY_S = 0.1


class Teller:
    """Says `{"done": bytes, "total": bytes}` about ten times a second."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._done, self._told = 0, clock()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more bytes are done; less than none when some must be done again. From any thread."""
        with self._lock:
            self._done += count
            if self._clock() - self._told >= _EVERY_S:
                self._told = self._clock()
                say({"done": min(self._done, self._total), "total": self._total})


def say(line: dict[str, Any]) -> None:
    """One line for the command line to read."""
    print(json.dumps(line), flush=True)


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """Do the work that standard input asks for as JSON; the last line is `{"result": ...}` or `{"error", "code"}`.

    Returns the exit code.
    """
    try:
        say({"result": work(json.loads(sys.stdin.readline()))})
    except CkptdError as error:
        say({"error": str(error), "code": error.exit_code})
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0
