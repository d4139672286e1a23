"""Batches of a loader that Accelerate has prepared, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel
from torch.utils.data import DataLoader, TensorDataset

from ckptd.ckpt.errors import StateError, UsageError
from ckptd.integrations.checkpointer import Checkpointer

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


def job(directory: Path) -> tuple[Any, Any, Checkpointer]:
    """A prepared training, its batches and its Checkpointer, whose daemon keeps what is in `directory`."""
    from accelerate import Accelerator

    from ckptd.accelerate import Batches

    directory.mkdir(exist_ok=True)
    torch.manual_seed(3)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(1, 1)
    loader = DataLoader(TensorDataset(torch.randn(11, 1)), 3, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1), loader)
    batches = Batches(accelerator, loader)
    ck = Checkpointer(
        job="job", channel=FakeChannel(directory), on_error="raise", model=model, optimizer=optimizer, batches=batches
    )
    return accelerator, (model, optimizer, batches), ck


def train(accelerator: Any, parts: Any, ck: Checkpointer, step: int, steps: int) -> list[float]:
    """Train up to the end of step `steps`: the losses."""
    model, optimizer, batches = parts
    losses: list[float] = []
    for (rows,) in batches.epochs(10):
        loss = model(rows).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        ck.step(step + len(losses))
        if step + len(losses) == steps:
            break
    return losses


def test_accelerates_files_do_not_overwrite_a_restored_snapshot(tmp_path: Path) -> None:
    """`load_state` between the restore and the first batch is refused by name, nothing is loaded, and the training goes
    on bit for bit; before the restore, on a fresh start and while training, it loads as ever."""
    accelerator, parts, ck = job(tmp_path / "whole")
    assert ck.restore() == 0
    accelerator.save_state(str(tmp_path / "files"))
    accelerator.load_state(str(tmp_path / "files"))
    whole = train(accelerator, parts, ck, 0, 9)
    ck.close()
    accelerator, parts, ck = job(tmp_path / "killed")
    ck.restore()
    first = train(accelerator, parts, ck, 0, 6)
    ck.wait("captured")
    accelerator.load_state(str(tmp_path / "files"))
    ck.close()

    accelerator, parts, ck = job(tmp_path / "killed")
    accelerator.load_state(str(tmp_path / "files"))
    step = ck.restore()
    assert step == 6
    weight = parts[0].weight.clone()
    with pytest.raises(UsageError, match="over the snapshot that was restored, after 2 batches of epoch 1"):
        accelerator.load_state(str(tmp_path / "files"))
    assert parts[0].weight.equal(weight)
    assert first + train(accelerator, parts, ck, step, 9) == whole
    ck.close()
    trained = parts[0].weight.clone()
    accelerator.load_state(str(tmp_path / "files"))
    assert not parts[0].weight.equal(trained)
