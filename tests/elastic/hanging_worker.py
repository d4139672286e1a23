"""A trainer that keeps its state with ckptd, and of which one rank hangs in its own code, once.

hanging_worker.py FOLDER STEPS RANK STEP     this rank sleeps at that step, unless `FOLDER/hung` says that it has
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from ckptd import Checkpointer

STEP_S = 0.02


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and its optimizer, alike on all ranks."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def loss_of(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    """The loss of a rank's part of a step; its gradients are added to those of the model."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    loss: torch.Tensor = model(torch.randn(4, 8, generator=generator)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def main(folder: Path, steps: int, culprit: int, at: int) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    model, optimizer = made()
    checkpointer = Checkpointer(model=model, optimizer=optimizer, every=1)
    start = checkpointer.restore()
    with (folder / f"losses-{os.getpid()}.jsonl").open("w", buffering=1) as log:
        for step in range(start + 1, steps + 1):
            time.sleep(STEP_S)
            if rank == culprit and step == at and not (folder / "hung").exists():
                (folder / "hung").write_text(repr(time.time()))
                time.sleep(600)
            loss = loss_of(model, rank, step)
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
            checkpointer.step(step)
            log.write(json.dumps({"rank": rank, "step": step, "loss": float(loss.detach()).hex()}) + "\n")
    checkpointer.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
