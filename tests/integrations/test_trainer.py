"""A Hugging Face Trainer with a CkptdCallback, in one process and without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel, bits
from torch import nn

from ckptd.ckpt.errors import CkptdError, StateError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
STEPS = 11


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of different lengths, in which a row's length is its number."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= len(self):
            raise IndexError
        return {"input_ids": torch.arange(index % 5 + 1), "x": torch.full((4,), float(index))}


class Net(nn.Module):
    """Its inputs are kept, to see which rows were trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.seen: list[list[float]] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen.append(x[:, 0].tolist())
        return {"loss": torch.as_tensor(self.layers(x / 14).square().mean())}


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([row["x"] for row in rows])}


class Killed(BaseException):
    """What ends a life in the middle; nobody catches it."""


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


def trainer_of(tmp_path: Path, *, kill_at: int = 0, data: Any = None, **arguments: Any) -> Any:
    """A Trainer of a small model. `kill_at`: the step whose first forward never happens."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Killer(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if kill_at and state.global_step == kill_at:
                raise Killed

    torch.manual_seed(0)
    given = {"max_steps": STEPS, "logging_steps": 4, "gradient_accumulation_steps": 2, **arguments}
    return Trainer(
        Net(), TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", per_device_train_batch_size=3, **given), train_dataset=data or Rows(), data_collator=collate,
        callbacks=[Killer()],
    )  # fmt: skip


def train(trainer: Any, channel: FakeChannel | None) -> Any:
    from ckptd.transformers import CkptdCallback

    if channel is None:
        trainer.train()
        return trainer
    callback = CkptdCallback(trainer, job="job", channel=FakeChannel(channel.directory))
    trainer.add_callback(callback)
    try:
        trainer.train()
    finally:
        if callback.checkpointer is not None:
            callback.checkpointer.close()  # the process would be gone
    return trainer


def outcome(trainer: Any) -> tuple[list[bytes], list[float], float]:
    tensors = [*trainer.model.state_dict().values()]
    for state in trainer.optimizer.state_dict()["state"].values():
        tensors += [state[name] for name in sorted(state)]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [bits(tensor) for tensor in tensors], losses, trainer.state.epoch


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"train_sampling_strategy": "group_by_length"},  # its order is drawn from the global generator
        {"accelerator_config": {"use_seedable_sampler": False}, "gradient_accumulation_steps": 1},
    ],
)
def test_it_goes_on_with_the_same_rows_and_numbers(
    channel: FakeChannel, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """Killed in the middle of an epoch, early and late: rows, losses, parameters and moments as without it."""
    whole = train(trainer_of(tmp_path, **arguments), None)
    begun = 0
    for kill_at in (2, 3, 7):
        with pytest.raises(Killed):
            train(trainer_of(tmp_path, kill_at=kill_at, **arguments), channel)
        begun = kill_at
    resumed = train(trainer_of(tmp_path, **arguments), channel)
    assert resumed.model.seen == whole.model.seen[-len(resumed.model.seen) :]
    assert resumed.state.global_step == STEPS
    assert len(resumed.model.seen) <= (STEPS - begun + 1) * arguments.get("gradient_accumulation_steps", 2)
    assert outcome(resumed) == outcome(whole)


def test_what_is_finished_stays_finished_and_other_data_are_refused(channel: FakeChannel, tmp_path: Path) -> None:
    """A second start has nothing left to do, more steps go on from there, and another batch size says what differs."""
    train(trainer_of(tmp_path), channel)
    again = train(trainer_of(tmp_path), channel)
    assert again.model.seen == []
    assert again.state.global_step == STEPS
    more = train(trainer_of(tmp_path, max_steps=STEPS + 2), channel)
    assert more.state.global_step == STEPS + 2
    with pytest.raises(StateError, match="gradient_accumulation_steps: 2 in the snapshot, 1 here"):
        train(trainer_of(tmp_path, gradient_accumulation_steps=1, max_steps=99), channel)


def test_what_cannot_be_resumed_exactly_is_refused_by_name(channel: FakeChannel, tmp_path: Path) -> None:
    """Before anything is trained, in the words of the one who asked for it."""
    from ckptd.transformers import CkptdCallback

    with pytest.raises(UsageError, match="ignore_data_skip, which begins the epoch anew"):
        train(trainer_of(tmp_path, ignore_data_skip=True), channel)
    for switch, name in (("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP by accelerate's plugin")):
        trainer = trainer_of(tmp_path)
        setattr(trainer, switch, True)
        trainer.add_callback(CkptdCallback(trainer, channel=channel))
        with pytest.raises(UsageError, match=name):
            trainer._init_training_state(1, 1, 1, None, None)
    trainer = trainer_of(tmp_path)
    CkptdCallback(trainer, channel=channel)
    with pytest.raises(UsageError, match="made and not added"):
        trainer.train()


def test_another_transformers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Trainer whose loop has other parts is not touched."""
    from transformers import Trainer

    from ckptd.transformers import CkptdCallback

    trainer = trainer_of(tmp_path)
    monkeypatch.delattr(Trainer, "_run_epoch")
    with pytest.raises(CkptdError, match="has no _run_epoch as CkptdCallback knows it"):
        CkptdCallback(trainer)
