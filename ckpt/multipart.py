"""S3's multipart uploads: parts are sent several at a time, and those that a writer before had sent are not sent again.

An upload that was cut off stands in the store until it is completed or aborted; it is found by its key. Its parts count as
there only if their MD5, which S3 calls ETag, is that of the bytes that are to be sent. Where a store says something
else there (server-side encryption with keys of one's own), the parts are sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

from ckptd.ckpt.bucket import Missing
from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.place import Done
from ckptd.ckpt.uploads import Uploads

PARTS_MAX = 10_000
_BEGINNINGS = 3
"""How often an upload is begun: another writer of the same image may complete or abort it meanwhile."""


class Ahead(Protocol):
    """Does some tasks at a time and gives what comes of them in order."""

    def __call__(self, tasks: Iterable[Callable[[], str]], /) -> Iterator[str]: ...


class Multipart:
    """Uploads to a bucket of S3's kind."""

    def __init__(self, uploads: Uploads, ahead: Ahead) -> None:
        self._uploads, self._ahead = uploads, ahead

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
        for upload in sorted(self._uploads.of(key), key=lambda upload: upload.begun_at, reverse=True):
            there = {part.number: part.tag for part in self._uploads.parts(upload)}
            if there and all(_is_of(parts, number, tag) for number, tag in there.items()):
                return upload.id, there
        return None

    def _call(self, what: str, method: str, key: str, **options: Any) -> Any:
        return self._uploads.call(what, method, Key=self._uploads.name(key), **options)


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
