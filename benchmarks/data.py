"""What the position of a data loader adds to a step: torchdata's `state_dict()`, and its place in the snapshot's document.

    python -m benchmarks.data [--calls N] [--repeat N] [--report FILE.json]

Microseconds a call in the trainer's thread, the kinds taking turns. `state_dict` is torchdata's own part; `captured` is all
that the eager part of a capture takes more with the loader among its objects than without.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.report import add_report, measured, write
from ckptd.integrations.state import TrainingState


class Numbers(Dataset[int]):
    """A dataset without a state."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> int:
        return index


class Buffered(IterableDataset[int]):
    """A stream whose state is a shuffle buffer."""

    def __init__(self, buffer: list[int] | torch.Tensor) -> None:
        self.buffer = buffer

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self.buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer = state["buffer"]


def loaders() -> dict[str, Any]:
    """The kinds of loaders that are measured, each in the middle of an iteration."""
    made = {
        "in order": StatefulDataLoader(Numbers(), batch_size=8),
        "shuffled": StatefulDataLoader(Numbers(), batch_size=8, shuffle=True),
        "in order, 2 workers": StatefulDataLoader(Numbers(), batch_size=8, num_workers=2),
        "shuffled, 2 workers": StatefulDataLoader(Numbers(), batch_size=8, shuffle=True, num_workers=2),
        "1,000 numbers in each of 2 workers": StatefulDataLoader(
            Buffered(list(range(1_000))), batch_size=8, num_workers=2
        ),
        "10,000 numbers": StatefulDataLoader(Buffered(list(range(10_000))), batch_size=8),
        "10,000 numbers in a tensor": StatefulDataLoader(Buffered(torch.arange(10_000)), batch_size=8),
    }
    for loader in made.values():
        iterator = iter(loader)
        for _ in range(5):
            next(iterator)
    return made


def each_us(call: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def measure(calls: int, repeat: int) -> dict[str, dict[str, list[float]]]:
    """Microseconds of both parts for every kind, `repeat` times in turns."""
    made = loaders()
    bare = TrainingState({}, 0)
    states = {name: TrainingState({"data": loader}, 0) for name, loader in made.items()}
    found: dict[str, dict[str, list[float]]] = {name: {"state_dict": [], "captured": []} for name in made}
    for _ in range(repeat):
        for name, loader in made.items():
            without = each_us(bare.eager, calls)
            found[name]["state_dict"].append(each_us(loader.state_dict, calls))
            found[name]["captured"].append(max(0.0, each_us(states[name].eager, calls) - without))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200, help="calls of each measurement (default 200)")
    parser.add_argument("--repeat", type=int, default=9, help="measurements of each kind (default 9)")
    add_report(parser)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
    found = measure(options.calls, options.repeat)
    print(f"{'us a step':36} {'state_dict':>12} {'captured':>12}")
    for name, parts in found.items():
        print(f"{name:36} " + " ".join(f"{statistics.median(values):12.1f}" for values in parts.values()))
    results = {
        name: {key: value for part, values in parts.items() for key, value in measured(f"{part}_us", values).items()}
        for name, parts in found.items()
    }
    write(options.report, {"calls": options.calls, "results": results})


if __name__ == "__main__":
    main()
