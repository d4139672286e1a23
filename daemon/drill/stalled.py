"""A daemon on a disk that can be stalled: while a file of this name exists, no fsync returns.

    python -m ckptd.daemon.drill.stalled MARKER serve ...

That is what a stalled disk does to a daemon, without a device that has to be stalled for it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from ckptd.daemon.cli import main
from ckptd.daemon.drill.faults import SECONDS_MAX

POLL_S = 0.05


def stall(marker: Path) -> None:
    """Hold every fsync back while the marker is there, and not for longer than a fault may last."""
    fsync = os.fsync

    def held(descriptor: Any) -> None:
        until = time.monotonic() + SECONDS_MAX
        while marker.exists() and time.monotonic() < until:
            time.sleep(POLL_S)
        fsync(descriptor)

    setattr(os, "fsync", held)  # noqa: B010  (a plain assignment is of another type than the system's)


if __name__ == "__main__":
    stall(Path(sys.argv.pop(1)))
    main()
