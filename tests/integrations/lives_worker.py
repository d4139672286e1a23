"""Lives of a training, each with ranks of its own number: `python -m tests.integrations.lives_worker DIRECTORY`.

Reads one life a line (JSON: `layout`, `world`, `mode`, `run_dirs`), forks a process for each of its ranks from itself, which
has loaded torch already, and prints what they found, a list in rank order. Modes: `train` begins anew, takes three steps and
captures each; `look` restores; `go_on` restores, takes one step and captures it. A life that captures ends when its last
step is sealed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.integrations.dcp_worker import digest_of, hybrid, layers, tensor_parallel, trained_by_adamw
from tests.integrations.sharded_worker import line, shard_each
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn.parallel import DistributedDataParallel

from ckptd.integrations.checkpointer import Checkpointer

STEPS = 3


class Position:
    """How many samples were taken: what each rank has taken alone, and all of them together."""

    def __init__(self) -> None:
        self.taken = self.before = 0

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken, "before": self.before}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken, self.before = state["taken"], state["before"]

    def reshape_state_dict(self, states: Sequence[dict[str, int]], *, rank: int, world: int) -> dict[str, int]:
        return {"taken": 0, "before": states[0]["before"] + sum(state["taken"] for state in states)}


def fsdp(world: int) -> dict[str, Any]:
    return trained_by_adamw(shard_each(layers(36), line(world)))


def ddp(world: int) -> dict[str, Any]:
    objects = trained_by_adamw(layers(36))
    return {**objects, "model": DistributedDataParallel(objects["model"])}


LAYOUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "ddp": ddp,
    "fsdp": fsdp,
    "hsdp": hybrid,
    "tensor_parallel": tensor_parallel,
}


def update(objects: dict[str, Any], rank: int) -> None:
    """One step on a batch of this rank's own."""
    model = objects["model"]
    loss = model(torch.randn(8, 8)).square().mean()
    torch.autograd.backward(loss)
    objects["optimizer"].step()
    objects["optimizer"].zero_grad()
    objects["schedule"].step()
    getattr(model, "module", model).seen += 1
    objects["position"].taken += rank + 1


def live(layout: str, rank: int, world: int, mode: str) -> dict[str, Any]:
    """One rank's life."""
    torch.manual_seed(0 if mode == "train" else 7)
    objects = LAYOUTS[layout](world)
    objects["schedule"] = torch.optim.lr_scheduler.StepLR(objects["optimizer"], step_size=2)
    objects["position"] = position = Position()
    torch.manual_seed(rank)
    with Checkpointer(on_error="raise", when_full="wait", **objects) as ck:
        step = 0 if mode == "train" else ck.restore()
        restored = _digest(objects) if step else ""
        for _ in range({"train": STEPS, "go_on": 1, "look": 0}[mode]):
            update(objects, rank)
            step += 1
            ck.step(step)
        reached = "" if mode == "look" else ck.wait("sealed", 20.0)
    return {
        "step": step,
        "restored": restored,
        "digest": _digest(objects),
        "random": int(torch.randint(1 << 60, ()).item()),
        "before": position.before,
        "reached": reached,
    }


def _digest(objects: dict[str, Any]) -> str:
    """Of all parameters, buffers and optimizer states as whole tensors, whatever holds them."""
    model, optimizer = get_state_dict(objects["model"], objects["optimizer"])
    return digest_of({"model": model, "optimizer": optimizer, "schedule": objects["schedule"].state_dict()})


def rank_of(directory: Path, number: int, rank: int, life: dict[str, Any]) -> None:
    """What a forked process does."""
    torch.set_num_threads(1)
    world, run_dirs = life["world"], life["run_dirs"]
    os.environ["CKPTD_RUN_DIR"] = run_dirs[min(rank, len(run_dirs) - 1)]
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": "1"}
    store = f"file://{directory}/store-{number}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    try:
        found = live(life["layout"], rank, world, life["mode"])
    except Exception as error:  # noqa: BLE001 - the test judges it
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    (directory / f"found-{number}-{rank}").write_text(json.dumps(found))
    dist.destroy_process_group()


def main(directory: Path) -> None:
    """Serve lives until the input ends."""
    for number, text in enumerate(sys.stdin):
        life = json.loads(text)
        children = []
        for rank in range(life["world"]):
            child = os.fork()
            if not child:
                try:
                    rank_of(directory, number, rank, life)
                finally:
                    sys.stderr.flush()
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        found = [json.loads((directory / f"found-{number}-{rank}").read_text()) for rank in range(life["world"])]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
