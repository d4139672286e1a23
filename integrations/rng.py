"""The random number generators that a training run draws from, as one Stateful object."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class Generators:
    """Python's, numpy's and torch's global generators; of CUDA the current device's, when CUDA is in use.

    A rank drives one device, and asking for the others' state would create a context on each of them.
    """

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {
            "python": [version, np.array(words, dtype=np.uint32), gauss],  # a tensor: JSON digits would vary in length
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
