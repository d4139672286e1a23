"""Small training runs, one for each way of training that a restart must not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tests.fakes import bits
from tests.runs import Data
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

STEPS, KEPT = 6, 3


@dataclass
class Job:
    """Objects as a Checkpointer takes them, and one update of them, which returns its loss."""

    objects: dict[str, Any]
    update: Callable[[], float]

    def fingerprint(self) -> Any:
        """Everything that a later step depends on, to the last bit, and in order."""
        return [_exact({name: thing.state_dict() for name, thing in self.objects.items()}), bits(torch.get_rng_state())]


def _exact(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), bits(value))
    if isinstance(value, dict):
        return [(repr(key), _exact(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    return repr(value)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4, bias=False), nn.Linear(4, 2)
    )


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(batch).square().mean())


def plain_job(model: nn.Module, optimizer: torch.optim.Optimizer, forward: nn.Module | None = None, **more: Any) -> Job:
    """Backward, update, and a `step()` of every scheduler."""
    data = Data()

    def update() -> float:
        loss = loss_of(forward or model, data.batch())
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        for thing in more.values():
            if isinstance(thing, torch.optim.lr_scheduler.ReduceLROnPlateau):
                thing.step(loss.item())
            else:
                thing.step()
        return loss.item()

    return Job({"model": model, "optimizer": optimizer, "data": data, **more}, update)


def with_optimizer(make: Callable[[Any], torch.optim.Optimizer]) -> Job:
    model = network()
    return plain_job(model, make(model.parameters()))


def with_scheduler(make: Callable[[torch.optim.Optimizer], Any]) -> Job:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return plain_job(model, optimizer, scheduler=make(optimizer))


def muon() -> Job:
    """An optimizer that takes matrices only, beside another one for the rest."""
    model, data = network(), Data()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizers = {
        "muon": torch.optim.Muon(matrices, lr=0.01),
        "rest": torch.optim.AdamW([p for p in model.parameters() if p.dim() != 2], lr=0.01),
    }

    def update() -> float:
        loss = loss_of(model, data.batch())
        torch.autograd.backward(loss)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return Job({"model": model, "data": data, **optimizers}, update)


def accumulation() -> Job:
    """Three backward passes for each update, with the gradients' norm clipped."""
    model, data = network(), Data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def update() -> float:
        total = 0.0
        for _ in range(3):
            loss = loss_of(model, data.batch()) / 3
            torch.autograd.backward(loss)
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Job({"model": model, "optimizer": optimizer, "data": data}, update)


def scaled(*, fused: bool) -> Job:
    """A GradScaler that finds an infinity in the last step before the restart and in the first after it, and skips both."""
    model, data = network(), Data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

    def update() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, data.batch())
        torch.autograd.backward(scaler.scale(loss))
        if data.position in (KEPT, KEPT + 1):
            next(model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.item()

    return Job({"model": model, "optimizer": optimizer, "scaler": scaler, "data": data}, update)


def two_optimizers() -> Job:
    """Two models that train against each other, each with an optimizer of its own kind, one of them every other step."""
    one, other, data = network(), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)), Data()
    first = torch.optim.Adam(one.parameters(), lr=0.01, amsgrad=True)
    second = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def update() -> float:
        batch = data.batch()
        loss = (other(one(batch)) - batch).square().mean()
        torch.autograd.backward(loss)
        first.step()
        if data.position % 2 == 0:
            second.step()
        first.zero_grad()
        second.zero_grad()
        return float(loss.item())

    return Job({"one": one, "other": other, "first": first, "second": second, "data": data}, update)


class ScheduleFree(torch.optim.Optimizer):
    """SGD without a schedule: gradients are taken at y = lerp(x, z), and y is swapped for the average x to evaluate."""

    def __init__(self, params: Any, lr: float = 0.05, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "count": 0, "training": True})

    def _swap(self, weight: Callable[[float], float], training: bool) -> None:
        for group in self.param_groups:
            if group["training"] != training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], weight(group["beta"]))
                group["training"] = training

    def eval(self) -> None:
        self._swap(lambda beta: 1 - 1 / beta, training=False)

    def train(self) -> None:
        self._swap(lambda beta: 1 - beta, training=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                state = self.state[p]
                z = state.setdefault("z", p.clone())
                p.lerp_(z, 1 / group["count"])
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["count"]) - 1))
                z.sub_(p.grad, alpha=group["lr"])


