"""A content as the images of a step that a Checkpointer, or `ckptd.dcp.load`, can start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.image import PAGE, Layout
from ckptd.ckpt.strict import json_object
from ckptd.integrations.dcp.metadata import DOCUMENT, Chunk, Place, Span, encode, objects_name, placed
from ckptd.integrations.dcp.writer import free_name
from ckptd.integrations.exchange.content import Content, Part, Whole
from ckptd.integrations.exchange.steps import owner_of, ranks_of
from ckptd.integrations.sources import document_name


@dataclass(frozen=True, slots=True)
class Rank:
    """One image: what lies where in it."""

    layout: Layout
    tensors: dict[str, Whole]
    """By the names of the layout's entries."""


def images_of(content: Content, job: str) -> tuple[list[Rank], bool]:
    """The images, one a rank, and whether they are a Checkpointer's.

    The whole state of a Checkpointer (with its documents `ckptd.state.rank-...`) becomes a step of as many ranks; anything
    else becomes one image as DCP saves it. Raises StateError, CorruptionError.
    """
    if not content.tensors and not content.objects:
        raise StateError("there is nothing in it, neither tensors nor values; give another checkpoint")
    world = ranks_of([tensor.name for tensor in content.tensors])
    if not world:
        return [_saved_by_dcp(content, job)], False
    if content.objects:
        raise StateError(
            f"found values beside a Checkpointer's state, as {min(content.objects)!r}; expected tensors alone"
        )
    _check_documents(content.tensors, world)
    ranks: list[dict[str, Whole]] = [{} for _ in range(world)]
    for tensor in content.tensors:
        ranks[owner_of(tensor.name)][tensor.name] = tensor
    return [_rank(tensors, job, rank, world) for rank, tensors in enumerate(ranks)], True


def _rank(tensors: dict[str, Whole], job: str, rank: int, world: int) -> Rank:
    return Rank(Layout.of([tensor.entry for tensor in tensors.values()], job=job, rank=rank, world=world), tensors)


def _check_documents(tensors: Sequence[Whole], world: int) -> None:
    documents = {document_name(rank) for rank in range(world)}
    for tensor in tensors:
        if tensor.name not in documents:
            continue
        if tensor.dtype != torch.uint8 or len(tensor.shape) != 1:
            raise CorruptionError(f"{tensor.name}: found {tensor.dtype} {list(tensor.shape)}, expected bytes of JSON")
        try:
            json_object(b"".join(band.numpy().tobytes() for band in tensor.bands()))
        except ValueError as error:
            raise CorruptionError(f"{tensor.name} is not readable ({error}); export again") from error


def _saved_by_dcp(content: Content, job: str) -> Rank:
    tensors: dict[str, Whole] = {}
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: list[tuple[MetadataIndex, Place]] = []
    for tensor in content.tensors:
        renamed = replace(tensor, name=free_name(tensor.name, tensors))
        tensors[renamed.name] = renamed
        nothing, shape = torch.Size([0] * len(tensor.shape)), torch.Size(tensor.shape)
        chunk = ChunkStorageMetadata(nothing, shape)
        described[tensor.name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), shape, [chunk])
        places.append((MetadataIndex(tensor.name, nothing), Chunk(0, renamed.entry)))
    blob = bytearray()
    for name, value in content.objects.items():
        described[name] = BytesStorageMetadata()
        places.append((MetadataIndex(name), Span(0, len(blob), len(blob) + len(value))))
        blob += value
    paths = {name: content.paths.get(name, (name,)) for name in described}
    document = encode(Metadata(described, planner_data=paths), placed(places))
    for name, text in ((objects_name(0), bytes(blob)), (DOCUMENT, document)):
        if text:
            tensors[name] = _of_bytes(name, text)
    return _rank(tensors, job, 0, 1)


def _of_bytes(name: str, content: bytes) -> Whole:
    padded = content.ljust(-(-len(content) // PAGE) * PAGE)
    made = torch.from_numpy(np.frombuffer(padded, dtype=np.uint8).copy())
    return Whole.of(name, torch.uint8, tuple(made.shape), (Part(Box.whole(tuple(made.shape)), lambda: made),))
