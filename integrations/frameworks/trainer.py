"""A Hugging Face Trainer that goes on where it was killed: a callback, and four places of its loop.

A callback sees every step, but is not asked where the loop shall begin. So these methods of the one Trainer that it is given
are taken over; all private names of the Trainer stand here and in `trainer_state.py`, and `check` compares them with the
transformers in use.

    _init_training_state    prepares and restores, and says where to begin
    _prepare_for_training   has been called by then
    _run_epoch              the first one skips what was trained
    _load_rng_state         the Trainer calls it when the batches are skipped
    get_batch_samples       public: all of a step is done, logging, evaluation and saving too; capture it
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import transformers
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ckptd.ckpt.errors import CkptdError, UsageError
from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.frameworks.moments import Moment, generators_of
from ckptd.integrations.frameworks.trainer_state import LOSS_NAMES, Progress

_INIT, _PREPARE, _EPOCH, _RNG = "_init_training_state", "_prepare_for_training", "_run_epoch", "_load_rng_state"
_TAKES = {
    _INIT: ["max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"],
    _PREPARE: ["max_steps", "train_dataloader", "resume_from_checkpoint"],
    _RNG: ["checkpoint"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
}
_EPOCH_TAKES = {
    "epoch",
    "train_dataloader",
    "resume_from_checkpoint",
    "epochs_trained",
    "steps_trained_in_current_epoch",
}
_FROM_CKPTD = "ckptd"
"""What the Trainer takes for the folder that it resumes from."""


class CkptdCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps a Trainer's training recoverable: `trainer.add_callback(CkptdCallback(trainer))`, and `trainer.train()` resumes.

    Captured: model, optimizer, learning rate schedule, gradient scaler, random numbers, TrainerState with its log, the
    position in the data, callbacks with a state. The Trainer's own checkpoints are left as they are.
    """

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        """`options`: what Checkpointer takes (every, storage, job, ...), and further objects to capture, by name.

        Raises CkptdError when this transformers has not the loop that it knows. `train()` raises what
        `Checkpointer.restore` raises, and UsageError by name for what cannot be resumed exactly.
        """
        check()
        self._trainer, self._options = trainer, options
        self._checkpointer: Checkpointer | None = None
        self._progress: Progress | None = None
        self._model: Any = None
        self._resuming: Moment | None = None
        self._captured = 0
        self._evaluating = ExitStack()
        self._is_evaluating = False
        self._stock = {name: getattr(trainer, name) for name in (*_TAKES, _EPOCH)}
        for name, method in (
            (_INIT, self._begin), (_PREPARE, self._prepared), (_EPOCH, self._run),
            (_RNG, self._bring_back_numbers), ("get_batch_samples", self._next_batches),
        ):  # fmt: skip
            setattr(trainer, name, method)

    @property
    def checkpointer(self) -> Checkpointer | None:
        """The Checkpointer of the training that runs or ran last: its `stats` say what became of the snapshots."""
        return self._checkpointer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._progress is not None:
            self._progress.bring_back_losses()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        if self._checkpointer is not None and self._trainer.is_in_train and not self._is_evaluating:
            self._is_evaluating = True
            self._evaluating.enter_context(self._checkpointer.phase("eval"))

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._is_evaluating = False
        self._evaluating.close()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Capture the end, so that another start finds nothing left to do, unless the best model was just loaded over it."""
        if self._checkpointer is None or self._progress is None:
            return
        self._progress.stopped = state.global_step < state.max_steps
        if not args.load_best_model_at_end:
            self._capture()
        self._checkpointer.close()

    def _begin(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int,
        resume_from_checkpoint: str | None, trial: object,
    ) -> tuple[int, int]:  # fmt: skip
        """Bring the newest step back. Return the epoch to begin with, and how many of its batches are to be skipped."""
        trainer = self._trainer
        if self not in trainer.callback_handler.callbacks:
            raise UsageError("this CkptdCallback was made and not added; call trainer.add_callback() with it")
        refuse(trainer, resume_from_checkpoint, trial)
        if self._checkpointer is not None:
            self._checkpointer.close()  # of an earlier train() that was left by an exception
        self._resuming = None
        self._stock[_INIT](max_steps, num_update_steps_per_epoch, num_train_epochs, None, None)
        self._model, _ = self._stock[_PREPARE](max_steps, None, None)
        self._progress = Progress(trainer, updates_per_epoch=num_update_steps_per_epoch)
        scaler = trainer.accelerator.scaler
        self._checkpointer = Checkpointer(
            model=self._model, optimizer=getattr(trainer.optimizer, "optimizer", trainer.optimizer),
            scheduler=trainer.lr_scheduler, trainer=self._progress,
            **({} if scaler is None else {"scaler": scaler}), **self._options,
        )  # fmt: skip
        step = self._captured = self._checkpointer.restore()
        if not step:
            return 0, 0
        if self._progress.stopped or step >= max_steps:
            return num_train_epochs, 0  # there is nothing left to do
        self._resuming = Moment.now()
        if self._progress.updates == num_update_steps_per_epoch:  # it had ended there, and may go on now
            self._progress.epoch, self._progress.updates, self._progress.at_epoch = (
                self._progress.epoch + 1,
                0,
                self._resuming,
            )
        return self._progress.epoch, self._progress.updates * trainer.args.gradient_accumulation_steps

    def _prepared(self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None) -> Any:
        """What `_begin` has prepared."""
        self._trainer.callback_handler.train_dataloader = train_dataloader
        return self._model, train_dataloader

    def _run(self, **loop: Any) -> None:
        """Run an epoch; the first one after a restore from where it was."""
        assert self._progress is not None
        progress, epoch = self._progress, loop["epoch"]
        if self._resuming is None:
            progress.epoch, progress.updates = epoch, 0
            progress.at_epoch = Moment.now(generators_of(loop["train_dataloader"]))
        else:
            # accelerate's loader of the batches that are left does not reach the sampler below that of several ranks
            if hasattr(loop["train_dataloader"], "set_epoch"):
                loop["train_dataloader"].set_epoch(epoch)
            progress.at_epoch.bring_back(generators_of(loop["train_dataloader"]))
            loop |= {"resume_from_checkpoint": _FROM_CKPTD, "epochs_trained": epoch}
        self._stock[_EPOCH](**loop)

    def _bring_back_numbers(self, checkpoint: str | None) -> None:
        """The first batches of a resumed training have been fetched, or are about to be where its epoch has just begun."""
        if self._resuming is not None:
            self._resuming.bring_back()
            self._resuming = None

    def _next_batches(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        assert self._progress is not None
        if self._resuming is None:
            self._capture()
        self._progress.updates += 1
        return self._stock["get_batch_samples"](epoch_iterator, num_batches, device)

    def _capture(self) -> None:
        """Capture the step that was done last, once."""
        step = self._trainer.state.global_step
        if self._checkpointer is not None and step > self._captured:
            self._captured = step
            self._checkpointer.step(step)


def refuse(trainer: Trainer, resume_from_checkpoint: str | None, trial: object) -> None:
    """Raise UsageError for what would be captured or resumed wrongly, by the name that the user gave it."""
    args = trainer.args
    optimizer = str(getattr(args.optim, "value", args.optim))
    for found, what, instead in (
        (
            resume_from_checkpoint is not None,
            "train(resume_from_checkpoint=...), a second place to resume from",
            "leave it out; load weights by from_pretrained() to begin with them",
        ),
        (
            trial is not None,
            "a hyperparameter search, whose trials would take each other's snapshots",
            "take the callback out",
        ),
        (
            trainer.is_deepspeed_enabled,
            "DeepSpeed, which keeps parts of the optimizer where no Checkpointer sees them",
            "train with DDP, or take the callback out and save with DeepSpeed",
        ),
        (
            trainer.is_fsdp_enabled,
            "FSDP by accelerate's plugin, which makes the optimizer's parameters anew",
            "train with DDP, or with fully_shard() in a loop of your own and a Checkpointer",
        ),
        (
            args.n_gpu > 1,
            "torch.nn.DataParallel on several GPUs of one process",
            "start a process for each GPU by torchrun",
        ),
        (
            args.auto_find_batch_size,
            "auto_find_batch_size, which begins again with other batches",
            "set the batch size",
        ),
        (args.ignore_data_skip, "ignore_data_skip, which begins the epoch anew after a restart", "leave it out"),
        (
            "layerwise" in optimizer or "lomo" in optimizer,
            f"the optimizer {optimizer}, which changes parameters during backward",
            "choose one that updates them in step()",
        ),
    ):
        if found:
            raise UsageError(f"this Trainer uses {what}; ckptd cannot resume that exactly: {instead}")


def check() -> None:
    """Raise CkptdError when this transformers lacks a name that the callback is made of, before anything is trained."""
    bad = [name for name, takes in _TAKES.items() if _arguments(name) != takes]
    bad += [] if set(_arguments(_EPOCH)) >= _EPOCH_TAKES else [_EPOCH]
    loop = inspect.getsource(Trainer)
    bad += [name for name in LOSS_NAMES if f"self.{name} = " not in loop]
    if bad:
        raise CkptdError(
            f"transformers {transformers.__version__} has no {', '.join(bad)} as CkptdCallback knows it; it was made for "
            "5.24: install that, or call a Checkpointer in a loop of your own"
        )


def _arguments(name: str) -> list[str]:
    method = getattr(Trainer, name, None)
    return [] if method is None else list(inspect.signature(method).parameters)[1:]
