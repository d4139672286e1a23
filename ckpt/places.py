"""Which place a storage root stands for: a directory, or the URL of an object store."""

from __future__ import annotations

import re
from pathlib import Path

from ckptd.ckpt.directory import Directory
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.place import Place
from ckptd.ckpt.shelf import Shelf
from ckptd.ckpt.shelf_files import FileShelf

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)

_NO_STORES = {
    "ckptd": "that is what reads steps, not where they are kept",
    "memory": "what is written there is gone with the process that wrote it",
    "http": "nothing can be written there",
    "https": "nothing can be written there",
}
"""File systems of fsspec, and our own, that can't keep anything."""


def root_of(text: str) -> Path | str:
    """A storage root as it was given: an absolute path, or a URL without a slash at its end. Raises UsageError."""
    match = _URL.fullmatch(text)
    if not match:
        return Path(text).absolute()
    protocol, rest = match[1].lower(), match[2].rstrip("/")
    if protocol in ("file", "local"):
        return Path(f"/{rest.lstrip('/')}")
    if protocol in _NO_STORES:
        raise UsageError(
            f"storage {text!r}: {_NO_STORES[protocol]}; expected a directory, or an object store as in s3://bucket/prefix"
        )
    names = rest.split("/")
    if "" in names or ".." in names or not rest.isprintable() or set("?#:*[]") & set(rest):
        raise UsageError(f"storage {text!r}: expected a directory, or an object store as in s3://bucket/prefix")
    return f"{protocol}://{rest}"


def place_at(root: Path | str, job: str) -> Place:
    """The place of a job below a root of `root_of`. Raises UsageError when there is no such file system here."""
    if isinstance(root, Path):
        return Directory(root, job)
    from ckptd.ckpt.bucket import Bucket  # only where a URL asks for it
    from ckptd.ckpt.objects import Objects

    return Objects(Bucket(root), job)


def shelf_at(root: Path | str) -> Shelf:
    """What a root of `root_of` looks like from outside. Raises UsageError when there is no such file system here."""
    if isinstance(root, Path):
        return FileShelf(root)
    from ckptd.ckpt.bucket import Bucket  # only where a URL asks for it
    from ckptd.ckpt.shelf_objects import ObjectShelf

    return ObjectShelf(Bucket(root))
