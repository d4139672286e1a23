"""S3's uploads that are not completed: bytes that a bucket keeps, and that no listing of its objects shows."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from ckptd.ckpt.bucket import Bucket, Missing


@dataclass(frozen=True, slots=True)
class Upload:
    """One that was begun. There may be several of one object."""

    name: str
    """The object's name below what was asked for."""
    key: str
    """Its name in the bucket."""
    id: str
    begun_at: float
    """Seconds since 1970, by the store's clock."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A part that is there."""

    number: int
    tag: str
    size: int
    written_at: float


def is_offered(bucket: Bucket) -> bool:
    """Whether the file system gives access to S3's own calls."""
    return hasattr(bucket.fs, "_call_s3")


class Uploads:
    """Those of a bucket of S3's kind. Every method raises StorageError."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def below(self, prefix: str) -> list[Upload]:
        """Those of objects whose names begin with a prefix and a slash."""
        start = self.name(prefix) + "/"
        return [_upload(item, start) for item in self._begun(start) if str(item["Key"]).startswith(start)]

    def of(self, key: str) -> list[Upload]:
        """Those of one object."""
        return [_upload(item, "") for item in self._begun(self.name(key)) if item["Key"] == self.name(key)]

    def parts(self, upload: Upload) -> list[Sent]:
        """What was sent of one; nothing where it was completed or aborted meanwhile."""
        try:
            found = self._pages("list_parts", "Parts", ("PartNumberMarker",), Key=upload.key, UploadId=upload.id)
        except Missing:
            return []
        return [
            Sent(int(part["PartNumber"]), str(part["ETag"]), int(part["Size"]), part["LastModified"].timestamp())
            for part in found
        ]

    def abort(self, upload: Upload) -> None:
        """Give its parts up. One that is not there any more is no error."""
        with contextlib.suppress(Missing):
            what = f"abort an upload of {upload.key}"
            self.call(what, "abort_multipart_upload", Key=upload.key, UploadId=upload.id)

    def call(self, what: str, method: str, **options: Any) -> Any:
        """One of S3's calls. Raises Missing as well."""
        bucket = self._bucket.fs.split_path(self._bucket.root)[0]
        return self._bucket.ask(what, "call_s3", method, Bucket=bucket, **options)

    def name(self, key: str) -> str:
        """An object's name in its bucket."""
        return str(self._bucket.fs.split_path(key)[1])

    def _begun(self, prefix: str) -> list[dict[str, Any]]:
        return self._pages("list_multipart_uploads", "Uploads", ("KeyMarker", "UploadIdMarker"), Prefix=prefix)

    def _pages(self, method: str, field: str, markers: tuple[str, ...], **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.call(f"look for uploads below {self._bucket.root}", method, **options)
            found += page.get(field) or []
            if not page.get("IsTruncated"):
                return found
            options |= {marker: page[f"Next{marker}"] for marker in markers}


def _upload(item: dict[str, Any], start: str) -> Upload:
    key = str(item["Key"])
    return Upload(key[len(start) :], key, str(item["UploadId"]), item["Initiated"].timestamp())
