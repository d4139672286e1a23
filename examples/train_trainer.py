"""Train a tiny GPT-2 with Hugging Face's Trainer, with a snapshot of the job at every step.

    pip install 'ckptd[transformers]'
    python -m ckptd.examples.train_trainer --steps 100

Kill it at any moment and start the same command again: it goes on from the last snapshot, bit for bit as if nothing
had happened. The one line that does that stands in `main`.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from ckptd.examples.gpt2 import tiny_gpt2
from ckptd.examples.tokens import Options, Report, Tokens, parse
from ckptd.transformers import CkptdCallback


class Told(TrainerCallback):  # type: ignore[misc]
    """Tells of every step."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self._report.begins(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self._report.step(state.global_step)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    report = Report(options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            tiny_gpt2(options.seed),
            TrainingArguments(
                folder, max_steps=options.steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                learning_rate=1e-3, logging_steps=3, eval_strategy="steps", eval_steps=10, save_strategy="no",
                report_to="none", seed=options.seed, use_cpu=True, disable_tqdm=True,
            ),
            train_dataset=Tokens(72, options.seed), eval_dataset=Tokens(8, options.seed + 1),
            callbacks=[Told(report)],
        )  # fmt: skip
        trainer.add_callback(CkptdCallback(trainer))
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report.done(trainer.state.global_step, losses, trainer.model, trainer.optimizer)


if __name__ == "__main__":
    main(parse("Train a tiny GPT-2 with Hugging Face's Trainer and ckptd."))
