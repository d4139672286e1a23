"""Starts the ranks of a small training as processes that talk over gloo."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 200


def run_ranks(module: str, world: int, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run `python -m module RANK WORLD arguments...` once for each rank; what each printed, in rank order.

    A rank that ends with SIGKILL has done so on purpose; any other end but 0 fails the test.
    """
    server = _server()
    orders, answers = server.stdin, server.stdout
    assert orders is not None
    assert answers is not None
    with tempfile.TemporaryDirectory(prefix="ckptd-ranks-") as folder:
        order = {
            "module": module, "world": world, "arguments": arguments, "folder": folder,
            "environment": {"LOCAL_WORLD_SIZE": str(world), **(environment or {})},
        }  # fmt: skip
        print(json.dumps(order), file=orders, flush=True)
        session = int(answers.readline())
        in_time = bool(select.select([answers], [], [], TIMEOUT_S)[0])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)  # whoever is left
        codes = json.loads(answers.readline())
        printed = [[(Path(folder) / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(world)]
    assert in_time, printed
    assert len(codes) == world, printed
    assert all(code in (0, -9) for code in codes), (codes, printed)
    return [out for out, _ in printed]


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that ranks are forked from, which ends with this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CKPTD_")}
    own = {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integrations.ranks"], cwd=ROOT, env=kept | own, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1,
    )  # fmt: skip
