"""Warm trainers: forked from a server that has torch loaded, so that a restart does not wait for imports.

The server is Python's own forkserver, which torchrun uses for a function as entry point with --start-method forkserver. It
loads modules and nothing else: no thread is started, no device is touched.
"""

from __future__ import annotations

import importlib
import multiprocessing
import runpy
import sys
from multiprocessing import forkserver

PRELOADED = (
    "torch", "torch.distributed", "torch.optim", "torch._dynamo", "torch.nn.parallel", "torch.distributed.run",
    "ckptd.integrations.checkpointer", "ckptd.integrations.agent", "ckptd.integrations.warm",
)  # fmt: skip
"""What trainers and their launch import; torch._dynamo comes with the first optimizer step, and an agent's first failure."""


def start_server() -> None:
    """Start the server; it loads while the agents meet. The agent itself loads what it will need at the first failure."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()
    importlib.import_module("torch._dynamo")


def run_script(script: str, *arguments: str) -> None:
    """A trainer: the script as Python would run it."""
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def run_module(module: str, *arguments: str) -> None:
    """A trainer: the module as `python -m` would run it."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
