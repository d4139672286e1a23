"""The storage tier: what is written is checked before, what is read is checked after, and a manifest commits a step.

Where the bytes are is a `Place`; `place_at` picks one by the storage root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptd.ckpt import manifest
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.manifest import Manifest
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.place import Committed, Done, Place
from ckptd.ckpt.places import place_at
from ckptd.ckpt.recovery import Stored
from ckptd.ckpt.retention import Kept


@dataclass(frozen=True, slots=True)
class Step:
    """A persisted step that may be offered."""

    manifest: Manifest
    where: str
    """Its directory, or the URL of its prefix."""
    written_at: float | None
    """When it was published, by the storage's clock: seconds since 1970; None where it does not say."""

    @property
    def stored(self) -> Stored:
        return Stored(self.manifest.version, self.manifest.world)

    def kept(self, now: float) -> Kept:
        """What a rule of retention asks. `now`: seconds since 1970."""
        return Kept(self.manifest.version, None if self.written_at is None else now - self.written_at, complete=True)

    @property
    def path(self) -> Path:
        """The directory of a step in a directory tree."""
        return Path(self.where)


class Storage:
    """One job's part of a storage root that all nodes see."""

    def __init__(self, root: Path | str | Place, job: str) -> None:
        """`root`: a directory, an object store's URL (UsageError if its file system is not here), or the place itself."""
        self._place = place_at(root, job) if isinstance(root, Path | str) else root
        self._job = job

    @property
    def where(self) -> str:
        """The job's directory, or the URL of its prefix."""
        return self._place.where

    def write(self, version: Version, image: Image, data: memoryview, done: Done = lambda _: None) -> None:
        """Write one rank's image for a version that is not published yet. Raises StorageError, CorruptionError.

        The bytes are checked against the image's digest first: what fails is never written. `done` is told how many bytes
        more are written, from any thread.
        """
        sums = sums_of(data)
        if digest_of(sums, len(data)) != image.digest:
            raise CorruptionError(f"rank {image.rank} of {version}: the slot's bytes no longer match their checksum")
        self._place.put(version, image, data, sums, done)

    def publish(self, version: Version, images: Sequence[Image]) -> None:
        """Commit a version whose images are all written. Raises StorageError. Doing it twice is harmless."""
        if not self._place.is_committed(version):
            sizes = self._place.sizes(version, [image.rank for image in images])
            for image in images:
                if (found := sizes.get(image.rank)) != image.size:
                    path = self._file(version, image.rank)
                    raise StorageError(f"{path} has {found} bytes, expected {image.size}; the step is not published")
        in_order = tuple(sorted(images, key=lambda image: image.rank))
        self._place.commit(version, manifest.encode(Manifest(self._job, version, in_order)))
        self._place.sweep(version)

    def remove(self, version: Version) -> None:
        """Take a published version away: first out of sight, in one step, then its files. Raises StorageError."""
        self._place.remove(version)

    def abandon(self, version: Version) -> None:
        """Remove what was written of a version that nobody is to publish any more; a published one stays."""
        self._place.abandon(version)

    def steps(self) -> tuple[list[Step], list[str]]:
        """The published steps, newest first, and what was found wrong with the others, or with the storage itself.

        One whose images are not all there, with their sizes, is wrong: it was removed in part, or cut.
        """
        steps, problems = [], []
        try:
            found = self._place.committed()
        except StorageError as error:
            return [], [str(error)]
        for version in sorted(found, reverse=True):
            try:
                steps.append(self._step(version, found[version]))
            except (StorageError, CorruptionError) as error:
                problems.append(str(error))
        return steps, problems

    def read(self, step: Step, rank: int, into: memoryview, done: Done = lambda _: None) -> None:
        """Read one rank's image, verified. `done` as in `write`. Raises StorageError, CorruptionError."""
        image = step.manifest.images[rank]
        self._hold(step, image, self._place.read_into(step.manifest.version, image, into, done))

    def read_some(self, step: Step, rank: int, wanted: Sequence[int], into: memoryview) -> None:
        """Read some pieces (ascending) of one rank's image, verified; `into` has room for all of it.

        Raises StorageError, also where no sums of its pieces stand beside the image: then only all of it can be verified.
        Raises CorruptionError.
        """
        image, version = step.manifest.images[rank], step.manifest.version
        sums = self._place.sums(version, image)
        if sums is None:
            raise StorageError(f"{self._file(version, rank)} has no sums of its pieces beside it; read all of it")
        found = self._place.read_some(version, image, wanted, sums, into)
        if found != [sums[piece] for piece in wanted]:
            raise CorruptionError(
                f"{self._file(version, rank)} does not match its sums; this step can't be restored from storage"
            )

    def check(self, step: Step, rank: int) -> None:
        """Read one rank's image and forget it, a few pieces at a time. Raises StorageError, CorruptionError."""
        image = step.manifest.images[rank]
        chunks = self._place.chunks(step.manifest.version, image)
        self._hold(step, image, [sum_ for chunk in chunks for sum_ in sums_of(chunk)])

    def close(self) -> None:
        """End what other threads do here soon, with a StorageError where the place can."""
        self._place.close()

    def _hold(self, step: Step, image: Image, sums: list[int]) -> None:
        if digest_of(sums, image.size) != image.digest:
            path = self._file(step.manifest.version, image.rank)
            raise CorruptionError(f"{path} does not match its manifest; this step can't be restored from storage")

    def _step(self, version: Version, found: Committed | StorageError) -> Step:
        if isinstance(found, StorageError):
            raise found
        name = manifest.dir_name(version)
        described = manifest.decode(found.manifest, name)
        if described.job != self._job:
            raise CorruptionError(f"{name} belongs to job {described.job!r}")
        where = f"{self._place.where}/{name}"
        if problem := manifest.missing(described, found.sizes):
            raise StorageError(f"{where}/{problem}; it was removed in part, or damaged, and is not offered")
        return Step(described, where, found.written_at)

    def _file(self, version: Version, rank: int) -> str:
        return f"{self._place.where}/{manifest.dir_name(version)}/{manifest.file_name(rank)}"
