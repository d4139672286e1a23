"""The images of one version, mapped for reading: headers are read and checked, no other page is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ckptd.ckpt.client import Found, Stretch
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.image import PAGE, Entry, Header, data_start, parse
from ckptd.ckpt.model import Version
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
