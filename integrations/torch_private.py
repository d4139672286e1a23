"""Every private name of torch that watching a rank needs, in one place; tried with torch 2.13.

Without these names less is seen of a job that hangs, and `missing` says what. One more is here: `store_of_the_job`, for
files that several ranks save. Those of torch elastic's agent are in `agent.py`, which checks them; those of tensors and
their placements stand where state is captured, and fail there by name.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ckptd.ckpt.errors import UsageError

RECORDER_ENTRIES = 128
"""Collectives that the Flight Recorder keeps. A status comes with all of them: 128 are 60 KB and 2 ms, 2,000 are 950 KB."""
_SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_GPUS = ("/dev/nvidiactl", "/dev/kfd")
_served: dict[Path, int] = {}
"""The sockets at which this process answers, and their inodes."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """A process group that this rank is in."""

    name: str
    backend: str
    ranks: tuple[int, ...]


def prepare(environment: MutableMapping[str, str]) -> str:
    """Have the Flight Recorder keep few collectives, unless somebody has chosen a size. Returns what is to be said, or "".

    torch reads it when the first process group is made. With GPUs it is left alone: there the status comes without entries,
    and the entries are for who looks into an abort of NCCL.
    """
    if any(name in environment for name in _SIZES) or any(Path(path).exists() for path in _GPUS):
        return ""
    if dist.is_available() and dist.is_initialized():
        return (
            f"ckptd was imported after the process group was made: torch keeps 2,000 collectives, which slows looking at "
            f"them; import ckptd.Checkpointer earlier, or set {_SIZES[0]}={RECORDER_ENTRIES}"
        )
    environment[_SIZES[0]] = str(RECORDER_ENTRIES)
    return ""


def is_recording(environment: Mapping[str, str]) -> bool:
    """Whether the Flight Recorder was switched off by its size."""
    return next((environment[name] for name in _SIZES if name in environment), "1").strip() != "0"


def serve(path: Path) -> None:
    """Let torch's handlers answer at a unix socket from now on until the process ends; nothing where this torch has none.

    Raises OSError, RuntimeError.
    """
    server = getattr(torch_c10d(), "_WorkerServer", None) if dist.is_available() else None
    if server is None or (path.exists() and _served.get(path) == path.stat().st_ino):
        return
    path.unlink(missing_ok=True)
    made = server(str(path))
    # Never taken down, and so never destroyed either: both wait for its thread while they hold the interpreter's lock. That
    # takes for ever when the thread has not begun to listen yet, or when a handler waits for the lock.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    _served[path] = path.stat().st_ino
    atexit.register(_hide, path, os.getpid())


def _hide(path: Path, pid: int) -> None:
    """Let nobody ask any more: a handler that wants the lock of an interpreter that is torn down aborts the process."""
    with contextlib.suppress(OSError):
        if os.getpid() == pid and _served[path] == path.stat().st_ino:  # and not a successor's
            path.unlink()


def count_groups() -> int:
    """How many process groups this rank is in; changes when its list of them does, but for one that replaces another."""
    known = _known()
    return 0 if known is None else len(known)


def groups() -> list[ProcessGroup]:
    """The process groups that this rank is in; only the whole job's where torch's table is not found."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    known = _known()
    if known is None:
        world = dist.group.WORLD
        known = {} if world is None else {world: None}
    found = []
    for group in list(known):
        try:
            ranks = tuple(dist.get_process_group_ranks(group))
            found.append(ProcessGroup(str(group.group_name), str(dist.get_backend(group)), ranks))
        except (KeyError, RuntimeError, ValueError):  # destroyed meanwhile
            continue
    return found


def missing(environment: Mapping[str, str]) -> list[str]:
    """What can't be seen of this process, in words; empty with the torch that this was made for."""
    lacks = []
    if not dist.is_available():
        return ["torch was built without torch.distributed: of this rank the steps, the phase and the process are seen"]
    if not hasattr(torch_c10d(), "_WorkerServer"):
        lacks.append("torch has no _WorkerServer: collectives and stacks are not seen, only steps, phase and process")
    if dist.is_initialized() and _known() is None:
        lacks.append("torch's table of process groups is not where it was: only the whole job's group is known")
    if not is_recording(environment):
        lacks.append("the Flight Recorder is off (TORCH_FR_BUFFER_SIZE=0): collectives are not seen")
    return lacks


def torch_c10d() -> Any:
    """The module of torch's native collectives."""
    return getattr(torch._C, "_distributed_c10d", None)  # noqa: SLF001 - this is the file for it


def _known() -> dict[Any, Any] | None:
    world = getattr(getattr(dist, "distributed_c10d", None), "_world", None)
    table = getattr(world, "pg_map", None)
    return table if isinstance(table, dict) else None


def store_of_the_job() -> Any:
    """The key-value store of the default process group, by a connection of its own. Raises UsageError without one."""
    look_up = getattr(getattr(dist, "distributed_c10d", None), "_get_default_store", None)
    if look_up is None or not hasattr(torch_c10d().Store, "clone") or not dist.is_initialized():
        raise UsageError(
            f"torch {torch.__version__} shows no store of the job's ranks, which files that several ranks write need; "
            "save by ckptd.dcp.save()"
        )
    return look_up().clone()  # a call that waits in the other connection keeps nobody waiting here


def environment() -> MutableMapping[str, str]:
    """This process's own, which torch's native part reads too."""
    return os.environ
