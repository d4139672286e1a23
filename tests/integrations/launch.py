"""Starts the ranks of a small training as processes that talk over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 200


def run_ranks(module: str, world: int, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run `python -m module RANK WORLD arguments...` once for each rank; what each printed, in rank order.

    A rank that ends with SIGKILL has done so on purpose; any other end but 0 fails the test.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CKPTD_")}
    own = {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(world), *arguments],
            cwd=ROOT,
            env={**clean, **own, "LOCAL_WORLD_SIZE": str(world), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        printed = [rank.communicate(timeout=TIMEOUT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode in (0, -9) for rank in ranks), printed
    return [out for out, _ in printed]
