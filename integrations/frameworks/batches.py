"""What Accelerate adds to a training, as one Stateful object: the position in the data, and the gradient scaler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch.utils.hooks import RemovableHandle

from ckptd.ckpt.errors import StateError, UsageError
from ckptd.integrations.frameworks.moments import Moment, generators_of

_REFUSED = {
    "DEEPSPEED": "DeepSpeed, which keeps parts of the optimizer where no Checkpointer sees them",
    "FSDP": "FSDP by its plugin, which makes the optimizer's parameters anew",
    "MEGATRON_LM": "Megatron-LM, which has a loop and checkpoints of its own",
    "XLA": "XLA, whose tensors no Checkpointer reads",
}


class Batches:
    """The batches of a prepared loader, epoch after epoch, from where a restored training was.

    Give it to a Checkpointer beside the prepared model, optimizer and scheduler, and call `step` where
    `accelerator.sync_gradients` is true: gradients that are still being accumulated are not captured.
    """

    def __init__(self, accelerator: Accelerator, loader: Any) -> None:
        """`loader`: what `accelerator.prepare` returned. Raises UsageError for what cannot be resumed exactly, by name.

        Between a restore and `epochs`, `accelerator.load_state` raises UsageError and loads nothing: its files over the
        snapshot would be the model of one step with the data of another.
        """
        kind = accelerator.distributed_type.name
        if kind in _REFUSED:
            raise UsageError(
                f"this Accelerator uses {_REFUSED[kind]}; ckptd cannot resume that exactly: train with DDP, or save by "
                "accelerator.save_state()"
            )
        self._accelerator, self._loader = accelerator, loader
        self._at_epoch = Moment.now(self._generators())
        self._resuming: Moment | None = None
        self._guards: list[RemovableHandle] = []
        self.epoch = 0
        """The epoch that is trained on, from 0."""
        self.taken = 0
        """The batches of it that were handed out on this rank."""

    def epochs(self, count: int) -> Iterator[Any]:
        """The batches up to the end of epoch `count` - 1. What was trained before a restore is fetched again and dropped."""
        self._unguard()  # whoever loads files from here on, as to evaluate the best ones, means to
        while self.epoch < count:
            yield from self._rest()
            self.epoch, self.taken = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return {
            "epoch": self.epoch,
            "taken": self.taken,
            "batches": self._count(),
            "at_epoch": self._at_epoch.state,
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises StateError when an epoch has another number of batches than it had."""
        if saved["batches"] != self._count():
            raise StateError(
                f"this loader would not go on with the same batches: an epoch had {saved['batches']} in the snapshot and "
                f"has {self._count()} here (-1: unknown); give it the data and batch size that it had, or begin another job"
            )
        self.epoch, self.taken = saved["epoch"], saved["taken"]
        self._at_epoch = Moment(saved["at_epoch"])
        if self._accelerator.scaler is not None and saved["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(saved["scaler"])
        self._unguard()
        self._guards.append(self._accelerator.register_load_state_pre_hook(self._refuse_files))
        self._resuming = self._at_epoch  # until the batches are taken, by when the other objects are restored too

    def _rest(self) -> Iterator[Any]:
        skipped = 0
        if self._resuming is None:
            self._at_epoch = Moment.now(self._generators())
        else:
            skipped, here = self.taken, Moment.now()
            self._at_epoch.bring_back(self._generators())
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(self.epoch)
        iterator = iter(self._loader)
        for _ in range(skipped):
            next(iterator)
        if self._resuming is not None:
            self._resuming = None
            here.bring_back()
        for batch in iterator:
            self.taken += 1
            yield batch

    def _refuse_files(self, models: list[Any], folder: str) -> None:
        """Accelerate calls it before it reads the files in `folder` that are to become the models' state."""
        raise UsageError(
            f"accelerator.load_state({folder!r}) would put its files over the snapshot that was restored, after "
            f"{self.taken} batches of epoch {self.epoch}; call it before restore(), or only where that has returned 0"
        )

    def _unguard(self) -> None:
        while self._guards:
            self._guards.pop().remove()

    def _generators(self) -> Any:
        return generators_of(self._loader)

    def _count(self) -> int:
        try:
            return len(self._loader)
        except TypeError:
            return -1
