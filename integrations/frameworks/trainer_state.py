"""How far a Hugging Face Trainer has come, as a Stateful object: what its loop knows beside the model and its optimizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.integrations.frameworks.moments import Moment

FIELDS = (
    "epoch", "global_step", "num_input_tokens_seen", "total_flos",
    "best_metric", "best_global_step", "best_model_checkpoint",
)  # fmt: skip
"""What is captured of TrainerState beside its log. The others follow from the arguments of this run."""
_TR_LOSS, _LAST_LOGGED, _TOTAL_LOSS = "_tr_loss", "_globalstep_last_logged", "_total_loss_scalar"
LOSS_NAMES = (_TR_LOSS, _LAST_LOGGED, _TOTAL_LOSS)
_ROOM = 4096


class Progress:
    """Where the loop stands between two updates: after `updates` of epoch `epoch`, before the next batch is fetched."""

    def __init__(self, trainer: Trainer, *, updates_per_epoch: int) -> None:
        self._trainer = trainer
        args = trainer.args
        self._same = {
            "update steps an epoch (they follow from the data set)": updates_per_epoch,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
        }
        self._log = Log()
        self._losses: tuple[torch.Tensor, int] | None = None
        self.epoch = 0
        self.updates = 0
        self.at_epoch = Moment.now()
        """When this epoch's iteration over the data was about to begin: its order may have been drawn then."""
        self.stopped = False
        """Whether a callback has ended the training before its last step."""

    def state_dict(self) -> dict[str, Any]:
        state = self._trainer.state
        log, log_bytes = self._log.of(state.log_history)
        return {
            "same": dict(self._same),
            "fields": {name: getattr(state, name) for name in FIELDS},
            "flos": float(self._trainer.current_flos),
            "log": log,
            "log_bytes": log_bytes,
            "loss": getattr(self._trainer, _TR_LOSS).detach(),
            "last_logged": getattr(self._trainer, _LAST_LOGGED),
            "callbacks": [[name, callback.state()["attributes"]] for name, callback in self._callbacks()],
            "epoch": self.epoch,
            "updates": self.updates,
            "at_epoch": self.at_epoch.state,
            "stopped": self.stopped,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises StateError when the loop would not fetch the same batches, CorruptionError for what can't be."""
        if saved["same"] != self._same:
            here = [
                f"{name}: {saved['same'].get(name)!r} in the snapshot, {value!r} here"
                for name, value in self._same.items()
                if saved["same"].get(name) != value
            ]
            raise StateError(
                f"this Trainer would not go on with the same batches: {'; '.join(here)}; run it with the arguments and "
                "the data that it had, or begin another job"
            )
        state = self._trainer.state
        for name in FIELDS:
            setattr(state, name, saved["fields"][name])
        state.log_history = self._log.load(saved["log"], saved["log_bytes"])
        self._trainer.current_flos = saved["flos"]
        self._losses = saved["loss"], saved["last_logged"]
        for (name, callback), (saved_name, attributes) in zip(self._callbacks(), saved["callbacks"], strict=False):
            if name == saved_name:
                for attribute, value in attributes.items():
                    setattr(callback, attribute, value)
        self.epoch, self.updates = saved["epoch"], saved["updates"]
        self.at_epoch = Moment(saved["at_epoch"])
        self.stopped = saved["stopped"]

    def bring_back_losses(self) -> None:
        """Set what the Trainer resets when its loop begins: the losses that were summed and not logged yet.

        The loss that it reports at the end is that of this run's own steps.
        """
        if self._losses is not None:
            loss, last_logged = self._losses
            getattr(self._trainer, _TR_LOSS).copy_(loss)
            setattr(self._trainer, _TOTAL_LOSS, -loss.item())
            setattr(self._trainer, _LAST_LOGGED, last_logged)

    def _callbacks(self) -> Iterator[tuple[str, ExportableState]]:
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                yield type(callback).__name__, callback


class Log:
    """A Trainer's log as JSON in a tensor. It only grows, so a capture encodes what is new and copies the rest."""

    def __init__(self) -> None:
        self._text = torch.zeros(_ROOM, dtype=torch.uint8)
        self._used = 0
        self._entries = 0

    def of(self, history: list[dict[str, Any]]) -> tuple[torch.Tensor, int]:
        """The tensor, which has room beyond its text so that its size changes rarely, and the length of the text."""
        if len(history) < self._entries:
            self._used = self._entries = 0
        for entry in history[self._entries :]:
            try:
                text = json.dumps(entry).encode() + b"\n"
            except TypeError as error:
                raise StateError(
                    f"found {sorted(entry)} in the Trainer's log, expected values that JSON knows: {error}; log numbers "
                    "and strings"
                ) from error
            while self._used + len(text) > len(self._text):
                self._text = torch.cat([self._text, torch.zeros_like(self._text)])
            self._text[self._used : self._used + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            self._used += len(text)
        self._entries = len(history)
        return self._text, self._used

    def load(self, text: torch.Tensor, used: int) -> list[dict[str, Any]]:
        """The entries. Raises CorruptionError when the text is no log."""
        if type(used) is not int or text.dtype != torch.uint8 or text.dim() != 1 or not 0 <= used <= len(text):
            raise CorruptionError(f"found a log of {used!r} bytes in {list(text.shape)}; choose another step")
        try:
            history = [json.loads(line) for line in text[:used].numpy().tobytes().splitlines()]
        except ValueError as error:
            raise CorruptionError(
                f"the Trainer's log in the snapshot is not JSON: {error}; choose another step"
            ) from error
        self._text, self._used, self._entries = text.clone(), used, len(history)
        return history
