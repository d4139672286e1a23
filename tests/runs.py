"""A small training run that has everything a Checkpointer captures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.fakes import bits

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw foreach": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "adamw fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "sgd momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "adam tensor lr": lambda params: torch.optim.Adam(params, lr=torch.tensor(0.01), foreach=False),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=2),
}


class Data:
    """A loader that says where it is, with numbers of its own."""

    def __init__(self) -> None:
        self.position = 0
        self.noise = torch.Generator().manual_seed(3)

    def batch(self) -> torch.Tensor:
        self.position += 1
        return torch.rand(8, 4, generator=self.noise) + self.position

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "noise": self.noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.noise.set_state(state["noise"])


@dataclass
class Run:
    """A small training run with dropout, BatchNorm and a scheduler."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    data: Data

    @staticmethod
    def new(kind: str = "adamw foreach", seed: int = 0) -> Run:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        optimizer = OPTIMIZERS[kind](model.parameters())
        return Run(model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), Data())

    @property
    def objects(self) -> dict[str, Any]:
        return vars(self)

    def update(self) -> float:
        batch = self.data.batch()

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = torch.as_tensor(self.model(batch).square().mean())
            torch.autograd.backward(loss)
            return loss.detach()

        loss = float(self.optimizer.step(closure))  # type: ignore[arg-type]
        self.scheduler.step()
        return loss

    def fingerprint(self) -> list[bytes]:
        tensors = [*self.model.state_dict().values()]
        for state in self.optimizer.state_dict()["state"].values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return [bits(tensor) for tensor in [*tensors, torch.get_rng_state()]]
