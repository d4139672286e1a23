"""Runs a conversion as a process of its own: torch lives there, and the command line stays quick and never imports it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from ckptd.ckpt.errors import CkptdError, UsageError
from ckptd.ckpt.strict import json_object
from ckptd.daemon import bars


def convert(module: str, asked: dict[str, Any], doing: str, *, quiet: bool) -> dict[str, Any]:
    """Have `python -m module` do what is asked, with a bar of its progress; return its result.

    Raises CkptdError, or UsageError, with the message that it ended with.
    """
    work: bars.Work = {}
    command = [sys.executable, "-m", module]
    last: dict[str, Any] = {}
    with (
        bars.bar(doing, "write", lambda: work, quiet=quiet),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.close()
        for line in process.stdout:
            last = _said(line)
            if "done" in last:
                work["write"] = last
    if "error" in last and "code" in last:
        raise (UsageError if last["code"] == UsageError.exit_code else CkptdError)(last["error"])
    if process.returncode or "result" not in last:
        raise CkptdError(f"the conversion ended with code {process.returncode}; see the message above")
    result: dict[str, Any] = last["result"]
    return result


def _said(line: str) -> dict[str, Any]:
    """A line of the conversion; nothing where it was cut, or where a library of it has printed something."""
    try:
        return json_object(line)
    except ValueError:
        return {}
