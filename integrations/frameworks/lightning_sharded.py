"""Lightning's sharded strategies with `ckptd://` paths: they make a `Path` of a URL, and of that a folder on the disk."""

from __future__ import annotations

import io
import os
from typing import Any

import fsspec
import torch
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.settings import read
from ckptd.integrations import dcp
from ckptd.integrations.dcp.names import SCHEME, address_of
from ckptd.integrations.files.names import check
from ckptd.integrations.files.places import place_of

_REST = "lightning"
"""What of a checkpoint is no model and no optimizer, as rank 0 has it: bytes of `torch.save`, as in Lightning's folder."""
_MODEL = "state_dict"


class _InMemory(Strategy):  # type: ignore[misc]  # its types are not looked at
    """Sends checkpoints with a `ckptd://` path to `ckptd.dcp`, and leaves all others to the strategy.

    `ckptd://job/step-12` names the step, whatever follows it. Any other name below the job stands for the step that the
    Trainer is at, and is known in the process that has saved it.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Arguments as the strategy has them."""
        super().__init__(*arguments, **named)
        self._saved: dict[str, str] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save the checkpoint; a collective that returns when the step is sealed.

        Raises the CkptdError of the first rank that failed, on every rank; UsageError for a full state; TypeError.
        """
        path = _text(self.broadcast(filepath))
        if not path.startswith(SCHEME):
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        if storage_options is not None:
            raise TypeError("found storage_options; expected none: a snapshot has no options")
        if not self._is_sharded():
            raise UsageError(
                "this strategy gathers the whole state on rank 0; save it sharded (save_distributed_checkpoint=True, "
                "state_dict_type='sharded'), which any number of ranks can load"
            )
        url = _step_of(path) or f"{SCHEME}{place_of(path.removeprefix(SCHEME)).job}/step-{checkpoint['global_step']}"
        state: dict[str, Any] = {_MODEL: checkpoint.pop("state_dict")}
        state |= {_optimizer(at): found for at, found in enumerate(checkpoint.pop("optimizer_states", []))}
        if self.global_rank == 0:
            rest = io.BytesIO()
            torch.save(checkpoint, rest)
            state[_REST] = rest.getvalue()
        dcp.save(state, checkpoint_id=url)
        self._saved[path] = url

    def load_checkpoint(self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None) -> Any:
        """Load a step into the model and the optimizers; a collective. Returns the rest of the checkpoint.

        Raises the CkptdError of the first rank that failed, on every rank: StateError for another model or optimizer, with
        all names that differ.
        """
        path = _text(self.broadcast(checkpoint_path))
        if not path.startswith(SCHEME):
            return super().load_checkpoint(checkpoint_path, weights_only)
        url = _step_of(path) or self._saved.get(path, path)
        model, strict = self.model, self.lightning_module.strict_loading
        optimizers = {_optimizer(at): optimizer for at, optimizer in enumerate(self.optimizers)}
        state: dict[str, Any] = {_MODEL: get_model_state_dict(model), _REST: b""}
        state |= {name: get_optimizer_state_dict(model, optimizer) for name, optimizer in optimizers.items()}
        planner = dcp.LoadPlanner(extra="refuse" if strict and optimizers else "ignore", allow_partial_load=not strict)
        dcp.load(state, checkpoint_id=url, planner=planner)
        set_model_state_dict(model, state[_MODEL], options=StateDictOptions(strict=strict))
        for name, optimizer in optimizers.items():
            set_optimizer_state_dict(model, optimizer, state[name])
        return _load(io.BytesIO(state[_REST]), weights_only=weights_only)

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Nothing is to be done in memory, which is used again by itself; `keep_last` thins out storage."""
        if not _text(filepath).startswith(SCHEME):
            super().remove_checkpoint(filepath)

    def _is_sharded(self) -> bool:
        raise NotImplementedError


class CkptdModelParallelStrategy(_InMemory, ModelParallelStrategy):  # type: ignore[misc]
    """`ModelParallelStrategy` whose checkpoints may be at `ckptd://job/...`; every rank keeps its shards on its node."""

    def _is_sharded(self) -> bool:
        return bool(self._save_distributed_checkpoint)


class CkptdFSDPStrategy(_InMemory, FSDPStrategy):  # type: ignore[misc]
    """`FSDPStrategy` whose checkpoints may be at `ckptd://job/...`; every rank keeps its shards on its node."""

    def _is_sharded(self) -> bool:
        return bool(self._state_dict_type == "sharded")


def newest_step(job: str | None = None) -> str | None:
    """The URL of a job's newest step, for `trainer.fit(ckpt_path=...)`; None where there is none, as for a new training.

    `job`: another one than that of the settings. Raises UsageError for what is no name of a job.
    """
    home = f"{SCHEME}{read(job=job).job}"
    fs = fsspec.filesystem("ckptd")
    steps = fs.ls(home, detail=False) if fs.exists(home) else []
    return max((SCHEME + step for step in steps), key=lambda url: address_of(url).step or 0, default=None)


def _text(path: str | os.PathLike[str]) -> str:
    """The path as it was written. Raises UsageError for a URL that was made a Path, which has lost a slash by it."""
    text = os.fspath(path)
    if text.startswith("ckptd:") and not text.startswith(SCHEME):
        raise UsageError(f"found {text!r}, expected {SCHEME}job/step-12: give the URL as a string, not as a Path")
    return text


def _step_of(path: str) -> str | None:
    """The step that a URL names; None where it leaves that open. Raises UsageError for what is below no job."""
    place = place_of(path.removeprefix(SCHEME))
    if place.step:
        check(place.step)
    try:
        return None if place.address.step is None else f"{SCHEME}{place.job}/{place.step}"
    except UsageError:
        return None


def _optimizer(at: int) -> str:
    return f"optimizer_{at}"
