"""Train a tiny GPT-2 whose checkpoints are TorchTitan's, in memory: its own CheckpointManager with a folder that is a URL.

    pip install 'ckptd[torchtitan,transformers]'
    ckptd run --nproc-per-node 2 -m ckptd.examples.train_torchtitan --steps 100

(Beside `ckptd serve` also `python -m ckptd.examples.train_torchtitan`, or torchrun: the manager looks for steps before it
saves one, so a daemon must run.) Kill it at any moment and start the same command again: it goes on from the last step that
the manager has saved, bit for bit as if nothing had happened. With TorchTitan's trainer it is one option,
`--checkpoint.folder ckptd://titan`; but that trainer needs an accelerator, which its manager does not. `main` is the whole
story.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torchtitan.components.checkpointer.dcp import CheckpointManager

from ckptd.examples.gpt2 import tiny_gpt2
from ckptd.examples.tokens import Options, Report, Tokens, parse

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Optimizers:
    """An optimizer as TorchTitan keeps it: its state by the names of the parameters."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        return dict(get_optimizer_state_dict(self._model, self._optimizer, options=FLAT))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(self._model, self._optimizer, state, options=FLAT)


class Progress:
    """How far the training is."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": torch.tensor(self.step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])


def main(options: Options) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        alone = Path(tempfile.mkdtemp()) / "store"
        dist.init_process_group("gloo", init_method=f"file://{alone}", rank=0, world_size=1)
    report = Report(options)
    plain = tiny_gpt2(options.seed)
    model = nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    progress, tokens = Progress(), Tokens(60, options.seed)
    manager = CheckpointManager(
        CheckpointManager.Config(
            enable=True, folder="ckptd://titan", interval=1, keep_latest_k=0, last_save_model_only=False, async_mode="async"
        ),
        dataloader=None, model_parts=[plain], optimizers=Optimizers(plain, optimizer), lr_schedulers=scheduler,
        states={"train_state": progress}, sd_adapter=None,
    )  # fmt: skip
    manager.load()
    report.begins(progress.step)
    while progress.step < options.steps:
        # The position in the data is the step's number; TorchTitan saves no random numbers.
        first = 4 * (progress.step * dist.get_world_size() + dist.get_rank())
        rows = torch.stack([tokens[index % len(tokens)]["input_ids"] for index in range(first, first + 4)])
        torch.manual_seed(first)
        optimizer.zero_grad()
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        manager.maybe_wait_for_staging()
        optimizer.step()
        scheduler.step()
        progress.step += 1
        manager.save(progress.step, last_step=progress.step == options.steps)
        report.step(progress.step, loss.item())
    manager.close()
    report.done(progress.step, [], plain, optimizer)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(parse("Train a tiny GPT-2 with TorchTitan's checkpoints in memory."))
