"""One rank of a sharded training that saves and loads by `ckptd.dcp`: `... RANK WORLD DIRECTORY MODE RUN_DIRS`; prints JSON.

Rank r talks to the daemon in the run directory r of RUN_DIRS, or to the last one. Modes: `save` trains five steps and saves
each, the middle ones by async_save, twice in a thread and then in a process, and loads these; `load` reads the newest step
into fresh objects, and two ranks save it anew; `wrong` asks for a model of another shape; `meshes` (four ranks) saves and
loads across meshes of one and two dimensions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.dcp_async import counted
from tests.fakes import bits
from tests.integrations.sharded_worker import line, shard_each, square, update
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from xxhash import xxh3_128_hexdigest

import ckptd.dcp
from ckptd.ckpt.errors import CkptdError

STEPS = 5
Build = Callable[[int], dict[str, Any]]


def layers(width: int = 33) -> nn.Sequential:
    """Uneven rows for any number of ranks, and a parameter with fewer rows than ranks."""
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 1))


def trained_by_adamw(model: nn.Module) -> dict[str, Any]:
    """With a buffer that all ranks have alike."""
    model.register_buffer("seen", torch.tensor(0))
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)}


def objects_of(world: int, width: int = 33) -> dict[str, Any]:
    """Sharded over all ranks."""
    return trained_by_adamw(shard_each(layers(width), line(world)))


def hybrid(world: int) -> dict[str, Any]:
    """Replicas in pairs, sharded within each."""
    return trained_by_adamw(shard_each(layers(36), square()))


def tensor_parallel(world: int) -> dict[str, Any]:
    """Columns and rows over pairs, then everything over the pairs. Its forward needs a width that both can share."""
    mesh, model = square(), layers(36)
    parallelize_module(model, mesh["inner"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["outer"])
    return trained_by_adamw(model)


def state_of(objects: dict[str, Any]) -> dict[str, Any]:
    model, optimizer = get_state_dict(objects["model"], objects["optimizer"])
    return {"model": model, "optimizer": optimizer, "plain": {"text": "as it was", "number": 0.1}}


def digest_of(state: Any) -> str:
    """Of every tensor as a whole, and of every other value, by name."""
    found: list[bytes] = []

    def visit(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                visit(f"{name}.{key}", value[key])
        elif isinstance(value, list):
            for index, item in enumerate(value):
                visit(f"{name}.{index}", item)
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            found.append(name.encode() + bits(whole))
        else:
            found.append(f"{name}={value!r}".encode())

    visit("", state)
    return xxh3_128_hexdigest(b"".join(found))


def save(rank: int, world: int) -> dict[str, Any]:
    """Every step is saved in another way, and the state is changed right after an asynchronous one has returned."""
    torch.manual_seed(0)
    objects, digests, copied = objects_of(world), [], []
    torch.manual_seed(rank)
    for step in range(1, STEPS + 1):
        update(objects)
        objects["model"].seen += 1
        state = state_of(objects)
        digests.append(digest_of(state))
        if step == 1 or step == STEPS:
            ckptd.dcp.save(state, checkpoint_id=step)
        else:
            kind = AsyncCheckpointerType.PROCESS if step == STEPS - 1 else AsyncCheckpointerType.THREAD
            with counted() as sizes:
                future = ckptd.dcp.async_save(state, checkpoint_id=f"step-{step}", async_checkpointer_type=kind)
                with torch.no_grad():
                    for parameter in objects["model"].parameters():
                        parameter.mul_(1.5)
                future.result(100)
            copied.append(sum(sizes))
            found = state_of(objects_of(world))
            ckptd.dcp.load(found, checkpoint_id=step)
            assert digest_of(found) == digests[-1]
    return {"digests": digests, "copied": copied[:2]}


def load(rank: int, world: int) -> dict[str, Any]:
    torch.manual_seed(7)
    objects = objects_of(world)
    state = state_of(objects)
    state["plain"] = {"text": "", "number": 0.0}
    before = digest_of(state)
    ckptd.dcp.load(state)
    set_state_dict(
        objects["model"], objects["optimizer"], model_state_dict=state["model"],
        optim_state_dict=state["optimizer"], options=StateDictOptions(strict=True),
    )  # fmt: skip
    again = state_of(objects)
    again["plain"] = state["plain"]
    assert before != digest_of(again)
    if world == 2:
        ckptd.dcp.save(again, checkpoint_id=STEPS + 1)
    return {"digest": digest_of(again)}


def wrong(rank: int, world: int) -> dict[str, Any]:
    objects = objects_of(world, width=35)
    state = state_of(objects)
    before = digest_of(state)
    try:
        ckptd.dcp.load(state, checkpoint_id=STEPS + 1)
    except CkptdError as error:
        return {"error": str(error), "kind": type(error).__name__, "changed": digest_of(state) != before}
    return {}


def meshes(rank: int, world: int) -> dict[str, Any]:
    """What is trained under one mesh, loaded under the next one: the digests before and after."""
    pairs = []
    line_of = partial(objects_of, width=36)
    turns: list[tuple[Build, Build]] = [(line_of, hybrid), (hybrid, tensor_parallel), (tensor_parallel, line_of)]
    for step, (before, after) in enumerate(turns, start=1):
        torch.manual_seed(step)
        objects = before(world)
        update(objects)
        saved = state_of(objects)
        ckptd.dcp.save(saved, checkpoint_id=step)
        torch.manual_seed(100)
        into = after(world)
        found = state_of(into)
        fresh = digest_of(found)
        ckptd.dcp.load(found, checkpoint_id=step)
        set_state_dict(
            into["model"], into["optimizer"], model_state_dict=found["model"], optim_state_dict=found["optimizer"]
        )
        assert fresh != digest_of(state_of(into))
        pairs.append([digest_of(saved), digest_of(state_of(into))])
    return {"pairs": pairs}


MODES: dict[str, Callable[[int, int], dict[str, Any]]] = {"save": save, "load": load, "wrong": wrong, "meshes": meshes}


def main(rank: int, world: int, directory: Path, mode: str, run_dirs: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    places = run_dirs.split(",")
    os.environ["CKPTD_RUN_DIR"] = places[min(rank, len(places) - 1)]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": str(rank), "WORLD_SIZE": str(world)}
    store = f"file://{directory}/store-{mode}-{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    result = MODES[mode](rank, world)
    dist.destroy_process_group()
    return result


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])))