def schedule_free() -> Job:
    """Evaluates with the averaged parameters after every update."""
    model, data = network(), Data()
    optimizer = ScheduleFree(model.parameters())

    def update() -> float:
        loss = loss_of(model, data.batch())
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.eval()
        with torch.no_grad():
            score = loss_of(model.eval(), torch.ones(4, 4)).item()
        model.train()
        optimizer.train()
        return loss.item() + score

    return Job({"model": model, "optimizer": optimizer, "data": data}, update)


class Recomputed(nn.Module):
    """Activation checkpointing of a block with dropout, whose random numbers are drawn again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = network(), nn.Linear(2, 2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(checkpoint(self.block, batch, use_reentrant=False)))


def recomputed() -> Job:
    model = Recomputed()
    return plain_job(model, torch.optim.AdamW(model.parameters(), lr=0.01))


def averaged() -> Job:
    """A moving average of the model, buffers included, beside it."""
    model, data = network(), Data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    average = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    def update() -> float:
        loss = loss_of(model, data.batch())
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
        return loss.item()

    return Job({"model": model, "optimizer": optimizer, "ema": ema, "data": data}, update)


def compiled(backend: str) -> Job:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))  # few kernels: each takes seconds to build
    whole = torch.compile(model, backend=backend)
    return plain_job(model, torch.optim.AdamW(model.parameters(), lr=0.01), forward=whole)  # type: ignore[arg-type]


def tied() -> Job:
    """Shared, frozen and parametrized weights, two groups, and gradients that are sparse."""
    embedding = nn.Embedding(8, 4)
    last = nn.Linear(4, 8, bias=False)
    last.weight = embedding.weight
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), last)
    model[0].weight.requires_grad_(False)
    groups: list[dict[str, Any]] = [
        {"params": model[0].bias, "lr": 0.1},
        {"params": [*model[1].parameters(), last.weight]},
    ]
    return plain_job(model, torch.optim.RAdam(groups, lr=0.01))


def sparse() -> Job:
    model, data = nn.EmbeddingBag(10, 4, sparse=True), Data()
    optimizer: torch.optim.Optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.01)

    def update() -> float:
        loss = loss_of(model, (data.batch() * 7).long() % 10)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Job({"model": model, "optimizer": optimizer, "data": data}, update)


_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw for-loop": partial(torch.optim.AdamW, lr=0.01, foreach=False),
    "adamw foreach amsgrad": partial(torch.optim.AdamW, lr=0.01, foreach=True, amsgrad=True),
    "adamw fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "sgd fused momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9, fused=True),
    "sgd nesterov": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adafactor": partial(torch.optim.Adafactor, lr=0.01),
    "rmsprop centered": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.01, lr_decay=0.1),
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "asgd": partial(torch.optim.ASGD, lr=0.01, t0=2),
    "nadam": torch.optim.NAdam,
    "rprop": torch.optim.Rprop,
}
_SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "one cycle": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),
    "on plateau": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
    "sequential": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[2],
    ),
}

JOBS: dict[str, Callable[[], Job]] = {
    **{name: partial(with_optimizer, make) for name, make in _OPTIMIZERS.items()},
    **{name: partial(with_scheduler, make) for name, make in _SCHEDULERS.items()},
    "muon": muon,
    "gradient accumulation": accumulation,
    "skipped by the scaler": partial(scaled, fused=False),
    "skipped by the scaler, fused": partial(scaled, fused=True),
    "two optimizers": two_optimizers,
    "schedule-free": schedule_free,
    "activation checkpointing": recomputed,
    "moving average": averaged,
    "tied, frozen, parametrized": tied,
    "sparse gradients": sparse,
}
SLOW: dict[str, Callable[[], Job]] = {
    "compiled by aot_eager": partial(compiled, "aot_eager"),
    "compiled by inductor": partial(compiled, "inductor"),
}
