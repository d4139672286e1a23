"""Batches of a loader that Accelerate has prepared, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ckptd.ckpt.errors import StateError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def batches_of(rows: int = 11, **arguments: Any) -> Any:
    from accelerate import Accelerator

    from ckptd.accelerate import Batches

    accelerator = Accelerator(cpu=True)
    loader = DataLoader(TensorDataset(torch.arange(rows)), 3, shuffle=True, **arguments)
    return Batches(accelerator, accelerator.prepare(loader))


def rows_of(batches: Any, epochs: int) -> Iterator[list[int]]:
    for (rows,) in batches.epochs(epochs):
        yield [*rows.tolist(), int(torch.randint(1000, ()))]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("taken", [1, 4, 6, 8])
def test_no_row_is_seen_twice_or_left_out(own: bool, taken: int) -> None:
    """In the middle of an epoch and at its end; with the global generator and one of the loader's own."""

    def begin() -> Any:
        torch.manual_seed(3)
        return batches_of(generator=torch.Generator().manual_seed(7) if own else None)

    whole = list(rows_of(begin(), 3))
    first = begin()
    handed_out = rows_of(first, 3)
    seen = [next(handed_out) for _ in range(taken)]
    state, numbers = first.state_dict(), torch.get_rng_state()
    resumed = begin()
    resumed.load_state_dict(state)
    torch.set_rng_state(numbers)  # the Checkpointer does that
    assert seen + list(rows_of(resumed, 3)) == whole
    assert sorted(row for rows in whole[4:8] for row in rows[:-1]) == list(range(11))


def test_other_data_are_refused() -> None:
    """The error has both numbers."""
    with pytest.raises(StateError, match="an epoch had 4 in the snapshot and has 7 here"):
        batches_of(rows=20).load_state_dict(batches_of().state_dict())


@pytest.mark.parametrize(("kind", "said"), [("DEEPSPEED", "DeepSpeed"), ("FSDP", "FSDP by its plugin")])
def test_what_cannot_be_resumed_exactly_is_refused_by_name(kind: str, said: str) -> None:
    """Before anything is trained."""
    from ckptd.accelerate import Batches

    with pytest.raises(UsageError, match=said):
        Batches(SimpleNamespace(distributed_type=SimpleNamespace(name=kind)), [])
