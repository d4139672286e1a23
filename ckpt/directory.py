"""A place that is a directory tree which all nodes see: images written side by side, then one rename that commits them.

Until then the directory has a name that no reader accepts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ckptd.ckpt import disk, manifest
from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import digest_of, pack_sums, parts, sums_of, unpack_sums
from ckptd.ckpt.place import Committed, Done

PART = disk.CHUNK
READERS = 4
"""How many parts of an image are read, and summed, at a time: file servers give more to several."""


class Directory:
    """One job's directory below a storage root: a `Place`."""

    def __init__(self, root: Path, job: str) -> None:
        self._directory = root / job

    @property
    def where(self) -> str:
        return str(self._directory)

    def put(self, version: Version, image: Image, data: memoryview, sums: Sequence[int], done: Done) -> None:
        directory = self.unpublished(version)
        disk.make_dir(directory)
        disk.write_durably(directory / manifest.file_name(image.rank), data, done)
        disk.write_durably(directory / manifest.sums_name(image.rank), pack_sums(sums))
        disk.sync_dir(directory)

    @contextmanager
    def making(self, version: Version, rank: int, size: int) -> Iterator[Path]:
        """A file of `size` bytes to be filled in place: one rank's image of an uncommitted version, once the block has
        ended well. Raises StorageError."""
        directory = self.unpublished(version)
        disk.make_dir(directory)
        with disk.filled_in_place(directory / manifest.file_name(rank), size) as path:
            yield path
        disk.sync_dir(directory)

    def made(self, version: Version, rank: int, size: int) -> Image:
        """Such an image as it stands on the disk, with its digest. Raises StorageError."""
        directory = self.unpublished(version)
        chunks = disk.chunks(directory / manifest.file_name(rank), size)
        sums = [sum_ for chunk in chunks for sum_ in sums_of(chunk)]
        disk.write_durably(directory / manifest.sums_name(rank), pack_sums(sums))
        return Image(rank, size, digest_of(sums, size))

    def abandon(self, version: Version) -> None:
        shutil.rmtree(self.unpublished(version), ignore_errors=True)

    def sizes(self, version: Version, ranks: Iterable[int]) -> Mapping[int, int]:
        paths = {rank: self.unpublished(version) / manifest.file_name(rank) for rank in ranks}
        return {rank: path.stat().st_size for rank, path in paths.items() if path.exists()}

    def is_committed(self, version: Version) -> bool:
        return self._published(version).exists()

    def commit(self, version: Version, content: bytes) -> None:
        final = self._published(version)
        if not final.exists():
            directory = self.unpublished(version)
            disk.write_durably(directory / manifest.MANIFEST, content)
            for unfinished in directory.glob(f"*{disk.UNFINISHED}"):  # of a writer that died, or one not needed
                unfinished.unlink(missing_ok=True)
            disk.sync_dir(directory)
            try:
                directory.rename(final)
            except OSError as error:
                raise StorageError(f"cannot publish {final}: {error.strerror}") from error
        # Also of what stood there: whoever renamed it, or made the job's directory, may have died before the sync.
        disk.sync_dir(self._directory)
        disk.sync_dir(self._directory.parent)

    def committed(self) -> Mapping[Version, Committed | StorageError]:
        try:
            versions = [version for path in self._directory.iterdir() if (version := manifest.version_of(path.name))]
        except FileNotFoundError:
            return {}  # nothing was ever persisted
        except OSError as error:
            raise StorageError(f"cannot read {self._directory}: {error.strerror}") from error
        return {version: self._committed(version) for version in versions}

    def _committed(self, version: Version) -> Committed | StorageError:
        directory = self._published(version)
        try:
            content = disk.read_small(directory / manifest.MANIFEST, manifest.MANIFEST_MAX)
            with os.scandir(directory) as entries:
                found = {entry.name: entry.stat() for entry in entries if entry.is_file()}
        except StorageError as error:
            return error
        except OSError as error:
            return StorageError(f"cannot read {directory}: {error.strerror}")
        described = found.get(manifest.MANIFEST)
        sizes = {name: status.st_size for name, status in found.items()}
        return Committed(content, sizes, described.st_mtime if described else None)

    def read_into(self, version: Version, image: Image, into: memoryview, done: Done) -> list[int]:
        return self._read(version, image, range(image.pieces), into, done)

    def sums(self, version: Version, image: Image) -> list[int] | None:
        path = self._published(version) / manifest.sums_name(image.rank)
        return unpack_sums(disk.read_small(path, 8 * image.pieces), image) if path.exists() else None

    def read_some(
        self, version: Version, image: Image, wanted: Sequence[int], sums: Sequence[int], into: memoryview
    ) -> list[int]:
        return self._read(version, image, wanted, into, lambda _: None)

    def _read(self, version: Version, image: Image, wanted: Sequence[int], into: memoryview, done: Done) -> list[int]:
        path = self._published(version) / manifest.file_name(image.rank)
        with disk.reading(path, len(into)) as fill, ThreadPoolExecutor(READERS, "files to read") as pool:

            def take(run: tuple[int, int]) -> list[int]:
                start = run[0] * PIECE
                part = into[start : start + run[1] * PIECE]
                fill(part, start)
                done(len(part))
                return sums_of(part)

            try:
                return [sum_ for sums in pool.map(take, parts(wanted, PART // PIECE)) for sum_ in sums]
            finally:
                pool.shutdown(cancel_futures=True)  # of one that fails no more is read

    def chunks(self, version: Version, image: Image) -> Iterator[memoryview]:
        return disk.chunks(self._published(version) / manifest.file_name(image.rank), image.size)

    def remove(self, version: Version) -> None:
        path, removing = self._published(version), self._removing(version)
        try:
            path.rename(removing)
        except FileNotFoundError:
            return  # somebody else did
        except OSError as error:
            raise StorageError(f"cannot remove {path}: {error.strerror}") from error
        disk.sync_dir(self._directory)
        shutil.rmtree(removing, ignore_errors=True)

    def sweep(self, before: Version) -> None:
        for path in [*self._directory.glob(".writing-step-*"), *self._directory.glob(".removing-step-*")]:
            found = manifest.version_of(path.name.removeprefix(".writing-").removeprefix(".removing-"))
            if found is not None and found < before:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Nothing to do: a call to the kernel can't be taken back."""

    def _published(self, version: Version) -> Path:
        return self._directory / manifest.dir_name(version)

    def unpublished(self, version: Version) -> Path:
        """The directory of a version that is being written."""
        return self._directory / f".writing-{manifest.dir_name(version)}"

    def _removing(self, version: Version) -> Path:
        return self._directory / f".removing-{manifest.dir_name(version)}"
