"""One rank of a training that TorchTitan's own CheckpointManager saves: `... RANK WORLD DIRECTORY LIFE RUN_DIRS KILL_AT`.

TorchTitan's Trainer needs an accelerator; its manager does not. Rank r talks to the daemon in the run directory r of
RUN_DIRS. It prints the step that the manager has loaded, and a digest of each step. With KILL_AT it saves nothing after
that step, shows by its digests what comes of it without an interruption, and ends by SIGKILL. The first life saves
asynchronously.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.integrations.dcp_worker import digest_of, layers
from tests.integrations.sharded_worker import line, shard_each
from torchtitan.components.checkpointer.dcp import CheckpointManager

from ckptd.examples.train_torchtitan import Optimizers, Progress

STEPS = 5
FOLDER = "ckptd://t"


def train(rank: int, world: int, life: str, kill_at: int) -> None:
    torch.manual_seed(0)
    model = shard_each(layers(), line(world))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    progress, optimizers = Progress(), Optimizers(model, optimizer)
    config = CheckpointManager.Config(
        enable=True, folder=FOLDER, interval=1, keep_latest_k=0, last_save_model_only=False,
        async_mode="async" if life == "1" else "disabled",
    )  # fmt: skip
    manager = CheckpointManager(
        config, dataloader=None, model_parts=[model], optimizers=optimizers, lr_schedulers=scheduler,
        states={"train_state": progress}, sd_adapter=None,
    )  # fmt: skip
    manager.load()
    print(progress.step)
    while progress.step < STEPS:
        progress.step += 1
        torch.manual_seed(progress.step * world + rank)
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(4, 8)).square().mean())
        manager.maybe_wait_for_staging()
        optimizer.step()
        scheduler.step()
        print(digest_of({"model": model.state_dict(), "optimizer": optimizers.state_dict()}), flush=True)
        if not kill_at or progress.step <= kill_at:
            manager.save(progress.step, last_step=progress.step == STEPS)
    if kill_at:
        manager.maybe_wait_for_saving()
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    manager.close()


def main(rank: int, world: int, directory: Path, life: str, run_dirs: str, kill_at: str) -> None:
    torch.set_num_threads(1)
    os.environ["CKPTD_RUN_DIR"] = run_dirs.split(",")[rank]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{directory}/store-{life}", rank=rank, world_size=world)
    train(rank, world, life, int(kill_at))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
