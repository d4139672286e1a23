"""`ckptd://job/step-12/rank-00000.safetensors`: the steps in memory and on storage as files of an fsspec file system.

It can only be read: an image is made by all ranks together, and only whole. Listing or opening the files of a step brings
its images to this node first, lost ones are decoded.
"""

from __future__ import annotations

import errno
import re
import threading
from typing import Any, NoReturn

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from ckptd.ckpt.errors import CkptdError, CorruptionError, UsageError
from ckptd.ckpt.manifest import file_name
from ckptd.ckpt.model import JOB_NAME, Version
from ckptd.ckpt.settings import read
from ckptd.integrations.dcp.life import Life, running
from ckptd.integrations.dcp.names import SCHEME, address_of
from ckptd.integrations.images import Opened

_RANK = re.compile(r"rank-([0-9]{5,9})\.safetensors")


class CkptdFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Jobs are directories of steps, steps are directories of one safetensors file for each rank.

    Raises FileNotFoundError for what is not there, OSError (EROFS) for whatever would write, and OSError (ESTALE) when a
    step made way for a newer one while it was read.
    """

    protocol = "ckptd"
    root_marker = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guard = threading.Lock()
        self._held: tuple[Version, list[Opened]] | None = None

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is in a directory, or a file itself: names, or with `detail` dicts with `name`, `type` and `size`."""
        found = self._list(self._strip_protocol(path))
        return found if detail else [entry["name"] for entry in found]

    def invalidate_cache(self, path: str | None = None) -> None:
        """Let go of the step that was read last."""
        with self._guard:
            self._held = None

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file, from `start` to `end`; negative ones count from its end."""
        image = self._image(path)
        try:
            return image.read(*slice(start, end).indices(image.header.size)[:2])
        except CorruptionError as error:
            self.invalidate_cache()
            raise OSError(errno.ESTALE, str(error), path) from error

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        if mode != "rb":
            _refuse(path)
        self._image(path)
        return _ImageFile(self, self._strip_protocol(path), cache_type="none")

    def _list(self, path: str) -> list[dict[str, Any]]:
        job, _, rest = path.partition("/")
        if not job:
            return [_directory(read().job)]
        name, _, file = rest.partition("/")
        if not name:
            steps = {version.step for version in _ask(job, path).restorable()}
            return [_directory(f"{job}/step-{step}") for step in sorted(steps)]
        images = self._images(job, name, path)
        files = [_file(f"{job}/{name}/{file_name(image.header.rank)}", image.header.size) for image in images]
        found = [entry for entry in files if not file or entry["name"] == path]
        return found or _missing(path)

    def _image(self, path: str) -> Opened:
        """The image that a file is."""
        stripped = self._strip_protocol(path)
        job, name, file = (*stripped.split("/", 2), "", "")[:3]
        rank = _RANK.fullmatch(file)
        if rank is None:
            _missing(path)
        for image in self._images(job, name, path):
            if file_name(image.header.rank) == file:
                return image
        return _missing(path)

    def _images(self, job: str, name: str, path: str) -> list[Opened]:
        """All images of a step, mapped; those of the last one are kept."""
        try:
            address = address_of(f"{SCHEME}{job}/{name}")
        except UsageError as error:
            raise FileNotFoundError(errno.ENOENT, str(error), path) from error
        life = _ask(job, path)
        fitting = [version for version in life.restorable() if address.fits(version)]
        if address.step is None or not fitting:
            _missing(path)
        with self._guard:
            if self._held is None or self._held[0] != max(fitting):
                self._held = None
                try:
                    self._held = max(fitting), life.open(max(fitting))
                    life.release(max(fitting))
                except CkptdError as error:
                    raise OSError(errno.EIO, str(error), path) from error
            return self._held[1]

    # ---- what would write ---------------------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        _refuse(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        _refuse(path)

    def rmdir(self, path: str) -> None:
        _refuse(path)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        _refuse(path2)

    def _rm(self, path: str) -> None:
        _refuse(path)


class _ImageFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """An image, read by ranges."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        content: bytes = self.fs.cat_file(self.path, start, end)
        return content


def _ask(job: str, path: str) -> Life:
    if not JOB_NAME.fullmatch(job):
        _missing(path)
    try:
        return running(job)
    except CkptdError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), path) from error


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "type": "file"}


def _missing(path: str) -> NoReturn:
    raise FileNotFoundError(
        errno.ENOENT, "expected ckptd://job/step-12/rank-00000.safetensors, of a step that `ckptd list` shows", path
    )


def _refuse(path: str) -> NoReturn:
    raise OSError(
        errno.EROFS,
        "ckptd:// can only be read; save by ckptd.dcp.save(state, checkpoint_id='ckptd://job/step-12') or a Checkpointer",
        path,
    )
