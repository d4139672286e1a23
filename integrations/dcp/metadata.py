"""DCP's metadata of a checkpoint as a JSON document in the coordinator's image, and back. No pickle.

The images describe their own entries: dtype, shape of the whole and the box that is held. So the document only says which
entries make up a tensor, where in the images the objects' bytes lie, and how flattened names become nested ones:

    format      1
    torch       DCP's own version of the metadata, or null
    tensors     {name: [[rank], ...]}, or [rank, entry] where the entry has another name than the tensor
    objects     {name: [rank, first byte, byte after the last]} in `objects_name(rank)`
    paths       {name: ["model", "layers", 0]}, or null: DCP's planner_data
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ckptd.ckpt.boxes import tile
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.image import PAGE, Entry
from ckptd.ckpt.strict import is_count, json_object, short
from ckptd.integrations.images import Opened
from ckptd.integrations.tensors import dtype_of

FORMAT = 1
DOCUMENT = "ckptd.dcp.metadata"
MAX_DOCUMENT = 100_000_000  # bytes; of a header as long, which would name as many tensors
_KEYS = {"format", "torch", "tensors", "objects", "paths"}


def objects_name(rank: int) -> str:
    """The entry that holds a rank's objects, end to end: what DCP's planner made of what is not a tensor."""
    return f"ckptd.dcp.objects.rank-{rank:05d}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a part of a tensor is: an entry in the image of `rank`."""

    rank: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Span:
    """Where an object is: bytes `first` to `last` of `objects_name(rank)` in the image of `rank`."""

    rank: int
    first: int
    last: int


Place = Chunk | Span
Places = dict[MetadataIndex, Place]


def placed(pairs: Sequence[tuple[MetadataIndex, Place]]) -> dict[str, list[Place]]:
    """The places by name of the tensor or object."""
    found: dict[str, list[Place]] = {}
    for index, place in pairs:
        found.setdefault(index.fqn, []).append(place)
    return found


def encode(metadata: Metadata, places: Mapping[str, Sequence[Place]]) -> bytes:
    """The document of a checkpoint whose parts were written to `places`.

    Raises StateError when they do not make up every tensor exactly once, or when the planner's data is not DCP's own kind:
    a dict of tuples of names and numbers.
    """
    tensors: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for name, described in metadata.state_dict_metadata.items():
        parts = places.get(name, ())
        if isinstance(described, TensorStorageMetadata):
            chunks = [part for part in parts if isinstance(part, Chunk)]
            _check_cover(name, described, chunks)
            tensors[name] = [
                [chunk.rank] if chunk.entry.name == name else [chunk.rank, chunk.entry.name] for chunk in chunks
            ]
        else:
            spans = [part for part in parts if isinstance(part, Span)]
            if len(spans) != 1:
                raise StateError(f"{name}: the planner had it written {len(spans)} times, expected once")
            objects[name] = [spans[0].rank, spans[0].first, spans[0].last]
    surplus = places.keys() - metadata.state_dict_metadata.keys()
    if surplus:
        raise StateError(f"{len(surplus)} names were written that are not in the metadata, as {min(surplus)}")
    version = getattr(metadata, "version", None)  # torch 2.6 has none
    own = {"format": FORMAT, "torch": version, "tensors": tensors, "objects": objects}
    document = json.dumps({**own, "paths": _paths(metadata.planner_data)}).encode()
    if len(document) > MAX_DOCUMENT:
        raise StateError(
            f"the metadata of {len(tensors)} tensors has {len(document)} bytes, it may have {MAX_DOCUMENT}"
        )
    return document


def _check_cover(name: str, described: TensorStorageMetadata, chunks: Sequence[Chunk]) -> None:
    """What DCP itself checks with several ranks only, and not at all when it loads."""
    whole = tuple(described.size)
    fits = bool(chunks) and all(chunk.entry.whole == whole for chunk in chunks)
    if not fits or not tile(whole, [chunk.entry.box for chunk in chunks]):
        written = sum(chunk.entry.box.size for chunk in chunks)
        raise StateError(
            f"{name}: the planner had {written} elements written in {len(chunks)} parts, expected each of the "
            f"{math.prod(whole)} of {list(whole)} once; nothing was saved. All ranks must save the same tensors, in one save"
        )


def _paths(planner_data: object) -> dict[str, list[str | int]] | None:
    if planner_data is None:
        return None
    if not isinstance(planner_data, dict) or not all(_is_path(*item) for item in planner_data.items()):
        raise StateError(
            f"the planner's data is {short(planner_data)}, expected None or names with tuples of names and numbers; "
            "pickle would be needed for anything else"
        )
    return {name: list(path) for name, path in planner_data.items()}


