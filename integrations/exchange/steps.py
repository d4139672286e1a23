"""The images of a step as content: parts that were split over ranks belong together again, and stay where they are mapped.

What belongs to one rank of a Checkpointer's step keeps its prefix `rank-00003.`; each rank's state that is no tensor stays
a uint8 tensor of JSON named `ckptd.state.rank-00003`. Of a step that DCP saved, everything has the name that DCP knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch.distributed.checkpoint.metadata import MetadataIndex

from ckptd.ckpt.errors import CorruptionError, UsageError
from ckptd.ckpt.image import PAGE, Entry, parse
from ckptd.integrations.dcp.metadata import DOCUMENT, Chunk, Place, Span, decode, objects_name
from ckptd.integrations.exchange.content import Content, Part, Whole
from ckptd.integrations.files.images import files_of
from ckptd.integrations.images import Opened
from ckptd.integrations.sources import document_name
from ckptd.integrations.tensors import Mapping, dtype_of

_DOCUMENT = re.compile(r"ckptd\.state\.rank-(\d{5,7})")
_OWN = re.compile(r"rank-(\d{5,7})\..+")


def content_of(paths: Sequence[Path]) -> Content:
    """The content of a step from the images of all its ranks.

    Raises CorruptionError when the images are of different steps or leave elements of a tensor unwritten, UsageError for a
    step of files.
    """
    images = sorted(map(_opened, paths), key=lambda image: image.header.rank)
    kinds = {(image.header.job, image.header.version, image.header.world) for image in images}
    if len(kinds) != 1 or [image.header.rank for image in images] != list(range(images[0].header.world)):
        raise CorruptionError(
            f"{len(images)} images of {len(kinds)} different steps, expected one of every rank of one step"
        )
    step = images[0].header.version.step
    if files_of(images) is not None:
        raise UsageError(
            f"step {step} is files that were written to ckptd://, no tensors; copy them as they are: "
            f"fsspec.filesystem('ckptd').get('{images[0].header.job}/step-{step}', DIRECTORY, recursive=True)"
        )
    for image in images:
        if DOCUMENT in image.header.spans:
            return _saved_by_dcp(images, image, step)
    entries: dict[str, list[tuple[Opened, Entry]]] = {}
    for image in images:
        for entry in image.header.entries:
            entries.setdefault(entry.name, []).append((image, entry))
    return Content(tuple(_whole(name, parts) for name, parts in sorted(entries.items())), step=step)


def ranks_of(names: Sequence[str]) -> int:
    """How many ranks' documents are among these names; 0 where no Checkpointer wrote them. Raises CorruptionError.

    What is only of a rank must be of one of those that have a document.
    """
    found = sorted(int(match[1]) for match in map(_DOCUMENT.fullmatch, names) if match)
    if found != list(range(len(found))) or any(document_name(rank) not in names for rank in found):
        raise CorruptionError(
            f"found the state of ranks {found[:10]}, expected that of all ranks from 0 on; export again"
        )
    strange = [name for name in names if found and (owner := owner_of(name)) >= len(found) and owner]
    if strange:
        raise CorruptionError(
            f"{strange[0]}: of a rank that is not among the {len(found)} that have a state; export again"
        )
    return len(found)


def owner_of(name: str) -> int:
    """The rank whose image an entry belongs to: its own if it names one, else the first."""
    match = _DOCUMENT.fullmatch(name) or _OWN.fullmatch(name)
    return int(match[1]) if match else 0


def _opened(path: Path) -> Opened:
    mapping = Mapping(path, path.stat().st_size, write=False)
    return Opened(parse(memoryview(mapping.memory)), mapping, mapping.memory[:PAGE])


def _whole(name: str, parts: Sequence[tuple[Opened, Entry]]) -> Whole:
    first = parts[0][1]
    if len({(entry.whole, entry.dtype, entry.true_dtype) for _, entry in parts}) != 1:
        raise CorruptionError(f"{name}: the ranks disagree about its shape or dtype; choose another step")
    made = tuple(Part(entry.box, partial(image.tensor, entry)) for image, entry in parts)
    return Whole.of(name, dtype_of(first), first.whole, made)


def _saved_by_dcp(images: Sequence[Opened], coordinator: Opened, step: int) -> Content:
    metadata = decode(coordinator.read(*coordinator.header.spans[DOCUMENT]), images)
    places: dict[MetadataIndex, Place] = metadata.storage_data
    chunks: dict[str, list[tuple[Opened, Entry]]] = {}
    objects = {}
    for index, place in places.items():
        if isinstance(place, Chunk):
            chunks.setdefault(index.fqn, []).append((images[place.rank], place.entry))
        else:
            objects[index.fqn] = _bytes_of(images[place.rank], place)
    tensors = tuple(_whole(name, parts) for name, parts in sorted(chunks.items()))
    return Content(tensors, dict(sorted(objects.items())), metadata.planner_data or {}, step)


def _bytes_of(image: Opened, span: Span) -> bytes:
    start = image.header.spans[objects_name(span.rank)][0]
    return image.read(start + span.first, start + span.last)
