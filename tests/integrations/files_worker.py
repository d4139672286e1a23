"""One rank of a sharded training that saves by stock DCP to `ckptd://`: `RANK WORLD DIRECTORY LIFE RUN_DIRS KILL_AT`.

Rank r talks to the daemon in the run directory r of RUN_DIRS. It trains to STEPS from the newest step, if there is one, and
saves each; it prints where it began, and a digest of each step before that is saved. At step KILL_AT both ranks end by
SIGKILL: rank 1 when its file is written and rank 0 has not called, rank 0 when it has noticed.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future
from typing import Any

import fsspec
import torch
import torch.distributed as dist
from tests.integrations.dcp_worker import digest_of, objects_of, state_of
from tests.integrations.sharded_worker import update
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.state_dict import set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ckptd.integrations.filesystem import CkptdFileSystem

STEPS = 4
FOLDER = "ckptd://t"


def newest() -> int:
    """The newest step that can be loaded, found as trainers of others find it: by their folder's names."""
    fs = fsspec.filesystem("ckptd")
    steps = [int(name.rpartition("-")[2]) for name in (fs.ls(FOLDER, detail=False) if fs.exists(FOLDER) else [])]
    return max((step for step in steps if fs.exists(f"{FOLDER}/step-{step}/.metadata")), default=0)


def save(state: dict[str, Any], step: int) -> None:
    """Each step in another way."""
    where = f"{FOLDER}/step-{step}"
    if step == 1:
        dcp_save(state, checkpoint_id=where)
    elif step == 2:
        dcp_save(state, storage_writer=FsspecWriter(where, thread_count=2))
    else:
        future = dcp_async_save(state, checkpoint_id=where)
        assert isinstance(future, Future)
        future.result(100)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(rank: int, world: int, kill_at: int) -> None:
    torch.manual_seed(0)
    objects = objects_of(world)
    begun = newest()
    print(begun)
    if begun:
        state = state_of(objects)
        dcp_load(state, checkpoint_id=f"{FOLDER}/step-{begun}")
        set_state_dict(
            objects["model"], objects["optimizer"], model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
    for step in range(begun + 1, STEPS + 1):
        torch.manual_seed(step)
        update(objects)
        objects["model"].seen += 1
        state = state_of(objects)
        print(digest_of(state), flush=True)
        if step != kill_at:
            save(state, step)
            continue
        if rank == 1:
            CkptdFileSystem._written = die  # type: ignore[assignment, method-assign]
        try:
            save(state, step)
        finally:
            die()


def parse(_: str, argv: list[str]) -> list[str]:
    """For `tests.integrations.lives`."""
    return argv


def main(argv: list[str]) -> None:
    rank, world, directory, life, run_dirs, kill_at = argv
    torch.set_num_threads(1)
    os.environ["CKPTD_RUN_DIR"] = run_dirs.split(",")[int(rank)]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": rank, "WORLD_SIZE": world}
    store = f"file://{directory}/store-{life}"
    dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=int(world))
    train(int(rank), int(world), int(kill_at))
    dist.destroy_process_group()
