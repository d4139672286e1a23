"""The random number generators that a training run draws from, as one Stateful object."""

from __future__ import annotations

import random
from array import array
from typing import Any

import numpy as np
import torch

from ckptd.integrations.tree import Encoder


class Generators:
    """Python's, numpy's and torch's global generators; of CUDA the current device's, when CUDA is in use.

    A rank drives one device, and asking for the others' state would create a context on each of them.
    """

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {
            # a tensor: JSON digits would vary in length
            "python": [version, np.frombuffer(array("I", words), dtype=np.uint32), gauss],
            "numpy": _numpy_state(),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def encode(self, encoder: Encoder, path: str) -> Any:
        """As `Encoder.encode` does it, without another copy: what `state_dict` returns is private already."""
        state = self.state_dict()
        version, words, gauss = state["python"]
        numpy_state = {**state["numpy"], "state": dict(state["numpy"]["state"])}
        key = numpy_state["state"].pop("key")
        devices = [name for name in ("torch", "cuda") if name in state]
        names = [f"{path}.python.1", f"{path}.numpy.state.key", *(f"{path}.{name}" for name in devices)]
        copies = [torch.from_numpy(words), torch.from_numpy(key), *(state[name] for name in devices)]
        encoder.add_copies(names, copies)
        numpy_state["state"] = {"key": {"$array": names[1]}, **numpy_state["state"]}
        return {
            "python": [version, {"$array": names[0]}, gauss],
            "numpy": numpy_state,
            **{name: {"$tensor": f"{path}.{name}"} for name in devices},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])

    def reseed(self, seed: int) -> None:
        """Begin anew from a seed of 64 bits."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # the GPUs' too


def _numpy_state() -> dict[str, Any]:
    """What `np.random.get_state(legacy=False)` returns, in half of its time."""
    state = np.random.get_state()
    if isinstance(state, dict):  # another generator than the usual one was set
        return state
    kind, key, pos, has_gauss, gauss = state
    return {"bit_generator": kind, "state": {"key": key, "pos": pos}, "has_gauss": has_gauss, "gauss": gauss}
