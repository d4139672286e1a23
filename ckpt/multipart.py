"""S3's multipart uploads: parts are sent several at a time, and those that a writer before had sent are not sent again.

An upload that was cut off stands in the store until it is completed or aborted; it is found by its key. Its parts count as
there only if their MD5, which S3 calls ETag, is that of the bytes that are to be sent. Where a store says something
else there (server-side encryption with keys of one's own), the parts are sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

from ckptd.ckpt.bucket import Bucket, Missing
from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.place import Done

log = logging.getLogger(__name__)

PARTS_MAX = 10_000
_BEGINNINGS = 3
"""How often an upload is begun: another writer of the same image may complete or abort it meanwhile."""


class Ahead(Protocol):
    """Does some tasks at a time and gives what comes of them in order."""

    def __call__(self, tasks: Iterable[Callable[[], str]], /) -> Iterator[str]: ...


def is_offered(bucket: Bucket) -> bool:
    """Whether the file system gives access to S3's own calls."""
    return hasattr(bucket.fs, "_call_s3")


class Multipart:
    """Uploads to a bucket of S3's kind."""

    def __init__(self, bucket: Bucket, ahead: Ahead) -> None:
        self._bucket, self._ahead = bucket, ahead

    def put(self, key: str, data: memoryview, part: int, done: Done) -> None:
        """Write an object, seen when it is whole, in parts of `part` bytes or more. Raises StorageError."""
        while len(data) > PARTS_MAX * part:
            part *= 2
        parts = [data[start : start + part] for start in range(0, len(data), part)]
        for _ in range(_BEGINNINGS):
            with contextlib.suppress(Missing):
                self._put(key, parts, done)
                return
        raise StorageError(f"cannot write {key}: its uploads vanish again and again; check that the bucket exists")

    def _put(self, key: str, parts: list[memoryview], done: Done) -> None:
        upload, there = self._resumed(key, parts) or (self._begun(key), {})
        sent: list[int] = []

        def send(number: int) -> str:
            tag = there.get(number)
            if tag is None:
                body = bytes(parts[number - 1])  # the client does not take a view
                options = {"UploadId": upload, "PartNumber": number, "Body": body}
                tag = str(self._call(f"write part {number} of {key}", "upload_part", key, **options)["ETag"])
            done(len(parts[number - 1]))
            sent.append(len(parts[number - 1]))
            return tag

        try:
            tags = list(self._ahead(partial(send, number) for number in range(1, len(parts) + 1)))
            self._complete(key, upload, tags)
        except (Missing, StorageError):
            done(-sum(sent))
            raise

    def _begun(self, key: str) -> str:
        return str(self._call(f"begin to write {key}", "create_multipart_upload", key)["UploadId"])

    def _complete(self, key: str, upload: str, tags: list[str]) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        options = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        try:
            self._call(f"complete {key}", "complete_multipart_upload", key, **options)
        except Missing:
            # It was done, and only the answer was lost?
            found = self._call(f"look at {key}", "head_object", key)
            if found["ETag"].strip('"') != tag_of_all(tags):
                raise

    def _resumed(self, key: str, parts: list[memoryview]) -> tuple[str, dict[int, str]] | None:
        """The newest upload of this object of which there is something, and nothing else, and the tags of what is there."""
        found = self._pages(
            "list_multipart_uploads", "Uploads", ("KeyMarker", "UploadIdMarker"), Prefix=self._name(key)
        )
        mine = [item for item in found if item["Key"] == self._name(key)]
        for item in sorted(mine, key=lambda item: str(item["Initiated"]), reverse=True):
            upload, there = str(item["UploadId"]), dict[int, str]()
            with contextlib.suppress(Missing):
                options = {"Key": self._name(key), "UploadId": upload}
                for part in self._pages("list_parts", "Parts", ("PartNumberMarker",), **options):
                    there[int(part["PartNumber"])] = str(part["ETag"])
                if there and all(_is_of(parts, number, tag) for number, tag in there.items()):
                    return upload, there
        return None

    def sweep(self, prefix: str, is_done: Callable[[str], bool]) -> None:
        """Abort the uploads below a prefix of which `is_done` says so, by the rest of their names. Raises StorageError."""
        below = self._name(prefix) + "/"
        found = self._pages("list_multipart_uploads", "Uploads", ("KeyMarker", "UploadIdMarker"), Prefix=below)
        for item in found:
            key = str(item["Key"])
            if key.startswith(below) and is_done(key[len(below) :]):
                with contextlib.suppress(Missing):
                    what = f"abort an upload of {key}"
                    self._s3(what, "abort_multipart_upload", Key=key, UploadId=item["UploadId"])

    def _pages(self, method: str, field: str, markers: tuple[str, ...], **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self._s3(f"look for uploads below {self._bucket.root}", method, **options)
            found += page.get(field) or []
            if not page.get("IsTruncated"):
                return found
            options |= {marker: page[f"Next{marker}"] for marker in markers}

    def _call(self, what: str, method: str, key: str, **options: Any) -> Any:
        return self._s3(what, method, Key=self._name(key), **options)

    def _s3(self, what: str, method: str, **options: Any) -> Any:
        bucket = self._bucket.fs.split_path(self._bucket.root)[0]
        return self._bucket.ask(what, "call_s3", method, Bucket=bucket, **options)

    def _name(self, key: str) -> str:
        """An object's name in its bucket."""
        return str(self._bucket.fs.split_path(key)[1])


def _is_of(parts: list[memoryview], number: int, tag: str) -> bool:
    """Whether S3's ETag of a part is that of ours: its hexadecimal MD5."""
    if not 0 < number <= len(parts):
        return False
    return hashlib.md5(parts[number - 1], usedforsecurity=False).hexdigest() == tag.strip('"')


def tag_of_all(tags: list[str]) -> str:
    """S3's ETag of an object that was made of parts with these: the MD5 of their MD5s, and their number."""
    try:
        each = b"".join(bytes.fromhex(tag.strip('"')) for tag in tags)
    except ValueError:
        return ""
    return f"{hashlib.md5(each, usedforsecurity=False).hexdigest()}-{len(tags)}"
