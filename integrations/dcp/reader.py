"""DCP's StorageReader over the images of a version: of those that are not on this node, what is read is brought.

Whatever can be refused is refused while DCP plans, and all bytes are brought then: so all ranks raise, and none of them has
written one.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader as BaseReader
from torch.futures import Future

from ckptd.ckpt.boxes import Box, tile
from ckptd.ckpt.client import Channel, Stretch
from ckptd.ckpt.errors import CkptdError, CorruptionError, StateError, UsageError
from ckptd.ckpt.model import Version
from ckptd.ckpt.settings import read
from ckptd.integrations.dcp.life import Life, life_of
from ckptd.integrations.dcp.metadata import DOCUMENT, Chunk, Place, Span, decode, objects_name
from ckptd.integrations.dcp.names import CheckpointId, address_of, name_of
from ckptd.integrations.files.images import files_of
from ckptd.integrations.images import Bring, Opened, all_here, fetch


class StorageReader(BaseReader):
    """For `dcp.load(storage_reader=...)`, with any planner and any number of ranks."""

    def __init__(self, checkpoint_id: CheckpointId = None, *, channel: Channel | None = None) -> None:
        """`checkpoint_id` is what `dcp.load`'s counts for where that gives none; None means the newest step.

        `channel`: another way to a daemon, for tests. Raises UsageError.
        """
        self._own = None if channel is None else Life(channel, read().job)
        self._address = address_of(checkpoint_id)
        self._version: Version | None = None
        self._images: list[Opened] = []
        self._bring: Bring = all_here
        self._places: dict[MetadataIndex, Place] = {}
        self.failure: CkptdError | None = None
        """What kept the metadata from being read: DCP itself only logs it."""

    def reset(self, checkpoint_id: CheckpointId = None) -> None:
        """A new load begins; without an id, of the one that was given before. Raises UsageError."""
        if checkpoint_id is not None:
            self._address = address_of(checkpoint_id)
        self.close()
        self._places, self.failure = {}, None

    def close(self) -> None:
        """Let go of the images. A load that ends well does so; else they stay on the node until it loads another step."""
        version, self._version, self._images = self._version, None, []
        if version is not None:
            self._life().shut(version)

    def _life(self) -> Life:
        return self._own or life_of(self._address.job)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Open the step's images and read what is in them. A list of names and places; no tensors yet.

        Raises Unrecoverable, CorruptionError, StateError for a step that DCP did not save.
        """
        try:
            return self._read()
        except CkptdError as error:
            self.failure = error
            raise

    def _read(self) -> Metadata:
        self.close()
        version = self._life().find(self._address)
        (self._images, self._bring), self._version = self._life().open_parts(version), version
        if files_of(self._images) is not None:
            raise StateError(
                f"{version} is files that were written to ckptd://; where torch.distributed.checkpoint wrote them, it loads "
                f"them itself, by load(state, checkpoint_id='ckptd://.../step-{version.step}')"
            )
        documents = [image for image in self._images if DOCUMENT in image.header.spans]
        if not documents:
            raise StateError(
                f"{version} was not saved by torch.distributed.checkpoint; restore it with the Checkpointer that "
                "captured it, or write it out by `ckptd export --format dcp`"
            )
        if len(documents) > 1:
            raise CorruptionError(f"{version}: {len(documents)} images have metadata, expected one; load another step")
        first, last = documents[0].header.spans[DOCUMENT]
        self._bring([Stretch(documents[0].header.rank, first, last)])
        metadata = decode(documents[0].mapping.memory[first:last], self._images)
        metadata.storage_meta = StorageMeta(checkpoint_id=name_of(version))
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        if not isinstance(metadata.storage_data, dict):
            raise UsageError("found metadata of another reader, expected what this one's read_metadata() returned")
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Have all bytes brought. Raises StateError for an item that the checkpoint does not hold, and CkptdError."""
        self._fetch(plan)
        return replace(plan, storage_data=self._version)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Raises StateError when the ranks' daemons named different versions."""
        versions = {plan.storage_data for plan in plans}
        if len(versions) > 1:
            raise StateError(
                f"the ranks found {' and '.join(sorted(map(str, versions)))}: a step was saved meanwhile; load again"
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Objects first, then tensors: of these only the rows that are asked for.

        Raises StateError when an element of a destination would stay as it was, before any of them is written.
        """
        self._fetch(plan)  # all of it is here, unless DCP has kept the plan of an earlier load
        for item in plan.items:
            place = self._place(item)
            if isinstance(place, Span):
                planner.load_bytes(item, io.BytesIO(self._object(place)))
        copies = [(item, *self._ends(item, place, planner)) for item, place in self._tensors(plan)]
        _check_cover(plan, planner)
        for image in self._images:
            image.check()
        for item, source, target in copies:
            target.copy_(source)
            planner.commit_tensor(item, target)
        for image in self._images:
            image.check()
        self.close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: CheckpointId) -> bool:
        """Whether the id names a step; see docs/dcp.md."""
        try:
            address_of(checkpoint_id)
        except UsageError:
            return False
        return True

    def _place(self, item: ReadItem) -> Place:
        place = self._places.get(item.storage_index)
        fits = isinstance(place, Span)
        if isinstance(place, Chunk):
            offsets, lengths, shape = tuple(item.storage_offsets), tuple(item.lengths), place.entry.local
            fits = len(offsets) == len(lengths) == len(shape)
            fits = fits and all(0 <= o <= o + n <= s for o, n, s in zip(offsets, lengths, shape, strict=True))
        if place is None or not fits or isinstance(place, Span) != (item.type == LoadItemType.BYTE_IO):
            what = (
                f"{tuple(item.lengths)} from {tuple(item.storage_offsets)} of the part at {item.storage_index.offset}"
            )
            raise StateError(
                f"{item.storage_index.fqn}: the plan asks for {what}, which the checkpoint does not have; "
                "plan by its own metadata"
            )
        return place

    def _fetch(self, plan: LoadPlan) -> None:
        wanted: list[Stretch] = []
        for item in plan.items:
            place = self._place(item)
            if isinstance(place, Span):
                wanted.append(self._bytes(place))
            else:
                part, outer = Box(tuple(item.storage_offsets), tuple(item.lengths)), Box.whole(place.entry.local)
                wanted += self._images[place.rank].stretches(place.entry, part, outer)
        fetch(self._images, wanted, self._bring)

    def _bytes(self, span: Span) -> Stretch:
        start = self._images[span.rank].header.spans[objects_name(span.rank)][0]
        return Stretch(span.rank, start + span.first, start + span.last)

    def _object(self, span: Span) -> bytes:
        where = self._bytes(span)
        return self._images[span.rank].mapping.memory[where.first : where.last]

    def _tensors(self, plan: LoadPlan) -> list[tuple[ReadItem, Chunk]]:
        places = [(item, self._place(item)) for item in plan.items]
        return [(item, place) for item, place in places if isinstance(place, Chunk)]

    def _ends(self, item: ReadItem, place: Chunk, planner: LoadPlanner) -> tuple[torch.Tensor, torch.Tensor]:
        """Where to copy an item from, in the image, and to."""
        source = self._images[place.rank].tensor(place.entry)
        wanted = Box(tuple(item.storage_offsets), tuple(item.lengths))
        source = source[wanted.within(Box.whole(place.entry.local))]
        target = planner.resolve_tensor(item).detach()
        if target.shape != source.shape:
            raise StateError(
                f"{item.dest_index.fqn}: {list(source.shape)} elements for a place of {list(target.shape)}"
            )
        return source, target


def _check_cover(plan: LoadPlan, planner: LoadPlanner) -> None:
    """Every destination that is written at all is written everywhere, as far as the planner tells what they are."""
    look_up = getattr(planner, "lookup_tensor", None)
    if look_up is None:
        return
    boxes: dict[MetadataIndex, list[Box]] = {}
    for item in plan.items:
        if item.type == LoadItemType.TENSOR:
            boxes.setdefault(item.dest_index, []).append(Box(tuple(item.dest_offsets), tuple(item.lengths)))
    short = {index.fqn for index, parts in boxes.items() if not tile(tuple(look_up(index).shape), parts)}
    if short:
        names = ", ".join(sorted(short)[:10])
        raise StateError(
            f"the plan leaves elements of {len(short)} tensors unwritten, or writes some twice: {names}; "
            "no tensor was changed"
        )
