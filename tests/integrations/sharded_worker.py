"""One rank of sharded trainings, one after the other: `python -m ... RANK WORLD DIRECTORY MODE SCENARIO...`; prints JSON.

Modes: `fresh` trains six steps and captures each; `resume` restores into fresh objects and trains up to step six;
`killed` trains three steps beside a real daemon, waits until the third is captured, and kills itself; `daemon` is `resume`
beside that daemon.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.fakes import FakeChannel, bits
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from xxhash import xxh3_128_hexdigest

from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.shards import memory_of

STEPS, KEPT = 6, 3


def layers() -> nn.Sequential:
    """Uneven rows for any number of ranks, one parameter with fewer rows than ranks, buffers and dropout."""
    return nn.Sequential(
        nn.Linear(8, 33), nn.ReLU(), nn.BatchNorm1d(33), nn.Dropout(0.3), nn.Linear(33, 16), nn.Linear(16, 1)
    )


def shard_each(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    for layer in (model[0], model[4]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def line(world: int) -> DeviceMesh:
    return init_device_mesh("cpu", (world,))


def square() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))


def fsdp(world: int) -> dict[str, Any]:
    model = shard_each(layers(), line(world))
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}


def fsdp_fused(world: int) -> dict[str, Any]:
    model = shard_each(layers(), line(world))
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)}


def hsdp(world: int) -> dict[str, Any]:
    model = shard_each(layers(), square())
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)}


def tensor_parallel(world: int) -> dict[str, Any]:
    """Rows and columns over the inner dimension, then everything over the outer one; BatchNorm over the outer one only."""
    mesh, model = square(), nn.Sequential(nn.Linear(8, 36), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    parallelize_module(model, mesh["inner"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["outer"])
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}


def mixture(world: int) -> dict[str, Any]:
    """A sharded model, one that pairs of ranks replicate, and an optimizer for each."""
    mesh = square()
    sharded, pair = shard_each(layers(), line(world)), nn.Sequential(nn.Linear(1, 24), nn.Linear(24, 1))
    model = DistributedDataParallel(pair, process_group=mesh["inner"].get_group())
    return {
        "body": sharded,
        "head": model,
        "optimizer": torch.optim.AdamW(sharded.parameters(), lr=0.01),
        "other": torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True),
    }


SCENARIOS: dict[str, Callable[[int], dict[str, Any]]] = {
    "fsdp": fsdp, "fsdp_fused": fsdp_fused, "hsdp": hsdp, "tensor_parallel": tensor_parallel, "mixture": mixture,
}  # fmt: skip


def update(objects: dict[str, Any]) -> float:
    """One step on this rank's own batch."""
    models = [thing for thing in objects.values() if isinstance(thing, nn.Module)]
    optimizers = [thing for thing in objects.values() if isinstance(thing, torch.optim.Optimizer)]
    found = torch.randn(16, 8)
    for model in models:
        found = model(found)
    loss = found.square().mean()
    torch.autograd.backward(loss)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def evaluate(objects: dict[str, Any]) -> None:
    """A forward without a backward, which leaves fully_shard's root unsharded."""
    found = torch.ones(4, 8)
    with torch.no_grad():
        for thing in objects.values():
            if isinstance(thing, nn.Module):
                found = thing.eval()(found)
                thing.train()


def state_of(objects: dict[str, Any]) -> list[torch.Tensor]:
    """This rank's part of all parameters, buffers and optimizer states."""
    tensors: list[torch.Tensor] = []
    for thing in objects.values():
        if isinstance(thing, nn.Module):
            tensors += [*thing.parameters(), *thing.buffers()]
        elif isinstance(thing, torch.optim.Optimizer):
            tensors += [
                value for state in thing.state.values() for value in state.values() if isinstance(value, torch.Tensor)
            ]
    return [memory_of(tensor) for tensor in tensors]


def digest_of(tensors: list[torch.Tensor]) -> str:
    return xxh3_128_hexdigest(b"".join(bits(tensor) for tensor in tensors))


def train(name: str, rank: int, world: int, directory: Path, mode: str) -> dict[str, Any]:
    """Train one scenario, and return what happened."""
    torch.manual_seed(0 if mode in ("fresh", "killed") else 5)
    objects = SCENARIOS[name](world)
    group = rank // 2 if name == "tensor_parallel" else rank  # the ranks of a tensor-parallel group see the same data
    torch.manual_seed(group if mode in ("fresh", "killed") else 99)
    fake: dict[str, Any] = (
        {} if mode in ("killed", "daemon") else {"job": "job", "channel": FakeChannel(directory / name)}
    )
    losses, whole = [], ""
    with Checkpointer(on_error="raise", **fake, **objects) as ck:
        step = ck.restore()
        while step < STEPS:
            losses.append(update(objects))
            evaluate(objects)
            step += 1
            ck.step(step)
            if step == KEPT:
                parameters = next(iter(objects.values())).parameters()
                whole = digest_of([p.full_tensor() if isinstance(p, DTensor) else p for p in parameters])
            if step == KEPT and mode == "killed":
                assert ck.wait("captured") in ("captured", "sealed")
                print(json.dumps(losses), flush=True)
                dist.barrier()
                os.kill(os.getpid(), signal.SIGKILL)
    digest = digest_of([*state_of(objects), torch.get_rng_state()])
    return {"losses": losses, "digest": digest, "whole": whole, "captured": ck.stats.captured}


def main(rank: int, world: int, directory: Path, mode: str, *names: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store-{mode}-{world}", rank=rank, world_size=world)
    results = {name: train(name, rank, world, directory, mode) for name in names}
    dist.destroy_process_group()
    return results


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])))
