"""One rank of a DDP training run: `python -m tests.integrations.ddp_worker RANK WORLD DIRECTORY MODE`; prints JSON.

Modes: `fresh` trains six steps; `resume` first tries to restore with an object on rank 1 that no snapshot has, then
restores and trains up to step six.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.fakes import FakeChannel, bits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from xxhash import xxh3_128_hexdigest

from ckptd.ckpt.errors import CkptdError
from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.rng import Generators

STEPS = 6


def main(rank: int, world: int, directory: Path, mode: str) -> dict[str, Any]:
    """Train, and return what happened."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store-{mode}", rank=rank, world_size=world)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Dropout(0.3), nn.Linear(64, 4))
    model = DistributedDataParallel(layers, broadcast_buffers=False)  # so statistics differ between the ranks
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(rank if mode == "fresh" else 99)
    said = unlike(rank, directory, model=model, optimizer=optimizer) if mode == "resume" else ""
    ck = Checkpointer(job="job", channel=FakeChannel(directory), model=model, optimizer=optimizer)
    step = 0 if mode == "fresh" else ck.restore()
    losses = []
    while step < STEPS:
        loss = model(torch.randn(16, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(loss.item())
        ck.step(step)
    tensors = [
        *layers.state_dict().values(),
        *(value for state in optimizer.state.values() for value in state.values()),
    ]
    digest = xxh3_128_hexdigest(b"".join(bits(tensor) for tensor in [*tensors, torch.get_rng_state()]))
    dist.destroy_process_group()
    return {
        "losses": losses,
        "digest": digest,
        "failed": ck.stats.failed,
        "said": said,
    }  # the exit closes the last window


def unlike(rank: int, directory: Path, **objects: Any) -> str:
    """What this rank hears when the snapshot does not fit the objects of rank 1."""
    more: dict[str, Any] = {"data": Generators()} if rank == 1 else {}
    with Checkpointer(job="job", channel=FakeChannel(directory), **objects, **more) as ck:
        try:
            ck.restore()
        except CkptdError as error:
            return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
