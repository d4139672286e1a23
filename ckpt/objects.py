"""A place that is a prefix of an object store. A step is there once its manifest is: it is written last, in one call.

Images go up and come down in parts, several at a time. Beside each stands an object with the sums of its pieces, written
when the image is whole: it says that the image need not be sent again, and shows a reader what was damaged on its way.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from ckptd.ckpt import manifest
from ckptd.ckpt.bucket import STOPPING, Bucket
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.multipart import Multipart
from ckptd.ckpt.pieces import pack_sums, parts, sums_of, unpack_sums
from ckptd.ckpt.place import Committed, Done
from ckptd.ckpt.uploads import Uploads, is_offered

log = logging.getLogger(__name__)

PART = 8 * 1024 * 1024
"""A whole number of pieces; small enough that eight of them are no memory to speak of, large enough for the store."""
PARALLEL = 8
"""How the names of the objects end that vouch for an image."""
_READS = 3
"""How often a range is read before its pieces count as damaged where they are kept."""
OURS = re.compile(r"rank-\d{5,}\.(safetensors|sums)|manifest\.json")
"""The names of what makes up a step; whatever else stands beside it is somebody else's."""
_Range = tuple[bytes, list[int]]
"""The bytes of a range, and the sums of its pieces."""
T = TypeVar("T")


