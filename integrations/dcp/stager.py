"""The copy that `dcp.async_save` makes before it returns: into host memory that is shared, and used again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class AsyncStager:
    """For `dcp.async_save(async_stager=...)`: when that returns, everything is copied, tensors on CPUs too.

    Memory is used again once nobody holds what was staged in it; a save that still runs keeps its own, so a second one
    that begins meanwhile can't change it. Used from one thread at a time.
    """

    _synchronize_after_execute = False

    def __init__(self) -> None:
        self._stagers: list[tuple[DefaultStager, list[weakref.ref[torch.Tensor]]]] = []

    @property
    def should_synchronize_after_execute(self) -> bool:
        """Whether DCP has to call `synchronize_staging`."""
        return self._synchronize_after_execute

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state, copied."""
        idle = [pair for pair in self._stagers if all(tensor() is None for tensor in pair[1])]
        if not idle:
            idle.append((DefaultStager(_options()), []))
            self._stagers.append(idle[0])
        stager, held = idle[0]
        staged: dict[str, Any] = stager.stage(state_dict)  # type: ignore[assignment]  # no Future: nothing is asynchronous
        held[:] = [weakref.ref(tensor) for tensor in _tensors(staged)]
        return staged

    def synchronize_staging(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Let go of the memory."""
        for stager, _ in self._stagers:
            stager.close()
        self._stagers.clear()


def _options() -> StagingOptions:
    """Shared memory, which DCP's process executor maps; pinned where there is a device to copy from."""
    device = torch.accelerator.is_available()
    return StagingOptions(
        use_pinned_memory=device, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=device
    )


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
