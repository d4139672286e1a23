"""The site's own health checker, asked over a unix socket: one line there, one line of JSON back.

    ckptd: health 1
    checker: {"ok": false, "reason": "GPU 3: row remap pending"}

Whoever listens at the socket has to be root or ourselves, as its word can bar a node. What does not answer in time, or
talks nonsense, says nothing about the node.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from ckptd.ckpt.strict import json_object, short
from ckptd.daemon.observe.plugins import FINDING_CHARS, Finding

QUESTION = b"health 1\n"
ANSWER_S = 2.0
"""From the connecting to the whole answer."""
ANSWER_MAX = 4096
_CREDENTIALS = struct.Struct("3i")


class HealthProbe:
    """Asks the checker at a socket whether this node is fit."""

    name = "health"

    def __init__(self, path: Path, *, answer_s: float = ANSWER_S) -> None:
        self._path, self._answer_s = path, answer_s

    def look(self) -> Finding:
        """What the checker says now; that it does not answer is a remark, and no word about the node."""
        try:
            sick = reason_of(self._ask())
        except (OSError, ValueError) as error:
            said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            return Finding(here=True, wrong=(f"the checker at {self._path} does not answer: {said}",))
        return Finding(here=True, sick=sick)

    def _ask(self) -> bytes:
        """The checker's line. Raises OSError and ValueError."""
        deadline = time.monotonic() + self._answer_s
        with socket.socket(socket.AF_UNIX) as checker:
            checker.settimeout(self._answer_s)
            checker.connect(str(self._path))
            _, uid, _ = _CREDENTIALS.unpack(
                checker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid not in (0, os.getuid()):
                raise ValueError(f"user {uid} listens there; expected root or user {os.getuid()}")
            checker.sendall(QUESTION)
            line = b""
            while b"\n" not in line:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ValueError(f"no whole line within {self._answer_s:g} s")
                checker.settimeout(left)
                more = checker.recv(ANSWER_MAX + 1 - len(line))
                line += more
                if len(line) > ANSWER_MAX:
                    raise ValueError(f"more than {ANSWER_MAX} bytes")
                if not more:
                    break
            return line.partition(b"\n")[0]


def reason_of(line: bytes) -> str:
    """What is wrong with the node by the checker's answer, '' if it is well. Raises ValueError for what is no answer."""
    answer = json_object(line)
    is_well, reason = answer.get("ok"), answer.get("reason", "")
    if not isinstance(is_well, bool) or not isinstance(reason, str):
        raise ValueError(f'{short(answer)}; expected {{"ok": true}} or {{"ok": false, "reason": "..."}}')
    if is_well:
        return ""
    shown = "".join(letter if letter.isprintable() else " " for letter in reason).strip()
    return shown[:FINDING_CHARS] or "it gives no reason"