class Objects:
    """One job's prefix below a URL: a `Place`. Takes memory for `PARALLEL` parts, in each direction."""

    def __init__(self, bucket: Bucket, job: str, part: int = PART) -> None:
        """`part`: bytes, a multiple of a piece, at least S3's least of 5 MiB."""
        assert part % PIECE == 0
        self._bucket, self._job, self._part = bucket, job, part
        self._readers = ThreadPoolExecutor(PARALLEL, "objects to read")
        self._senders = ThreadPoolExecutor(PARALLEL, "objects to send")  # a restart waits for no upload that is stuck
        self._uploads = Uploads(bucket) if is_offered(bucket) else None
        ahead = partial(self._in_order, self._senders)
        self._multipart = Multipart(self._uploads, ahead) if self._uploads else None

    @property
    def where(self) -> str:
        return f"{self._bucket.url}/{self._job}"

    # ---- writing --------------------------------------------------------------------------------------

    def put(self, version: Version, image: Image, data: memoryview, sums: Sequence[int], done: Done) -> None:
        key = self._key(version, manifest.file_name(image.rank))
        mark = self._key(version, manifest.sums_name(image.rank))
        if self._bucket.size(key) == image.size and self.sums(version, image) is not None:
            done(len(data))
            return
        self._bucket.delete([mark])  # it would vouch for what is overwritten now
        if len(data) <= self._part:
            self._bucket.put(key, bytes(data))
            done(len(data))
        elif self._multipart:
            self._multipart.put(key, data, self._part, done)
        else:
            self._bucket.put_large(key, data, self._part, done)
        self._bucket.put(mark, pack_sums(sums))

    def sizes(self, version: Version, ranks: Iterable[int]) -> Mapping[int, int]:
        found = self._bucket.objects(self._key(version))
        names = {rank: manifest.file_name(rank) for rank in ranks if manifest.sums_name(rank) in found}
        return {rank: found[name].size for rank, name in names.items() if name in found}

    def is_committed(self, version: Version) -> bool:
        return self._bucket.size(self._key(version, manifest.MANIFEST)) is not None

    def commit(self, version: Version, content: bytes) -> None:
        if not self.is_committed(version):
            self._bucket.put(self._key(version, manifest.MANIFEST), content)

    # ---- reading --------------------------------------------------------------------------------------

    def committed(self) -> Mapping[Version, Committed | StorageError]:
        versions = self._versions()
        found = self._in_order(self._readers, (partial(self._committed, version) for version in versions))
        return {version: one for version, one in zip(versions, found, strict=True) if one is not None}

    def _committed(self, version: Version) -> Committed | StorageError | None:
        try:
            found = self._bucket.objects(self._key(version))
            described = found.get(manifest.MANIFEST)
            if described is None:
                return None
            content = self._bucket.whole(self._key(version, manifest.MANIFEST), described.size, manifest.MANIFEST_MAX)
        except StorageError as error:
            return error
        return Committed(content, {name: one.size for name, one in found.items()}, described.written_at)

    def read_into(self, version: Version, image: Image, into: memoryview, done: Done) -> list[int]:
        def take(read: Callable[[], _Range], start: int) -> list[int]:
            data, sums = read()
            into[start : start + len(data)] = data
            done(len(data))
            return sums

        tasks = (partial(take, read, start) for start, read in self._ranges(version, image))
        return [sum_ for sums in self._in_order(self._readers, tasks) for sum_ in sums]

    def sums(self, version: Version, image: Image) -> list[int] | None:
        data = self._bucket.small(self._key(version, manifest.sums_name(image.rank)), 8 * image.pieces)
        return None if data is None else unpack_sums(data, image)

    def read_some(
        self, version: Version, image: Image, wanted: Sequence[int], sums: Sequence[int], into: memoryview
    ) -> list[int]:
        key = self._key(version, manifest.file_name(image.rank))

        def take(first: int, count: int) -> list[int]:
            start = first * PIECE
            size = min(count * PIECE, image.size - start)
            data, found = self._range(key, start, size, list(sums[first : first + count]))
            into[start : start + size] = data
            return found

        tasks = (partial(take, *run) for run in parts(wanted, self._part // PIECE))
        return [sum_ for found in self._in_order(self._readers, tasks) for sum_ in found]

    def chunks(self, version: Version, image: Image) -> Iterator[memoryview]:
        ranges = self._in_order(self._readers, (read for _, read in self._ranges(version, image)))
        return (memoryview(data) for data, _ in ranges)

    def _ranges(self, version: Version, image: Image) -> Iterator[tuple[int, Callable[[], _Range]]]:
        """What makes up an image of the expected size: where each range begins, and how to read it."""
        key = self._key(version, manifest.file_name(image.rank))
        size = self._bucket.size(key)
        if size != image.size:
            raise StorageError(f"{key} has {size} bytes, expected {image.size}; it is damaged or not ours")
        sums = self.sums(version, image)
        for start in range(0, image.size, self._part):
            count = min(self._part, image.size - start)
            expected = sums[start // PIECE :][: -(-count // PIECE)] if sums else None
            yield start, partial(self._range, key, start, count, expected)

    def _range(self, key: str, start: int, count: int, expected: list[int] | None) -> _Range:
        for _ in range(_READS):
            data = self._bucket.get(key, start, count)
            found = sums_of(data)
            if expected is None or found == expected:
                return data, found
        assert expected is not None
        bad = [start // PIECE + piece for piece, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
        raise CorruptionError(
            f"{key}: {len(bad)} pieces fail their checksum, the first is {bad[0]}; this step can't be restored from storage"
        )

    def remove(self, version: Version) -> None:
        self._bucket.delete([self._key(version, manifest.MANIFEST)])
        self._clear(version)

    def abandon(self, version: Version) -> None:
        if self.is_committed(version):
            return
        self._clear(version)
        if self._uploads:
            for upload in self._uploads.below(self._key(version)):
                self._uploads.abort(upload)

    def sweep(self, before: Version) -> None:
        """Uploads of `before` itself go as well: all its images are there."""
        try:
            self._sweep(before)
        except StorageError as error:
            log.warning("what older steps left unfinished is not removed: %s", error)

    def _sweep(self, before: Version) -> None:
        older = [version for version in self._versions() if version < before]
        committed = self._in_order(self._readers, (partial(self.is_committed, version) for version in older))
        for version, stands in zip(older, committed, strict=True):
            if not stands:
                self._clear(version)
        if self._uploads:
            for upload in self._uploads.below(self._bucket.key(self._job)):
                if _is_done(upload.name, before):
                    self._uploads.abort(upload)

    def _clear(self, version: Version) -> None:
        ours = [name for name in self._bucket.objects(self._key(version)) if OURS.fullmatch(name)]
        self._bucket.delete([self._key(version, name) for name in ours])

    def close(self) -> None:
        self._bucket.close()
        for pool in (self._readers, self._senders):
            pool.shutdown(wait=False, cancel_futures=True)

    # ---- the parts --------------------------------------------------------------------------------------

    def _versions(self) -> list[Version]:
        """Those that have anything at all here. Whatever else stands beside them is not ours."""
        found = (manifest.version_of(name) for name in self._bucket.below(self._bucket.key(self._job)))
        return sorted(version for version in found if version is not None)

    def _key(self, version: Version, *name: str) -> str:
        return self._bucket.key(self._job, manifest.dir_name(version), *name)

    def _in_order(self, pool: Executor, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Do a few at a time, in other threads, and give what comes of them in their order. The first error ends it.

        When it ends nothing of it is running any more: whose bytes were being sent may change them.
        """
        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                if len(waiting) == PARALLEL:
                    yield waiting.popleft().result()
                waiting.append(self._begun(pool, task))
            while waiting:
                yield waiting.popleft().result()
        except CancelledError as error:
            raise StorageError(f"cannot go on with {self.where}: {STOPPING}") from error
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def _begun(self, pool: Executor, task: Callable[[], T]) -> Future[T]:
        try:
            return pool.submit(task)
        except RuntimeError as error:  # it is shut down
            raise StorageError(f"cannot go on with {self.where}: {STOPPING}") from error


def _is_done(name: str, version: Version) -> bool:
    """Whether an upload of this name below the job's prefix is of a version up to this one."""
    found = manifest.version_of(name.partition("/")[0])
    return found is not None and found <= version
