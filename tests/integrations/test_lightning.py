"""A fit of Lightning with a CkptdCallback, in one process and without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel, bits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ckptd.ckpt.errors import CkptdError, StateError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 13


class Killed(BaseException):
    """What ends a life in the middle."""


class Stream(IterableDataset[torch.Tensor]):
    """Rows whose order is drawn when it begins, and whose number nobody knows."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.full((4,), float(row)) for row in torch.randperm(14))


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


def fit(
    channel: FakeChannel | None, *, kill_at: int = 0, batch: int = 3, stream: bool = False, plateau: bool = False,
    manual: bool = False, own: bool = False, **arguments: Any,
) -> Any:  # fmt: skip
    """Fit a small module and return it with its Trainer. `kill_at`: the step after which nothing more happens."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping

    from ckptd.lightning import CkptdCallback

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
            self.seen: list[list[float]] = []
            self.losses: list[float] = []
            self.automatic_optimization = not manual

        def training_step(self, rows: Any) -> torch.Tensor:
            rows = rows if stream else rows[0]
            if kill_at and self.global_step == kill_at:
                raise Killed
            self.seen.append(rows[:, 0].tolist())
            loss = torch.as_tensor(self.layers(rows / 14).square().mean())
            self.losses.append(loss.item())
            return loss

        def validation_step(self, rows: Any) -> None:
            self.log("val", self.layers(rows[0]).square().mean() + torch.rand(()))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            if plateau:
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val"}}
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    torch.manual_seed(0)
    module = Module()
    callback = CkptdCallback(job="job", channel=channel and FakeChannel(channel.directory))
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[EarlyStopping("val", patience=99), *([callback] if channel else [])],
        **{"max_steps": STEPS, **arguments},
    )  # fmt: skip
    rows = torch.arange(14.0)[:, None].expand(14, 4)
    data: Any = (
        DataLoader(Stream(), batch)
        if stream
        else DataLoader(
            TensorDataset(rows), batch, shuffle=True, generator=torch.Generator().manual_seed(5) if own else None
        )
    )
    try:
        trainer.fit(module, data, DataLoader(TensorDataset(rows[:4]), 2, shuffle=False))
    finally:
        if callback.checkpointer is not None:
            callback.checkpointer.close()  # the process would be gone
    return module, trainer


def outcome(module: Any, trainer: Any) -> tuple[list[bytes], int, int]:
    tensors = [*module.state_dict().values()]
    for state in trainer.optimizers[0].state_dict()["state"].values():
        tensors += [state[name] for name in sorted(state)]
    tensors.append(torch.tensor(trainer.optimizers[0].param_groups[0]["lr"], dtype=torch.float64))
    return [bits(tensor) for tensor in tensors], trainer.global_step, trainer.current_epoch


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accumulate_grad_batches": 2, "val_check_interval": 2},
        {"stream": True},
        {"plateau": True, "own": True},
    ],
    ids=str,
)
def test_it_goes_on_with_the_same_rows_and_numbers(channel: FakeChannel, arguments: dict[str, Any]) -> None:
    """Killed in an epoch and at its edge, early and late: rows, losses, parameters and moments as without it."""
    whole, trainer = fit(None, **arguments)
    for kill_at in (2, 5, 8):
        with pytest.raises(Killed):
            fit(channel, kill_at=kill_at, **arguments)
    resumed, again = fit(channel, **arguments)
    assert len(resumed.seen) < len(whole.seen) / 2 + 2
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert resumed.losses == whole.losses[-len(resumed.seen) :]
    assert outcome(resumed, again) == outcome(whole, trainer)


def test_what_is_finished_stays_finished_and_more_steps_go_on(channel: FakeChannel) -> None:
    """A second start has nothing left to do; more steps are those of a run that was longer from the beginning."""
    fit(channel, max_steps=7)
    idle, trainer = fit(channel, max_steps=7)
    assert (idle.seen, trainer.global_step) == ([], 7)
    more, trainer = fit(channel)
    longer, other = fit(None)
    assert more.seen == longer.seen[7:]
    assert outcome(more, trainer) == outcome(longer, other)
    with pytest.raises(StateError, match="an epoch had 5 in the snapshot and has 14 here"):
        fit(channel, max_steps=20, batch=1)
    with pytest.raises(StateError, match="accumulate_grad_batches is 1 in the snapshot, 2 here"):
        fit(channel, max_steps=20, accumulate_grad_batches=2)


def test_what_cannot_be_resumed_exactly_is_refused_by_name(channel: FakeChannel) -> None:
    """Before anything is trained, in the words of the one who asked for it."""
    with pytest.raises(UsageError, match="manual optimization, whose updates"):
        fit(channel, manual=True)
    with pytest.raises(UsageError, match="reload_dataloaders_every_n_epochs"):
        fit(channel, reload_dataloaders_every_n_epochs=1)


def test_another_lightning_is_refused(channel: FakeChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer whose loops have other parts is not touched."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    monkeypatch.delattr(_TrainingEpochLoop, "reset")
    with pytest.raises(CkptdError, match="has no reset in its loops"):
        fit(channel)