def _is_path(name: object, path: object) -> bool:
    steps = path if isinstance(path, tuple | list) else [None]
    return isinstance(name, str) and all(type(step) is str or is_count(step) for step in steps)


def decode(text: bytes, images: Sequence[Opened]) -> Metadata:
    """The metadata of a checkpoint, whose `storage_data` are `Places`. Raises CorruptionError, StateError.

    Every name, rank and byte in the document is held against the images, and every tensor's parts must make it up.
    """
    if len(text) > MAX_DOCUMENT + PAGE:
        _refuse(f"{len(text)} bytes", f"at most {MAX_DOCUMENT}")
    try:
        found = json_object(text)
    except ValueError as error:
        raise CorruptionError(f"DCP's metadata is not readable ({error}); load another step") from error
    if found.keys() != _KEYS or found["format"] != FORMAT:
        _refuse(f"format {short(found.get('format'))} with {short(sorted(found))}", f"format {FORMAT}")
    tensors, objects, paths, version = (found[key] for key in ("tensors", "objects", "paths", "torch"))
    if not isinstance(tensors, dict) or not isinstance(objects, dict) or tensors.keys() & objects.keys():
        _refuse("tensors and objects that share names", "two objects")
    if version is not None and not isinstance(version, str):
        _refuse(f"torch {short(version)}", "a text")
    entries = [{entry.name: entry for entry in image.header.entries} for image in images]
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: Places = {}
    for name, parts in tensors.items():
        described[name] = _tensor(name, parts, entries, places)
    for name, span in objects.items():
        described[name] = BytesStorageMetadata()
        places[MetadataIndex(name)] = _span(name, span, entries)
    metadata = Metadata(described, planner_data=_tuples(paths), storage_data=places)
    if version is not None:
        metadata.version = version
    return metadata


def _tensor(name: str, parts: Any, entries: Sequence[dict[str, Entry]], places: Places) -> TensorStorageMetadata:
    chunks = [_chunk(name, part, entries) for part in (parts if isinstance(parts, list) else [None])]
    kinds = {(chunk.entry.whole, chunk.entry.dtype, chunk.entry.true_dtype) for chunk in chunks}
    if len(kinds) != 1 or not tile(chunks[0].entry.whole, [chunk.entry.box for chunk in chunks]):
        _refuse(f"{len(chunks)} parts of {short(name)}", "parts that make it up, each element once")
    first = chunks[0].entry
    for chunk in sorted(
        chunks, key=lambda chunk: chunk.entry.box.size
    ):  # where an empty part begins, another may begin
        places[MetadataIndex(name, chunk.entry.box.offsets)] = chunk
    sizes = [
        ChunkStorageMetadata(torch.Size(c.entry.box.offsets), torch.Size(c.entry.box.shape))
        for c in chunks
        if c.entry.box.size
    ]
    return TensorStorageMetadata(TensorProperties(dtype=dtype_of(first)), torch.Size(first.whole), sizes)


def _chunk(name: str, part: Any, entries: Sequence[dict[str, Entry]]) -> Chunk:
    if isinstance(part, list) and 1 <= len(part) <= 2 and _is_rank(part[0], entries):
        entry = entries[part[0]].get(part[-1] if len(part) == 2 and isinstance(part[1], str) else name)
        if entry is not None:
            return Chunk(part[0], entry)
    return _refuse(f"part {short(part)} of {short(name)}", "a rank, and an entry of its image")


def _span(name: str, span: Any, entries: Sequence[dict[str, Entry]]) -> Span:
    if isinstance(span, list) and len(span) == 3 and all(map(is_count, span)) and _is_rank(span[0], entries):
        held = entries[span[0]].get(objects_name(span[0]))
        if held is not None and held.dtype_name == "uint8" and span[1] <= span[2] <= held.nbytes:
            return Span(*span)
    return _refuse(f"object {short(name)} at {short(span)}", "a rank, and bytes of its objects")


def _is_rank(rank: object, entries: Sequence[object]) -> bool:
    return is_count(rank) and rank < len(entries)


def _tuples(paths: Any) -> dict[str, tuple[str | int, ...]] | None:
    if paths is None:
        return None
    if not isinstance(paths, dict) or not all(isinstance(p, list) and _is_path(n, p) for n, p in paths.items()):
        _refuse(f"paths {short(paths)}", "names with lists of names and numbers")
    return {name: tuple(path) for name, path in paths.items()}


def _refuse(found: str, expected: str) -> NoReturn:
    raise CorruptionError(f"DCP's metadata: found {found}; expected {expected}; load another step")
