"""Which place a storage root stands for: a directory, or the URL of an object store."""

from __future__ import annotations

import re
from pathlib import Path

from ckptd.ckpt.directory import Directory
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.place import Place

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)


def root_of(text: str) -> Path | str:
    """A storage root as it was given: an absolute path, or a URL without a slash at its end. Raises UsageError."""
    match = _URL.fullmatch(text)
    if not match:
        return Path(text).absolute()
    protocol, rest = match[1].lower(), match[2].rstrip("/")
    if protocol in ("file", "local"):
        return Path(f"/{rest.lstrip('/')}")
    names = rest.split("/")
    if protocol == "ckptd" or "" in names or ".." in names or not rest.isprintable() or set("?#:*[]") & set(rest):
        raise UsageError(f"storage {text!r}: expected a directory, or an object store as in s3://bucket/prefix")
    return f"{protocol}://{rest}"


def directory_of(root: Path | str) -> Path:
    """A storage root that must be a directory, as an absolute path. Raises UsageError for an object store's URL."""
    found = root if isinstance(root, Path) else root_of(root)
    if isinstance(found, str):
        raise UsageError(
            f"storage {found}: an object store, and this works on directories; ask the daemons on that storage, which list, "
            "export and remove its steps"
        )
    return found.absolute()


def place_at(root: Path | str, job: str) -> Place:
    """The place of a job below a root of `root_of`. Raises UsageError when there is no such file system here."""
    if isinstance(root, Path):
        return Directory(root, job)
    from ckptd.ckpt.bucket import Bucket  # only where a URL asks for it
    from ckptd.ckpt.objects import Objects

    return Objects(Bucket(root), job)
