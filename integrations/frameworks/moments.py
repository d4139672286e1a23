"""Where the random number generators stood at one moment of a training, as one value that can be captured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ckptd.integrations.rng import Generators

_HELD = ("generator", "synchronized_generator")
_WITHIN = ("sampler", "batch_sampler")


@dataclass(frozen=True, slots=True)
class Moment:
    """A frozen copy of Python's, numpy's and torch's generators; of CUDA the current device's. And of others, in order."""

    state: dict[str, Any]

    @staticmethod
    def now(others: Iterable[torch.Generator] = ()) -> Moment:
        """How they stand."""
        return Moment({"global": Generators().state_dict(), "others": [other.get_state() for other in others]})

    def bring_back(self, others: Iterable[torch.Generator] = ()) -> None:
        """Set them all; `others` are the ones that were given to `now`, or those of another process in their places."""
        Generators().load_state_dict(self.state["global"])
        for other, state in zip(others, self.state["others"], strict=False):
            other.set_state(state)


def generators_of(*loaders: Any) -> list[torch.Generator]:
    """The generators of their own that data loaders and their samplers draw from, in a fixed order."""
    found: list[torch.Generator] = []
    seen: set[int] = set()

    def look(holder: Any) -> None:
        if id(holder) in seen:
            return
        seen.add(id(holder))
        for name in _HELD:
            generator = getattr(holder, name, None)
            if isinstance(generator, torch.Generator) and all(generator is not other for other in found):
                found.append(generator)
        for name in _WITHIN:
            inner = getattr(holder, name, None)
            if inner is not None:
                look(inner)

    for loader in loaders:
        look(loader)
    return found
