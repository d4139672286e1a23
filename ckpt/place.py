"""The port to where one job's steps are kept: what persisting and restoring need of a storage, whatever it is made of.

`ckptd.ckpt.directory` is a tree of files that all nodes see, `ckptd.ckpt.objects` a prefix of an object store. Names and
formats are in docs/formats.md; what each of them promises in docs/faults.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.model import Image, Version

Done = Callable[[int], None]
"""Told of so many bytes more that have been moved, from any thread; of less than none when some must be moved again."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What stands at a committed version, before anything of it is believed."""

    manifest: bytes
    sizes: Mapping[str, int]
    """The bytes of every file, or object, by name."""
    written_at: float | None
    """When the manifest was written, by the clock of the storage: seconds since 1970; None where it does not say."""


class Place(Protocol):
    """Steps are uncommitted until `commit`, and only then seen. Methods may be called from several threads.

    Every method raises StorageError when the storage fails, and may be called again afterwards.
    """

    @property
    def where(self) -> str:
        """The place in words of a user: a path or a URL."""

    def put(self, version: Version, image: Image, data: memoryview, sums: Sequence[int], done: Done) -> None:
        """Keep a rank's image of an uncommitted version. It is durable when this returns, and never seen in part.

        `data` does not change meanwhile; `sums` are those of its pieces. Twice is harmless, also at the same time.
        """

    def sizes(self, version: Version, ranks: Iterable[int]) -> Mapping[int, int]:
        """The bytes of those of these ranks' images that an uncommitted version has, whole."""

    def is_committed(self, version: Version) -> bool:
        """Whether the version is among `manifests`."""

    def commit(self, version: Version, content: bytes) -> None:
        """Make a version seen, with its manifest; durable when this returns. Its images are all there. Twice is harmless."""

    def committed(self) -> Mapping[Version, Committed | StorageError]:
        """All committed versions, or why one can't be read. StorageError: none can be looked for."""

    def read_into(self, version: Version, image: Image, into: memoryview, done: Done) -> list[int]:
        """Fill `into` with a committed image that must be exactly as long; the sums of its pieces, for the caller to check.

        Parts are read several at a time, and each is summed when it is here, while others are on their way. A place
        that can tell where bytes were damaged on their way reads those again, and raises CorruptionError in the end.
        """

    def sums(self, version: Version, image: Image) -> list[int] | None:
        """The sums of a committed image's pieces, where they stand beside it and its digest is of them; else None."""

    def read_some(
        self, version: Version, image: Image, wanted: Sequence[int], sums: Sequence[int], into: memoryview
    ) -> list[int]:
        """Fill these pieces (ascending) of `into`, which has room for the whole image, as `read_into` does.

        `sums` are what the image's pieces should have; returned is what those have that were read.
        """

    def chunks(self, version: Version, image: Image) -> Iterator[memoryview]:
        """The same in order, some whole pieces at a time; each is valid until the next."""

    def remove(self, version: Version) -> None:
        """Take a committed version away, first out of sight. One that is not there is no error."""

    def abandon(self, version: Version) -> None:
        """Remove what was written of a version that nobody is to commit any more; a committed one stays as it is."""

    def sweep(self, before: Version) -> None:
        """Remove what older versions left unfinished, as far as that works: their nodes were lost before the last image."""

    def close(self) -> None:
        """End what is under way soon, with a StorageError."""
