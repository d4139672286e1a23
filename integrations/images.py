"""The images of one version, mapped for reading: headers are read and checked, no other page is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch

from ckptd.ckpt.boxes import Box, stretches
from ckptd.ckpt.client import Found, Stretch
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.image import PAGE, Entry, Header, data_start, parse
from ckptd.ckpt.model import PIECE, Version
from ckptd.integrations.tensors import Mapping


@dataclass(frozen=True, slots=True)
class Opened:
    """One rank's image."""

    header: Header
    mapping: Mapping
    page: bytes
    """The file's first page as it was: it names the version, and is the first that a later capture changes."""

    def tensor(self, entry: Entry) -> torch.Tensor:
        """The entry's elements, in place. Raises StateError for a dtype that this torch lacks."""
        return self.mapping.tensor(entry, self.header.spans[entry.name])

    def read(self, first: int, last: int) -> bytes:
        """Bytes `first` to `last` of the file. Raises CorruptionError as `check` does."""
        content = self.mapping.memory[first:last]
        self.check()
        return content

    def stretches(self, entry: Entry, part: Box, outer: Box) -> list[Stretch]:
        """Where in the file `part` of an entry lies, whose elements are those of `outer`, which holds `part`."""
        start, size = self.header.spans[entry.name][0], entry.itemsize
        found = stretches(part, outer, PIECE // size)
        return [Stretch(self.header.rank, start + first * size, start + last * size) for first, last in found]

    def check(self) -> None:
        """Raise CorruptionError when a later capture has begun to fill the file: what was read since then is of both."""
        if self.mapping.memory[:PAGE] != self.page:
            raise CorruptionError(
                f"{self.header.version}: rank {self.header.rank}'s image made way for a newer one while it was read; "
                "read the newest step, or do not save meanwhile"
            )


Bring = Callable[[Sequence[Stretch]], None]
"""Sees that these bytes stand in the images' files. Raises CkptdError."""


def all_here(stretches: Sequence[Stretch]) -> None:
    """For files that have all of their bytes."""


def bringing(found: Sequence[Found], ask: Bring) -> Bring:
    """Ask for what was opened: nothing of the images that are here."""
    away = {image.rank for image in found if image.source == "none"}

    def bring(stretches: Sequence[Stretch]) -> None:
        wanted = [stretch for stretch in stretches if stretch.rank in away]
        if wanted:
            ask(wanted)

    return bring


def fetch(images: Sequence[Opened], wanted: Iterable[Stretch], bring: Bring) -> None:
    """Have these bytes brought, with one question for all of them, and their pages mapped. Raises CkptdError."""
    found = joined(wanted)
    bring(found)
    for stretch in found:
        images[stretch.rank].mapping.foresee(stretch.first, stretch.last)


def joined(wanted: Iterable[Stretch]) -> list[Stretch]:
    """In order, those as one that overlap or have less than a page between them."""
    made: list[Stretch] = []
    for stretch in sorted(wanted, key=attrgetter("rank", "first")):
        last = made[-1] if made else None
        if last and last.rank == stretch.rank and stretch.first < last.last + PAGE:
            made[-1] = Stretch(last.rank, last.first, max(last.last, stretch.last))
        else:
            made.append(stretch)
    return made


def open_images(
    found: Sequence[Found], version: Version, job: str, world: int, bring: Bring = all_here
) -> list[Opened]:
    """Map every rank's image, in rank order; only headers are read, and brought before.

    Raises CorruptionError when one is not what it was announced as.
    """
    if [image.rank for image in found] != list(range(world)):
        raise CorruptionError(f"{version}: found images of ranks {[image.rank for image in found]}, expected {world}")
    mappings = [Mapping(image.path, image.size, write=False) for image in found]
    bring([Stretch(image.rank, 0, min(PAGE, image.size)) for image in found])
    long = [(rank, data_start(memoryview(mapping.memory))) for rank, mapping in enumerate(mappings)]
    bring([Stretch(rank, PAGE, last) for rank, last in long if last > PAGE])
    opened = []
    for image, mapping in zip(found, mappings, strict=True):
        header = parse(memoryview(mapping.memory))
        says = (header.version, header.job, header.rank, header.world)
        if says != (version, job, image.rank, world):
            raise CorruptionError(f"{image.path}: the image says {says}, expected {(version, job, image.rank, world)}")
        opened.append(Opened(header, mapping, mapping.memory[:PAGE]))
    return opened
