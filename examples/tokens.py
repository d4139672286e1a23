"""What the examples for frameworks have in common: tokens that nobody has to download, options, and a report of the run."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ckptd.examples.train_gpt import digest


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is like; every field is a command line option of the same name."""

    steps: int = 100
    seed: int = 1
    pace: float = 0.0
    """Seconds to wait after each step: a small model stands for a big one."""
    events: str = ""
    """Where to append what happens, a JSON object a line; without it, it is printed."""


def parse(description: str, argv: Sequence[str] | None = None) -> Options:
    """The command line: an option for each field of `Options`."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in Options().__dict__.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value!r}")
    return Options(**vars(parser.parse_args(argv)))


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Sequences of tokens in which each follows from the one before, so that there is something to learn."""

    KINDS, LENGTH = 64, 16

    def __init__(self, count: int, seed: int) -> None:
        start = torch.randint(self.KINDS, (count, 1), generator=torch.Generator().manual_seed(seed))
        self._rows = (start + 5 * torch.arange(self.LENGTH)) % self.KINDS

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._rows[index], "labels": self._rows[index]}


class Report:
    """Says where a run began, how far it is, and how it ended, with the exact bits."""

    def __init__(self, options: Options) -> None:
        self._path = Path(options.events) if options.events else None
        self._pace = options.pace

    def begins(self, step: int) -> None:
        self._write(event="begins", step=step)

    def step(self, step: int, loss: float = 0.0) -> None:
        """A step is done; waits for the pace."""
        self._write(event="step", step=step, loss=loss.hex())
        time.sleep(self._pace)

    def done(self, step: int, losses: Sequence[float], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._write(event="done", step=step, losses=[loss.hex() for loss in losses], digest=digest(model, optimizer))

    def _write(self, **event: Any) -> None:
        if self._path is None:
            print(*(f"{name}={value}" for name, value in event.items()), flush=True)
            return
        with self._path.open("a") as file:
            file.write(json.dumps(event | {"pid": os.getpid()}) + "\n")
