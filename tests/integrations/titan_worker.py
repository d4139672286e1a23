"""One rank of a training that TorchTitan's own CheckpointManager saves at `ckptd://t`, for `tests.integrations.lives`.

TorchTitan's Trainer needs an accelerator; its manager does not. It appends to `--events`, a JSON object a line, the step
that the manager has loaded, and a digest of each step. With `--saved STEP` it saves asynchronously and nothing after that
step, shows by its digests what comes of it without an interruption, and ends by SIGKILL.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.integrations.dcp_worker import digest_of, layers
from tests.integrations.sharded_worker import line, shard_each
from torchtitan.components.checkpointer.dcp import CheckpointManager

from ckptd.examples.train_torchtitan import Optimizers, Progress

STEPS = 6
FOLDER = "ckptd://t"


def say(events: Path, **event: Any) -> None:
    with events.open("a") as file:
        print(json.dumps(event), file=file)


def train(saved: int, events: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = shard_each(layers(), line(world))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    progress, optimizers = Progress(), Optimizers(model, optimizer)
    config = CheckpointManager.Config(
        enable=True, folder=FOLDER, interval=1, keep_latest_k=0, last_save_model_only=False,
        async_mode="async" if saved else "disabled",
    )  # fmt: skip
    manager = CheckpointManager(
        config, dataloader=None, model_parts=[model], optimizers=optimizers, lr_schedulers=scheduler,
        states={"train_state": progress}, sd_adapter=None,
    )  # fmt: skip
    manager.load()
    say(events, begins=progress.step)
    while progress.step < STEPS:
        progress.step += 1
        torch.manual_seed(progress.step * world + rank)
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(4, 8)).square().mean())
        manager.maybe_wait_for_staging()
        optimizer.step()
        scheduler.step()
        say(events, digest=digest_of({"model": model.state_dict(), "optimizer": optimizers.state_dict()}))
        if not saved or progress.step <= saved:
            manager.save(progress.step, last_step=progress.step == STEPS)
    if saved:
        manager.maybe_wait_for_saving()
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    manager.close()


def parse(description: str, argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--saved", type=int, default=0)
    parser.add_argument("--events")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    train(options.saved, Path(options.events))
    dist.destroy_process_group()
