"""One rank of a small training over gloo, which does something wrong at a step when it is told to.

python -m tests.real.watched_worker RANK WORLD STORE STEPS [WHAT:RANK:STEP]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from ckptd import Checkpointer

STEP_S = 0.03
EVALUATION_S = 9.0


def misbehave(what: str) -> None:
    """What a fault does to the rank, in its own step."""
    if what == "sleep":
        time.sleep(600)
    elif what == "gil":
        ctypes.PyDLL(None).sleep(600)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "slow":
        time.sleep(0.15)


def evaluate(checkpointer: Checkpointer, seconds: float) -> None:
    """One rank evaluates, and the others wait for it."""
    with checkpointer.phase("eval"):
        time.sleep(seconds)
        dist.barrier()


def main(rank: int, world: int, store: str, steps: int, fault: str = "") -> None:
    """Train; the culprit does what it is told from its step on."""
    what, who, when = fault.split(":") if fault else ("", "-1", "0")
    # Not imported by hand before: the Checkpointer was, and it has set what torch reads here.
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 16)
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpointer = Checkpointer(model=model, optimizer=optimizer, every=10)
    start = checkpointer.restore()
    for step in range(start + 1, steps + 1):
        time.sleep(STEP_S)
        if what == "eval" and step == int(when):
            evaluate(checkpointer, EVALUATION_S * (rank == int(who)))
        elif rank == int(who) and (step == int(when) or (what == "slow" and step > int(when))):
            misbehave(what)
        ddp(torch.randn(4, 16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        checkpointer.step(step)
    checkpointer.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
