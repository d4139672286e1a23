"""One rank of a training that a sharded strategy of Lightning saves at `ckptd://t`, for `tests.integrations.lives`.

It appends to `--events`, a JSON object a line, the step that it begins at, and after each step a digest of parameters,
moments and schedule. With `--saved STEP` it saves nothing after that step, shows by its digests what comes of it without an
interruption, and ends by SIGKILL. What a step is trained on follows from its number: a resume of Lightning has neither
random numbers nor the place in the data.
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
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.integrations.dcp_worker import digest_of, layers
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader, TensorDataset

from ckptd.lightning import CkptdFSDPStrategy, CkptdModelParallelStrategy, newest_step

STEPS, URL = 6, "ckptd://t"


class Module(LightningModule):  # type: ignore[misc]
    """Layers that do not divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers: nn.Module = layers()

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, CkptdModelParallelStrategy):
            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])
        else:  # by hand: what the strategy wraps itself, it moves to a GPU
            self.layers = FullyShardedDataParallel(self.layers, device_id=torch.device("cpu"), use_orig_params=True)

    def training_step(self, batch: Any) -> torch.Tensor:
        torch.manual_seed(2 * self.global_step + self.global_rank)
        return torch.as_tensor(self.layers(torch.randn(4, 8)).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Told(Callback):  # type: ignore[misc]
    """Tells of every step."""

    def __init__(self, events: str) -> None:
        self._events = Path(events)

    def on_train_start(self, trainer: Trainer, pl_module: Module) -> None:
        self._say(begins=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Module, *_: Any) -> None:
        whole = StateDictOptions(full_state_dict=True)
        model, optimizer = get_state_dict(trainer.strategy.model, trainer.optimizers[0], options=whole)
        schedule = trainer.lr_scheduler_configs[0].scheduler.state_dict()
        self._say(digest=digest_of({"model": model, "optimizer": optimizer, "schedule": schedule}))

    def _say(self, **event: Any) -> None:
        with self._events.open("a") as file:
            print(json.dumps(event), file=file)


class SavedUntil(ModelCheckpoint):  # type: ignore[misc]
    """Of each step, up to the last that is to be saved."""

    def __init__(self, last: int) -> None:
        super().__init__(dirpath=URL, every_n_train_steps=1)
        self._last = last

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step <= self._last:
            super().on_train_batch_end(trainer, *rest)


def parse(description: str, argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--strategy", choices=["parallel", "fsdp"])
    parser.add_argument("--saved", type=int, default=0)
    parser.add_argument("--events")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    strategy = (
        CkptdFSDPStrategy(state_dict_type="sharded")
        if options.strategy == "fsdp"
        else CkptdModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    )
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_steps=STEPS, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Told(options.events), SavedUntil(options.saved or STEPS)],
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(torch.zeros(100)), 1), ckpt_path=newest_step("t"))
    if options.saved:
        torch.distributed.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
