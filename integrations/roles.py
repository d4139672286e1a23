"""When each source of a plan is copied: at once, beside the training, or only when it has changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from ckptd.integrations.sources import Source


@dataclass(frozen=True, slots=True)
class Roles:
    """The sources of a plan by when they are copied; each is in one of the three."""

    at_once: tuple[Source, ...] = ()
    """Copied by the trainer in `step`: scalars beside a GPU, and what was written behind the optimizer's back before."""
    lazy: tuple[Source, ...] = ()
    """Copied while forward and backward run, in the order in which the optimizers will overwrite them."""
    frozen: tuple[Source, ...] = ()
    """On the CPU, belongs to no optimizer, takes no gradient: copied into a slot that holds it only when it has changed."""


def roles_of(
    sources: Sequence[Source], optimizers: Iterable[torch.optim.Optimizer], unquiet: Collection[str] = ()
) -> Roles:
    """Decide. `unquiet`: the names of those that were found written between two updates."""
    order: dict[int, int] = {}
    for optimizer in optimizers:
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            state = optimizer.state.get(parameter, {})
            for tensor in (parameter, *state.values()):
                order.setdefault(id(tensor), len(order))
    at_once, lazy, frozen = [], [], []
    device = any(source.rows.device.type != "cpu" for source in sources)
    for source in sources:
        # Beside a GPU the host runs ahead of the copies: the step that Adam counts on the CPU cannot wait for the fence.
        counts = device and source.rows.numel() <= 1 and source.rows.device.type == "cpu"
        if source.name in unquiet or counts:
            at_once.append(source)
        elif id(source.live) in order or source.live.requires_grad or source.rows.device.type != "cpu":
            lazy.append(source)  # what a GPU holds is seen to change only after the copy has begun
        else:
            frozen.append(source)
    lazy.sort(key=lambda source: order.get(id(source.live), len(order)))
    return Roles(tuple(at_once), tuple(lazy), tuple(frozen))
