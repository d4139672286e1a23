"""py-spy, where it is installed: the stacks of a process whose interpreter does not answer, read from outside."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SPY_S = 5.0
TEXT_MAX = 64 * 1024


def spy(pid: int) -> str:
    """What the process's threads do; '' where there is no py-spy or it may not look. Takes SPY_S at most."""
    command = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if command is None:
        return ""
    try:
        done = subprocess.run(
            [command, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, timeout=SPY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:TEXT_MAX].decode(errors="replace") if done.returncode == 0 else ""
