"""A training by torchdata's loader in several lives: `python -m tests.integrations.data_job DIRECTORY KILL KILL ...`.

Two ranks of DistributedDataParallel, two workers each, two epochs. Life 0 trains through without ckptd; each of the others
restores, goes on, and is ended by SIGKILL after a step: after its snapshot is committed for a positive number, at once for a
negative one. The last one trains to the end. The ranks are forked from here, so that torch is imported once. Each writes a
line for every step to DIRECTORY/life-LIFE.rank-RANK.jsonl. The daemon is that of CKPTD_RUN_DIR.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer does that, in each rank of each life
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from ckptd.integrations.checkpointer import Checkpointer

WORLD, WORKERS, BATCH, SAMPLES, EPOCHS = 2, 2, 3, 42, 2
STEPS_AN_EPOCH = SAMPLES // (WORLD * BATCH)
STEPS = EPOCHS * STEPS_AN_EPOCH


class Numbers(Dataset[tuple[int, Tensor]]):
    """Each sample says which one it is."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.full((8,), index / SAMPLES)


def train(rank: int, directory: Path, life: int, kill: int) -> None:
    """One life of one rank."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD))
    dist.init_process_group("gloo", init_method=f"file://{directory}/store-{life}", rank=rank, world_size=WORLD)
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 1))
    model = DistributedDataParallel(layers, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(rank if life < 2 else 99)
    data: Dataset[tuple[int, Tensor]] = Numbers()
    sampler: DistributedSampler[int] = DistributedSampler(data, seed=5)
    generator = torch.Generator()
    loader = StatefulDataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=WORKERS, generator=generator)
    checkpointed = Checkpointer(model=model, optimizer=optimizer, data=loader) if life else None
    step = checkpointed.restore() if checkpointed else 0
    with (directory / f"life-{life}.rank-{rank}.jsonl").open("w", buffering=1) as log:
        while step < STEPS:
            sampler.set_epoch(step // len(loader))
            generator.manual_seed(step // len(loader))
            for which, batch in loader:
                loss = model(batch).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                log.write(json.dumps({"step": step, "samples": which.tolist(), "loss": loss.item().hex()}) + "\n")
                if checkpointed:
                    checkpointed.step(step)
                if step == abs(kill):
                    if kill > 0 and checkpointed:
                        assert checkpointed.wait("captured") != "none"
                    dist.barrier()
                    os.kill(os.getpid(), signal.SIGKILL)
    if checkpointed:
        checkpointed.close()
    dist.destroy_process_group()


def main(directory: Path, kills: list[int]) -> None:
    fork = multiprocessing.get_context("fork")
    for life, kill in enumerate([0, *kills, 0]):
        ranks = [fork.Process(target=train, args=(rank, directory, life, kill)) for rank in range(WORLD)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()  # without a time: that would also wait for the workers, which find out seconds later
        found = [process.exitcode for process in ranks]
        assert found == [-signal.SIGKILL if kill else 0] * WORLD, f"life {life} ended with {found}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
