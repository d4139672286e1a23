"""Lightning's own checkpoints by CkptdIO and by URL, and a sharded module with CkptdCallback, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fsspec.registry import _registry
from tests.fakes import FakeChannel, bits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from ckptd.ckpt.errors import StateError, UsageError
from ckptd.integrations.dcp.life import Life
from ckptd.integrations.files import saving
from ckptd.integrations.filesystem import CkptdFileSystem

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 9


class Killed(BaseException):
    """What ends a life in the middle."""


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeChannel]:
    (tmp_path / "channel").mkdir()
    channel = FakeChannel(tmp_path / "channel")
    life = Life(channel, "job")
    monkeypatch.setattr("ckptd.integrations.filesystem.running", lambda job: life)
    for module in ("files.saving", "dcp.reader", "dcp.writer"):
        monkeypatch.setattr(f"ckptd.integrations.{module}.life_of", lambda job: life)
    monkeypatch.setattr(saving, "_savings", {})
    monkeypatch.setitem(_registry, "ckptd", CkptdFileSystem)
    CkptdFileSystem.clear_instance_cache()
    yield channel
    if dist.is_initialized():
        dist.destroy_process_group()


def fit(
    *, kill_at: int = 0, deeper: bool = False, ckpt_path: str | None = None, **arguments: Any
) -> tuple[list[bytes], int]:
    """Fit a small module; its parameters and moments at the end, and how many batches it has trained on."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
            if deeper:
                self.layers += nn.Sequential(nn.ReLU(), nn.Linear(1, 1))
            self.trained = 0

        def configure_model(self) -> None:
            if isinstance(self.trainer.strategy, ModelParallelStrategy) and self.device_mesh is not None:
                fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

        def training_step(self, rows: Any) -> torch.Tensor:
            if kill_at and self.global_step == kill_at:
                raise Killed
            self.trained += 1
            return torch.as_tensor(self.layers(rows[0] / 14).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    module = Module()
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=STEPS,
        **arguments,
    )  # fmt: skip
    rows = torch.arange(14.0)[:, None].expand(14, 4)
    trainer.fit(module, DataLoader(TensorDataset(rows), 3, shuffle=False), ckpt_path=ckpt_path)
    tensors = [*module.parameters()]
    for state in trainer.optimizers[0].state_dict()["state"].values():
        tensors += [state[name] for name in sorted(state)]
    return [bits(t.full_tensor() if isinstance(t, DTensor) else t) for t in tensors], module.trained


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_lightnings_own_checkpoints_live_in_memory(channel: FakeChannel, tmp_path: Path, strategy: str) -> None:
    """Saved by ModelCheckpoint, killed and resumed by ckpt_path: as from files on the disk, where there is none."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    from ckptd.lightning import CkptdIO

    def saving_to(folder: str, *plugins: Any) -> dict[str, Any]:
        saves = ModelCheckpoint(dirpath=tmp_path / folder, every_n_train_steps=2, save_last=True)
        return {"plugins": list(plugins), "callbacks": [saves], "strategy": strategy}

    assert CkptdIO("job").newest() is None
    for arguments in (saving_to("disk"), saving_to("none", CkptdIO("job"))):
        with pytest.raises(Killed):
            fit(kill_at=5, **arguments)
    newest = CkptdIO("job").newest()
    assert newest == "ckptd://job/step-4/epoch=0-step=4.ckpt"
    resumed = fit(ckpt_path=newest, **saving_to("none", CkptdIO("job")))
    assert resumed == fit(ckpt_path=str(tmp_path / "disk" / "epoch=0-step=4.ckpt"), **saving_to("disk"))
    assert resumed[1] == STEPS - 4
    assert list((tmp_path / "none").glob("**/*.ckpt")) == []
    with pytest.raises(FileNotFoundError):
        CkptdIO("job").load_checkpoint(tmp_path / "disk" / "other.ckpt")


def test_a_sharded_module_is_captured_by_the_callback(channel: FakeChannel) -> None:
    """ModelParallelStrategy with fully_shard(): killed and resumed, parameters and moments are the same."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    from ckptd.lightning import CkptdCallback

    def kept(kill_at: int = 0) -> tuple[list[bytes], int]:
        callback = CkptdCallback(job="job", channel=FakeChannel(channel.directory))
        try:
            return fit(
                kill_at=kill_at, strategy=ModelParallelStrategy(), callbacks=[callback], enable_checkpointing=False
            )
        finally:
            assert callback.checkpointer is not None
            callback.checkpointer.close()  # the process would be gone

    whole, trained = fit(strategy=ModelParallelStrategy(), enable_checkpointing=False)
    with pytest.raises(Killed):
        kept(kill_at=5)
    resumed, again = kept()
    assert resumed == whole
    assert again < trained - 3


def test_a_sharded_strategy_takes_urls_and_paths(channel: FakeChannel, tmp_path: Path) -> None:
    """Saved at `ckptd://job` it resumes as from the disk; another model, a name with `..` and a URL that has lost a slash
    are refused, with nothing saved or loaded."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    from ckptd.lightning import CkptdModelParallelStrategy, newest_step

    def saving_to(folder: str) -> dict[str, Any]:
        saves = ModelCheckpoint(dirpath=folder, every_n_train_steps=2)
        return {"strategy": CkptdModelParallelStrategy(), "callbacks": [saves]}

    disk = str(tmp_path / "disk")
    assert newest_step("job") is None
    for folder in (disk, "ckptd://job"):
        with pytest.raises(Killed):
            fit(kill_at=5, **saving_to(folder))
    assert newest_step("job") == "ckptd://job/step-4"
    resumed = fit(ckpt_path="ckptd://job/step-4/any.ckpt", **saving_to(disk))
    assert resumed == fit(ckpt_path=f"{disk}/epoch=0-step=4.ckpt", **saving_to(disk))
    assert resumed[1] == STEPS - 4
    with pytest.raises(StateError, match=r"8 missing in it: .*layers\.4\.bias"):
        fit(ckpt_path="ckptd://job", deeper=True, **saving_to(disk))
    kept = channel.recorded()
    strategy = CkptdModelParallelStrategy()
    for path in ("ckptd://job/../other", "ckptd:/job/step-4"):
        with pytest.raises(UsageError, match="expected"):
            strategy.save_checkpoint({"global_step": 4}, path)
        with pytest.raises(UsageError, match="expected"):
            strategy.load_checkpoint(path)
    assert channel.recorded() == kept
