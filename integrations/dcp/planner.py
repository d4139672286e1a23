"""A load planner that says all that does not fit before anything is loaded; DCP's stops at the first, or says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_load_plan
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan

from ckptd.ckpt.errors import StateError, UsageError

Extra = Literal["refuse", "ignore"]
_MOST_NAMES = 10


class LoadPlanner(DefaultLoadPlanner):
    """DCP's default, and strict: names, shapes, dtypes and kinds must be those of the checkpoint, on all ranks together."""

    def __init__(self, *, extra: Extra = "refuse", **options: bool) -> None:
        """`extra`: what to do about names that only the checkpoint has. `options` are the DefaultLoadPlanner's.

        Raises UsageError.
        """
        if extra not in ("refuse", "ignore"):
            raise UsageError(f"found extra={extra!r}, expected 'refuse' or 'ignore'")
        super().__init__(**options)
        self._extra = extra

    def create_local_plan(self) -> LoadPlan:
        """Raises StateError with everything that does not fit here."""
        assert self.metadata is not None, "set_up_planner() first"
        saved = self.metadata.state_dict_metadata
        missing = [] if self.allow_partial_load else sorted(self.state_dict.keys() - saved.keys())
        common = sorted(self.state_dict.keys() & saved.keys())
        differs = [text for name in common if (text := _difference(name, saved[name], self.state_dict[name]))]
        _report(missing=missing, differs=differs)
        # Not DCP's own: where this rank has no part of a ShardedTensor, it takes the checkpoint for one of torch 2.3.
        plan = create_default_local_load_plan(self.state_dict, self.metadata, not self.allow_partial_load)
        return replace(plan, planner_data=tuple(sorted(self.state_dict)))

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Raises StateError when the checkpoint has names that no rank asks for."""
        assert self.metadata is not None, "set_up_planner() first"
        asked = {name for plan in global_plan for name in plan.planner_data}
        if self._extra == "refuse":
            _report(surplus=sorted(self.metadata.state_dict_metadata.keys() - asked))
        plans: list[LoadPlan] = super().create_global_plan(global_plan)
        return plans


def _difference(name: str, saved: TensorStorageMetadata | BytesStorageMetadata, live: Any) -> str | None:
    """What keeps a saved value from being loaded into the one that is there, in words."""
    if isinstance(saved, BytesStorageMetadata):
        return f"{name} (an object in the checkpoint, a tensor here)" if isinstance(live, torch.Tensor) else None
    size: Callable[[], Sequence[int]] | None = getattr(live, "size", None)  # a ShardedTensor is none of torch.Tensor
    if size is None:
        return f"{name} (a tensor in the checkpoint, {type(live).__name__} here)"
    there, here = (saved.properties.dtype, tuple(saved.size)), (live.dtype, tuple(size()))
    if there == here:
        return None
    return f"{name} ({_words(*there)} in the checkpoint, {_words(*here)} here)"


def _words(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _report(*, missing: Sequence[str] = (), surplus: Sequence[str] = (), differs: Sequence[str] = ()) -> None:
    problems = []
    for what, names in (("missing in it", missing), ("only in it", surplus), ("different", differs)):
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:_MOST_NAMES])}{more}")
    if problems:
        raise StateError(
            f"the checkpoint does not fit the state that it is loaded into; {'; '.join(problems)}. Nothing was changed; "
            "pass the state of the same model and optimizer, or a LoadPlanner that allows the difference"
        )
