"""Where the random number generators stood at one moment of a training, as one value that can be captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckptd.integrations.rng import Generators


@dataclass(frozen=True, slots=True)
class Moment:
    """A frozen copy of Python's, numpy's and torch's generators; of CUDA the current device's."""

    state: dict[str, Any]

    @staticmethod
    def now() -> Moment:
        """How they stand."""
        return Moment(Generators().state_dict())

    def bring_back(self) -> None:
        """Set them all."""
        Generators().load_state_dict(self.state)
