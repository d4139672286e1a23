"""How far Lightning's loops have come, as a Stateful object: what a Trainer knows beside model, optimizers and schedules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from ckptd.ckpt.errors import StateError
from ckptd.integrations.frameworks.moments import Moment

_STARTED = ("ready", "started", "processed")


class Loops:
    """Where the loops stand between two updates, and what else a Trainer keeps: callbacks, data module, gradient scaler."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._accumulates = trainer.accumulate_grad_batches
        self.at_start = Moment.now()
        """Before the data loaders were asked for."""
        self.at_epoch = self.at_start
        """When this epoch began: the order of its data was drawn after that."""
        self.restored = False

    def state_dict(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "accumulate_grad_batches": self._accumulates,
            "batches": _number(trainer.num_training_batches),
            "loops": between_batches(trainer.fit_loop.state_dict(), trainer.num_training_batches),
            "stopped": trainer.should_stop,
            "parts": {name: part.state_dict() for name, part in self._parts()},
            "at_start": self.at_start.state,
            "at_epoch": self.at_epoch.state,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises StateError when an update would take other batches."""
        if saved["accumulate_grad_batches"] != self._accumulates:
            raise StateError(
                f"this Trainer would not go on with the same batches: accumulate_grad_batches is "
                f"{saved['accumulate_grad_batches']} in the snapshot, {self._accumulates} here; give it what it had"
            )
        self.restored, self._batches = True, saved["batches"]
        trainer = self._trainer
        trainer.fit_loop.load_state_dict(saved["loops"])
        trainer.should_stop = saved["stopped"]
        for name, part in self._parts():
            if name in saved["parts"]:
                part.load_state_dict(saved["parts"][name])
        self.at_start, self.at_epoch = Moment(saved["at_start"]), Moment(saved["at_epoch"])

    def check_data(self) -> None:
        """Raise StateError when an epoch has another number of batches than the snapshot's had."""
        here = _number(self._trainer.num_training_batches)
        if here != self._batches:
            raise StateError(
                f"this Trainer would not go on with the same batches: an epoch had {self._batches} in the snapshot and has "
                f"{here} here (-1: unknown); give it the data and the batch size that it had, or begin another job"
            )

    def _parts(self) -> Iterator[tuple[str, Any]]:
        trainer = self._trainer
        for callback in trainer.callbacks:
            if type(callback).state_dict is not _NO_STATE:
                yield f"callback {callback.state_key}", callback
        if trainer.datamodule is not None:
            yield "datamodule", trainer.datamodule
        yield "precision", trainer.precision_plugin


def _callback_state() -> Any:
    from lightning.pytorch import Callback

    return Callback.state_dict


_NO_STATE = _callback_state()


def _number(batches: float) -> int:
    return -1 if batches == float("inf") else int(batches)


def between_batches(loops: dict[str, Any], batches: float) -> dict[str, Any]:
    """The state of a fit loop as it was before it fetched the batch that it is about to train on.

    At the end of the training too: an epoch that was cut short by `max_steps` has not ended.
    """
    loops = copy.deepcopy(loops)
    loops["state_dict"].pop("combined_loader", None)  # counts the batch; the position is found by the number of batches
    progress, epoch = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    whole = progress["is_last_batch"] or progress["current"]["completed"] >= batches
    for scope in ("total", "current"):
        for name in _STARTED:
            progress[scope][name] = progress[scope]["completed"]
        if epoch[scope]["completed"] == epoch[scope]["ready"] and epoch[scope]["ready"] and not whole:
            epoch[scope]["processed"] = epoch[scope]["completed"] = epoch[scope]["ready"] - 1
    progress["is_last_batch"] = False
    return loops
