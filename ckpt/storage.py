"""The storage tier as a directory tree: images of a version written side by side, then one manifest that commits them.

Until the manifest stands the directory has a name that no reader accepts; publishing is one rename.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptd.ckpt import disk, manifest
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.manifest import Manifest
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.recovery import Stored


@dataclass(frozen=True, slots=True)
class Step:
    """A persisted step that may be offered."""

    manifest: Manifest
    path: Path

    @property
    def stored(self) -> Stored:
        return Stored(self.manifest.version, self.manifest.world)


class Storage:
    """One job's part of a storage root that all nodes see."""

    def __init__(self, root: Path, job: str) -> None:
        self.directory = root / job
        self._job = job

    def write(self, version: Version, image: Image, data: memoryview) -> None:
        """Write one rank's image for a version that is not published yet. Raises StorageError, CorruptionError.

        The bytes are checked against the image's digest first: what fails is never written.
        """
        if digest_of(sums_of(data), len(data)) != image.digest:
            raise CorruptionError(f"rank {image.rank} of {version}: the slot's bytes no longer match their checksum")
        directory = self._unpublished(version)
        disk.make_dir(directory)
        disk.write_durably(directory / manifest.file_name(image.rank), data)
        disk.sync_dir(directory)

    @contextmanager
    def making(self, version: Version, rank: int, size: int) -> Iterator[Path]:
        """A file of `size` bytes to be filled in place: one rank's image of a version that is not published yet, once the
        block has ended well. Raises StorageError."""
        directory = self._unpublished(version)
        disk.make_dir(directory)
        with disk.filled_in_place(directory / manifest.file_name(rank), size) as path:
            yield path
        disk.sync_dir(directory)

    def made(self, version: Version, rank: int, size: int) -> Image:
        """Such an image as it stands on the disk, with its digest. Raises StorageError."""
        path = self._unpublished(version) / manifest.file_name(rank)
        return Image(
            rank, size, digest_of([sum_ for chunk in disk.chunks(path, size) for sum_ in sums_of(chunk)], size)
        )

    def abandon(self, version: Version) -> None:
        """Remove what was written of a version that is not to be published."""
        shutil.rmtree(self._unpublished(version), ignore_errors=True)

    def publish(self, version: Version, images: Sequence[Image]) -> None:
        """Commit a version whose images are all written. Raises StorageError. Doing it twice is harmless."""
        final = self.directory / manifest.dir_name(version)
        if not final.exists():
            self._write_manifest(version, images)
            try:
                self._unpublished(version).rename(final)
            except OSError as error:
                raise StorageError(f"cannot publish {final}: {error.strerror}") from error
        # Also of what stood there: whoever renamed it, or made the job's directory, may have died before the sync.
        disk.sync_dir(self.directory)
        disk.sync_dir(self.directory.parent)
        self._sweep(version)

    def _write_manifest(self, version: Version, images: Sequence[Image]) -> None:
        directory = self._unpublished(version)
        for image in images:
            path = directory / manifest.file_name(image.rank)
            found = path.stat().st_size if path.exists() else None
            if found != image.size:
                raise StorageError(f"{path} has {found} bytes, expected {image.size}; the step is not published")
        content = manifest.encode(Manifest(self._job, version, tuple(sorted(images, key=lambda image: image.rank))))
        disk.write_durably(directory / manifest.MANIFEST, content)
        for unfinished in directory.glob(f"*{disk.UNFINISHED}"):  # of a writer that died, or one that we did not need
            unfinished.unlink(missing_ok=True)
        disk.sync_dir(directory)

    def remove(self, version: Version) -> None:
        """Take a published version away: first its name, in one step, then its files. Raises StorageError."""
        path, removing = self.directory / manifest.dir_name(version), self._removing(version)
        try:
            path.rename(removing)
        except FileNotFoundError:
            return  # somebody else did
        except OSError as error:
            raise StorageError(f"cannot remove {path}: {error.strerror}") from error
        disk.sync_dir(self.directory)
        shutil.rmtree(removing, ignore_errors=True)

    def steps(self) -> tuple[list[Step], list[str]]:
        """The published steps, newest first, and what was found wrong with directories that look like ones."""
        steps, problems = [], []
        try:
            found = sorted(path for path in self.directory.iterdir() if manifest.version_of(path.name) is not None)
        except FileNotFoundError:
            return [], []  # nothing was ever persisted
        except OSError as error:
            return [], [f"cannot read {self.directory}: {error.strerror}"]
        for path in found:
            try:
                steps.append(self._step(path))
            except (StorageError, CorruptionError) as error:
                problems.append(str(error))
        return sorted(steps, key=lambda step: step.manifest.version, reverse=True), problems

    def read(self, step: Step, rank: int, into: memoryview, progress: Callable[[int], None] | None = None) -> None:
        """Read one rank's image, verified. Raises StorageError, CorruptionError."""
        image = step.manifest.images[rank]
        path = step.path / manifest.file_name(rank)
        disk.read_into(path, into, progress)
        if digest_of(sums_of(into), len(into)) != image.digest:
            raise CorruptionError(f"{path} does not match its manifest; this step can't be restored from storage")

    def check(self, step: Step, rank: int) -> None:
        """Read one rank's image and forget it, a few pieces at a time. Raises StorageError, CorruptionError."""
        image, path = step.manifest.images[rank], step.path / manifest.file_name(rank)
        sums = [sum_ for chunk in disk.chunks(path, image.size) for sum_ in sums_of(chunk)]
        if digest_of(sums, image.size) != image.digest:
            raise CorruptionError(f"{path} does not match its manifest; this step can't be restored from storage")

    def _step(self, path: Path) -> Step:
        found = manifest.decode(disk.read_small(path / manifest.MANIFEST, manifest.MANIFEST_MAX), path.name)
        if found.job != self._job:
            raise CorruptionError(f"{path.name} belongs to job {found.job!r}")
        return Step(found, path)

    def _unpublished(self, version: Version) -> Path:
        return self.directory / f".writing-{manifest.dir_name(version)}"

    def _removing(self, version: Version) -> Path:
        return self.directory / f".removing-{manifest.dir_name(version)}"

    def _sweep(self, version: Version) -> None:
        """Remove what earlier versions left unfinished: their nodes were lost before the last image was written."""
        for path in [*self.directory.glob(".writing-step-*"), *self.directory.glob(".removing-step-*")]:
            found = manifest.version_of(path.name.removeprefix(".writing-").removeprefix(".removing-"))
            if found is not None and found < version:
                shutil.rmtree(path, ignore_errors=True)
