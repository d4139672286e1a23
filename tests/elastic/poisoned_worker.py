"""A trainer whose state is poisoned from one step on: a life that has it dies later, always at the same step.

poisoned_worker.py FOLDER STEPS POISON STEP     a life that has not come back to before step POISON dies after STEP
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from ckptd import Checkpointer

STEP_S, EVERY = 0.05, 8


def main(folder: Path, steps: int, poison: int, dies_after: int) -> None:
    torch.manual_seed(3)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    checkpointer = Checkpointer(model=model, optimizer=optimizer, every=EVERY)
    start = checkpointer.restore()
    with (folder / "lives").open("a") as lives:
        lives.write(f"{start}\n")
    heals = 0 < start < poison  # whatever it was that went wrong at that step, it does not happen again
    for step in range(start + 1, steps + 1):
        time.sleep(STEP_S)
        if step == 1 + dies_after and not heals:
            os._exit(3)
        model(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        checkpointer.step(step)
    checkpointer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
