"""DCP's StorageWriter over the slots: each rank's write items become its image of one version.

Nothing is sent that DCP does not send anyway: the coordinator's choice of the version travels in the plans, what was
written in the results. The coordinator commits its image last, with the metadata in it, so a checkpoint exists with
that commit or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter as BaseWriter
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.client import WAIT_MAX_S, Channel
from ckptd.ckpt.errors import StaleStepError, StateError, UsageError
from ckptd.ckpt.image import PAGE, Entry, Layout
from ckptd.ckpt.model import Version
from ckptd.ckpt.settings import read
from ckptd.integrations.dcp.life import LEVELS, Life, life_of
from ckptd.integrations.dcp.metadata import DOCUMENT, Chunk, Place, Span, encode, objects_name, placed
from ckptd.integrations.dcp.names import CheckpointId, address_of, text_of
from ckptd.integrations.tensors import entry, plain


@dataclass(frozen=True, slots=True)
class Assigned:
    """What the coordinator tells a rank, in its plan: who it is, and which version it writes."""

    version: Version
    rank: int
    world: int


@dataclass(frozen=True, slots=True)
class Written:
    """What a rank tells the coordinator of one item, in its results."""

    version: Version
    place: Place


class Contents:
    """What goes into one image: entries with their tensors, which still lie where the planner has them."""

    def __init__(self, rank: int) -> None:
        self.entries: list[Entry] = []
        self.parts: dict[str, torch.Tensor] = {}
        self.written: list[tuple[MetadataIndex, Place, int]] = []
        """Of each item: its index, where it goes, its size in bytes."""
        self._rank = rank
        self._objects = bytearray()

    def resolve(self, item: WriteItem, planner: SavePlanner) -> None:
        """Take one write item. Raises StateError for a tensor that is not what the plan says."""
        data = planner.resolve_data(item)
        if isinstance(data, io.BytesIO):
            first = len(self._objects)
            self._objects += data.getbuffer()
            span = Span(self._rank, first, len(self._objects))
            self.written.append((item.index, span, span.last - span.first))
            return
        name, described = item.index.fqn, item.tensor_data
        local = plain(name, data)
        if described is None or tuple(local.shape) != tuple(described.chunk.sizes):
            raise StateError(
                f"{name}: the plan says {described}, the tensor is {list(local.shape)}; plan each save anew"
            )
        box, whole = Box(tuple(described.chunk.offsets), tuple(local.shape)), tuple(described.size)
        if len(whole) != len(box.shape) or any(map(_beyond, box.offsets, box.shape, whole)):
            raise StateError(f"{name}: the plan puts {list(box.shape)} at {list(box.offsets)} of {list(whole)}")
        made = entry(free_name(name, self.parts), local, whole, box)
        self.add(made, local)
        self.written.append((item.index, Chunk(self._rank, made), made.nbytes))

    def add(self, made: Entry, part: torch.Tensor) -> None:
        """One more entry."""
        self.entries.append(made)
        self.parts[made.name] = part

    def add_bytes(self, name: str, content: bytes | bytearray) -> None:
        """One more entry, of bytes; padded with spaces, so that small changes do not change the size of the image."""
        padded = content.ljust(-(-len(content) // PAGE) * PAGE)
        part = torch.from_numpy(np.frombuffer(padded, dtype=np.uint8).copy())
        self.add(entry(name, part), part)

    def close(self) -> None:
        """No more items will come."""
        if self._objects:
            self.add_bytes(objects_name(self._rank), self._objects)


def free_name(name: str, taken: Container[str]) -> str:
    """A name for an entry of a tensor: it may have several parts in an image, and some names have a meaning."""
    free = f"tensor.{name}" if name.startswith(("ckptd.", "__metadata__")) else name
    while free in taken:
        free += "#"
    return free


def _beyond(first: int, count: int, whole: int) -> bool:
    return first < 0 or first + count > whole


class StorageWriter(BaseWriter):
    """For `dcp.save(storage_writer=...)` and `dcp.async_save`: the checkpoint is a step in memory, as any other of ckptd.

    Can be used for any number of saves, one after the other; may be sent to another process.
    """

    def __init__(
        self, checkpoint_id: CheckpointId = None, *, level: str = "sealed", timeout_s: float = 60.0,
        channel: Channel | None = None,
    ) -> None:  # fmt: skip
        """`checkpoint_id` is what `dcp.save`'s counts for where that gives none.

        A save returns once it is `captured`, `sealed` (the default: protected against the loss of nodes) or `persisted`, and
        fails after `timeout_s` seconds, which is also how long it waits for a slot. `channel`: another way to a daemon, for
        tests. Raises UsageError.
        """
        if level not in LEVELS:
            raise UsageError(f"found level {level!r}, expected one of {', '.join(LEVELS)}")
        if not 0.0 < timeout_s <= WAIT_MAX_S:
            raise UsageError(f"found timeout_s={timeout_s!r}, expected seconds, {WAIT_MAX_S:.0f} at most")
        self._level, self._timeout_s = level, timeout_s
        self._own = None if channel is None else Life(channel, read().job)
        self._pending: tuple[Assigned, Version, Contents] | None = None
        self._coordinates = False
        self.reset(checkpoint_id)

    def reset(self, checkpoint_id: CheckpointId = None) -> None:
        """A new save begins; without an id, under the one that was given before. Raises UsageError."""
        if checkpoint_id is not None or not hasattr(self, "_address"):
            self._address, self.checkpoint_id = address_of(checkpoint_id), text_of(checkpoint_id)
        self._pending = None

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:  # DCP looks for "kwargs"
        if kwargs.get("use_collectives") is False:
            raise UsageError(
                "found use_collectives=False: ranks that do not agree save nothing that could be loaded whole"
            )
        if self._address.step is None or self._address.epoch is not None:
            raise UsageError(f"found checkpoint id {self.checkpoint_id!r}, expected a step to save: 12 or 'step-12'")
        self._coordinates = is_coordinator

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        version = self._life().give(self._step, len(plans))
        return [replace(plan, storage_data=Assigned(version, rank, len(plans))) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        assigned = plan.storage_data
        if not isinstance(assigned, Assigned):
            raise StateError(
                f"the plan came without a version, but with {type(assigned).__name__}; plan each save anew"
            )
        version = self._life().enter(assigned.rank, assigned.world, assigned.version, self._step)
        contents = Contents(assigned.rank)
        for item in plan.items:
            contents.resolve(item, planner)
        contents.close()
        if self._coordinates:
            self._pending = assigned, version, contents
        else:
            self._put(assigned, version, contents)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(index, size, Written(version, place)) for index, place, size in contents.written])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if self._pending is None:
            raise StaleStepError("this save was given up, another one has begun")
        (assigned, version, contents), self._pending = self._pending, None
        written = [(result.index, result.storage_data) for rank in results for result in rank]
        _check_written(version, {what.version for _, what in written})
        places = placed([(index, what.place) for index, what in written])
        contents.add_bytes(DOCUMENT, encode(metadata, places))
        self._put(assigned, version, contents)
        metadata.storage_data = {index: what.place for index, what in written}
        metadata.storage_meta = self.storage_meta()
        self._life().finish(version, self._level, self._timeout_s)

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: CheckpointId) -> bool:
        """Whether the id names a step; see docs/dcp.md."""
        try:
            return address_of(checkpoint_id).step is not None
        except UsageError:
            return False

    @property
    def _step(self) -> int:
        assert self._address.step is not None, "set_up_storage_writer() has looked"
        return self._address.step

    def _life(self) -> Life:
        return self._own or life_of(self._address.job)

    def _put(self, assigned: Assigned, version: Version, contents: Contents) -> None:
        layout = Layout.of(contents.entries, job=self._life().job, rank=assigned.rank, world=assigned.world)
        self._life().put(version, layout, contents.parts, self._timeout_s)


def _check_written(version: Version, found: set[Version]) -> None:
    strange = found - {version}
    if strange:
        raise StaleStepError(
            f"ranks wrote {min(strange)} instead of {version}: their plans were cached before an earlier save failed; "
            "save again with a new step, or without plan caching"
        )
