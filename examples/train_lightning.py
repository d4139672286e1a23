"""Train a tiny GPT-2 with Lightning, with a snapshot of the job at every step.

    pip install 'ckptd[lightning]' transformers
    python -m ckptd.examples.train_lightning --steps 100

Kill it at any moment and start the same command again: it goes on from the last snapshot, bit for bit as if nothing
had happened. The one line that does that is the callback in `main`.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from ckptd.examples.gpt2 import tiny_gpt2
from ckptd.examples.tokens import Options, Report, Tokens, parse
from ckptd.lightning import CkptdCallback


class Module(LightningModule):  # type: ignore[misc]
    """A GPT-2 and how it is trained."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.steps = options.steps
        self.gpt2 = tiny_gpt2(options.seed)

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = self.gpt2(**batch).loss
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.log("val_loss", self.gpt2(**batch).loss)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Told(Callback):  # type: ignore[misc]
    """Tells of every step."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._told = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._told = trainer.global_step
        self._report.begins(self._told)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._told:
            self._told = trainer.global_step
            self._report.step(self._told, outputs["loss"].item())


def main(options: Options) -> None:
    torch.set_num_threads(1)
    seed_everything(options.seed)
    report = Report(options)
    module = Module(options)
    trainer = Trainer(
        max_steps=options.steps, accelerator="cpu", devices=1, accumulate_grad_batches=2, val_check_interval=8,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[CkptdCallback(), Told(report)],
    )  # fmt: skip
    train = DataLoader(Tokens(72, options.seed), batch_size=4, shuffle=True)
    trainer.fit(module, train, DataLoader(Tokens(8, options.seed + 1), batch_size=8))
    report.done(trainer.global_step, [], module, trainer.optimizers[0])


if __name__ == "__main__":
    main(parse("Train a tiny GPT-2 with Lightning and ckptd."))
