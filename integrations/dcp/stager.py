"""The copy that `dcp.async_save` makes before it returns: into host memory that is shared, and used again.

Once a state has been saved, that memory is a file that becomes the image: see `berths`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint._state_dict_stager import StateDictStager

from ckptd.integrations.dcp.berths import Course, Staging, note


class AsyncStager:
    """For `dcp.async_save(async_stager=...)`: when that returns, everything is copied, tensors on CPUs too.

    Memory is used again once nobody holds what was staged in it; a save that still runs keeps its own, so a second one
    that begins meanwhile can't change it. Used from one thread at a time.
    """

    _synchronize_after_execute = False

    def __init__(self) -> None:
        self._copiers: list[_Copier] = []

    @property
    def should_synchronize_after_execute(self) -> bool:
        """Whether DCP has to call `synchronize_staging`."""
        return self._synchronize_after_execute

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state, copied."""
        idle = next((copier for copier in self._copiers if not copier.staging.lives), None)
        course = self._course()
        if course is not None:  # the others' memory is not needed any more
            self._copiers = [copier for copier in self._copiers if copier is idle or copier.staging.lives]
        if idle is None:
            idle = _Copier()
            self._copiers.append(idle)
        return idle.copy(state_dict, course)

    def _course(self) -> Course | None:
        """What the writer of the newest save that has got so far has found."""
        found = None
        for copier in self._copiers:
            found, copier.staging.next = copier.staging.next or found, None
        return found

    def synchronize_staging(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Let go of the memory."""
        for copier in self._copiers:
            copier.close()  # type: ignore[no-untyped-call]
        self._copiers.clear()


class _Copier(StateDictStager):
    """DCP's, whose memory is shared, as its process executor maps it, and pinned where there is a device to copy from.

    What has a place in a berth is copied there instead.
    """

    def __init__(self) -> None:
        self._device = torch.accelerator.is_available()
        super().__init__(pin_memory=self._device, share_memory=True)
        self.staging = Staging(None)

    def copy(self, state_dict: dict[str, Any], course: Course | None) -> dict[str, Any]:
        """The state, copied."""
        self.staging = staging = Staging(course)
        copied: dict[str, Any] = {}
        try:
            copied = self.stage(state_dict, non_blocking=self._device)
            if self._device:
                torch.accelerator.synchronize()
        finally:
            staging.close(_tensors(copied))
        note(staging)
        return copied

    def _stage_untyped_storage(self, storage: torch.UntypedStorage, non_blocking: bool = False) -> torch.UntypedStorage:
        copy = self.staging.place(storage.nbytes())
        if copy is None:
            copy = super()._stage_untyped_storage(storage, non_blocking=non_blocking)
        else:
            self._cached_storage_mapping.pop(storage, None)  # type: ignore[no-untyped-call]
            copy.copy_(storage, non_blocking=non_blocking)
        self.staging.from_device |= storage.device.type != "cpu"
        self.staging.add(copy)
        return copy


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
