"""`ckptd://job/step-12/...`: the steps in memory and on storage as files of an fsspec file system.

A step of tensors shows each rank's image, `rank-00000.safetensors`, which can only be read; a step of files, which were
written here, shows those. Listing or opening the files of a step brings its images to this node first, lost ones
are decoded. See docs/files.md.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.transaction import Transaction

from ckptd.ckpt.client import WAIT_MAX_S
from ckptd.ckpt.errors import CkptdError, CorruptionError, DaemonUnavailable, UsageError
from ckptd.ckpt.manifest import file_name
from ckptd.ckpt.model import Version
from ckptd.ckpt.settings import read
from ckptd.integrations.dcp.life import LEVELS, Life, running
from ckptd.integrations.files.images import Stored, files_of
from ckptd.integrations.files.names import METADATA, children, is_partial, refusal
from ckptd.integrations.files.places import Place, place_of
from ckptd.integrations.files.saving import Saving, Terms, refuse_rank, saving_of
from ckptd.integrations.files.written import NewFile
from ckptd.integrations.images import Opened

_USE = "write files below ckptd://job/step-12/, or save by ckptd.dcp.save(state, checkpoint_id='ckptd://job/step-12')"


class _Together(Transaction):  # type: ignore[misc]  # fsspec has no types
    """The files of a transaction are one commit for each step, not one for each file."""

    def complete(self, commit: bool = True) -> None:
        files, fs = list(self.files), self.fs
        self.files.clear()
        super().complete(commit)
        if commit:
            fs._put([file for file in files if not file.discarded])  # noqa: SLF001 - its own file system


class CkptdFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Jobs are directories of steps, steps are directories of files.

    What is written is a new snapshot of its whole step, as soon as the file is closed, `fs.transaction` ends or, for the
    files of torch.distributed.checkpoint, `.metadata` is there. Raises FileNotFoundError for what is not there, OSError:
    EROFS for what can't be written, EIO for what failed, ESTALE when a step made way for a newer one while it was read.
    """

    protocol = "ckptd"
    root_marker = ""
    transaction_type = _Together

    def __init__(self, *args: Any, level: str = "sealed", timeout_s: float = 60.0, **options: Any) -> None:
        """A commit returns once the snapshot is `captured`, `sealed` (protected against the loss of nodes) or `persisted`.

        It fails after `timeout_s` seconds, which is also how long it waits for a slot. Raises UsageError.
        """
        if level not in LEVELS or not 0.0 < timeout_s <= WAIT_MAX_S:
            raise UsageError(
                f"found level={level!r}, timeout_s={timeout_s!r}; expected {LEVELS} and up to {WAIT_MAX_S:.0f}"
            )
        super().__init__(*args, **options)
        self._terms = Terms(level, timeout_s)
        self._guard = threading.Lock()
        self._gathering = threading.local()
        self._held: tuple[Version, list[Opened]] | None = None

    # ---- reading ------------------------------------------------------------------------------------------

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
        stored = self._stored(path)
        return self._read(stored, path, *slice(start, end).indices(stored.size)[:2])

    def _read(self, stored: Stored, path: str, first: int, last: int) -> bytes:
        try:
            return stored.read(first, last)
        except CorruptionError as error:
            self.invalidate_cache()
            raise OSError(errno.ESTALE, str(error), path) from error

    def _list(self, path: str) -> list[dict[str, Any]]:
        place = _place(path)
        if not place.job:
            return [_directory(read().job)]
        if not place.step:
            with _raising(path):
                steps = {version.step for version in _ask(place.job, path).restorable()}
            return [_directory(f"{place.job}/step-{step}") for step in sorted(steps)]
        files = self._files(place, path)
        if place.file in files:
            return [_file(path, files[place.file].size)]
        top = f"{place.job}/{place.step}"
        inside = children(files, place.file)
        if place.file and not inside:
            _missing(path)
        at = path if place.file else top
        return [
            _directory(f"{at}/{name}") if file is None else _file(f"{at}/{name}", files[file].size)
            for name, file in inside.items()
        ]

    def _stored(self, path: str) -> Stored:
        """The file of that name."""
        place = _place(self._strip_protocol(path))
        if not place.file:
            _missing(path)
        return self._files(place, path).get(place.file) or _missing(path)

    def _files(self, place: Place, path: str) -> dict[str, Stored]:
        """All files of a step: what was written here, or the images themselves."""
        images = self._images(place, path)
        with _raising(path):
            files = files_of(images)
        if files is None:
            return {file_name(image.header.rank): Stored(image, 0, image.header.size) for image in images}
        return files

    def _images(self, place: Place, path: str) -> list[Opened]:
        """All images of a step, mapped; those of the last one are kept."""
        try:
            address = place.address
        except UsageError as error:
            raise FileNotFoundError(errno.ENOENT, str(error), path) from error
        life = _ask(place.job, path)
        with _raising(path):
            version = None if address.step is None else life.newest(address)
        if version is None:
            _missing(path)
        with self._guard:
            if self._held is None or self._held[0] != version:
                self._held = None
                with _raising(path):
                    self._held = version, life.open(version)
                    life.release(version)
            return self._held[1]

    # ---- writing ------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **options: Any) -> Any:
        stripped = self._strip_protocol(path)
        if mode == "rb":
            return _StoredFile(self, stripped, self._stored(path))
        if mode not in ("wb", "xb"):
            _refuse(path, f"found mode {mode!r}, expected rb, wb or xb: a file is written anew or not at all")
        place = _writable(stripped)
        if mode == "xb" and self.exists(path):
            raise FileExistsError(errno.EEXIST, "there is a file of that name", path)
        if not is_partial(place.file) and place.file != METADATA:
            with _raising(path):
                refuse_rank()
        return NewFile(place, self._written if autocommit else _leave)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write a file; with mode "create" only where there is none. Raises FileExistsError."""
        with self.open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)

    def pipe(self, path: str | dict[str, bytes], value: bytes | None = None, **_: Any) -> None:
        """Write files, those of one step in one commit."""
        with self._one_commit():
            for name, content in ({path: value} if isinstance(path, str) else path).items():
                self.pipe_file(name, content if content is not None else b"")

    def put(self, *args: Any, **options: Any) -> None:
        """Copy files from disk, those of one step in one commit; arguments as fsspec has them."""
        with self._one_commit():
            super().put(*args, **options)

    def copy(self, *args: Any, **options: Any) -> None:
        """Copy files, those of one step in one commit; arguments as fsspec has them."""
        with self._one_commit():
            super().copy(*args, **options)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file; of a directory nothing is to be copied but what is in it."""
        if not self.isdir(path1):
            self.pipe_file(path2, self.cat_file(path1))

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Make an empty file, or with `truncate` make one that is there empty."""
        if truncate or not self.exists(path):
            self.pipe_file(path, b"")

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Directories come and go with their files. That of a step begins a save by DCP, on every rank."""
        place = _place(self._strip_protocol(path))
        if place.step:
            step = _step(place, path)
            if not place.file:
                with _raising(path):
                    saving_of(place.job).begin(step, self._terms)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """The same. Raises FileExistsError."""
        if not exist_ok and self.exists(path):
            raise FileExistsError(errno.EEXIST, "it is there", path)
        self.mkdir(path)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """Rename a file within a step, in one commit; others are copied and removed. `.metadata` ends a save by DCP."""
        source, target = (_writable(self._strip_protocol(path)) for path in (path1, path2))
        waiting = saving_of(source.job).waiting(_step(source, path1))
        if is_partial(source.file):
            content = waiting.get(source.file)
            if content is None or (source.job, _step(source, path1)) != (target.job, _step(target, path2)):
                raise FileNotFoundError(errno.ENOENT, "no save by DCP has written it in this process", path1)
            self._commit({(target.job, _step(target, path2)): {target.file: content}})
        elif (source.job, source.step) == (target.job, target.step) and self.isfile(path1):
            content = memoryview(bytearray(self.cat_file(path1)))
            self._change(target, {target.file: content}, [source.file], path2)
        else:
            self.copy(path1, path2, recursive=recursive, maxdepth=maxdepth)
            self.rm(path1, recursive=recursive, maxdepth=maxdepth)

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files of a step, in one commit. A whole step is not: memory is used again, and storage is thinned out."""
        paths = [self._strip_protocol(one) for one in ([path] if isinstance(path, str) else path)]
        gone: dict[tuple[str, str], list[str]] = {}
        for one in paths:
            place = _writable(one)
            waiting = saving_of(place.job).waiting(_step(place, one))
            if place.file in waiting:
                del waiting[place.file]
            elif place.file == METADATA and waiting:
                continue  # DCP removes the old one right before it renames the new one, which replaces the whole step
            else:
                files = self._files(place, one)
                found = [
                    file for file in files if file == place.file or (recursive and file.startswith(place.file + "/"))
                ]
                gone.setdefault((place.job, place.step), []).extend(found or [_missing(one)])
        for (job, step), files_gone in gone.items():
            self._change(Place(job, step), {}, files_gone, f"{job}/{step}")

    def _rm(self, path: str) -> None:
        self.rm(path)

    def rmdir(self, path: str) -> None:
        """Raises OSError: a directory goes with its last file."""
        _refuse(path, "directories come and go with their files")

    def _written(self, file: NewFile) -> None:
        """A file was closed."""
        gathered: list[NewFile] | None = getattr(self._gathering, "files", None)
        if gathered is None:
            self._put([file])
        else:
            gathered.append(file)

    def _put(self, files: Iterable[NewFile]) -> None:
        """Commit what was written, each step at once."""
        steps: dict[tuple[str, int], dict[str, memoryview]] = {}
        for file in files:
            step = _step(file.place, file.place.step)
            steps.setdefault((file.place.job, step), {})[file.place.file] = file.content
        self._commit(steps)

    def _commit(self, steps: dict[tuple[str, int], dict[str, memoryview]]) -> None:
        for (job, step), written in steps.items():
            saving, path = saving_of(job), f"{job}/step-{step}"
            metadata = written.pop(METADATA, None)
            plain = {name: content for name, content in written.items() if not is_partial(name)}
            with _raising(path):
                for name in written.keys() - plain.keys():
                    saving.add(step, name, written[name], self._terms)
                if metadata is not None:
                    saving.finish(step, metadata, self._terms)
            if plain:
                self._change(Place(job, f"step-{step}"), plain, (), path)

    def _change(self, place: Place, put: dict[str, memoryview], remove: Iterable[str], path: str) -> None:
        saving: Saving = saving_of(place.job)
        with _raising(path):
            saving.change(_step(place, path), put, list(remove), self._terms)

    @contextmanager
    def _one_commit(self) -> Iterator[None]:
        """What this thread writes inside is committed at the end, or not at all. No transaction, which is of all threads."""
        if getattr(self._gathering, "files", None) is not None:
            yield
            return
        files: list[NewFile] = []
        self._gathering.files = files
        try:
            yield
        finally:
            self._gathering.files = None
        self._put(files)


class _StoredFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of a step, read by ranges; it stays that one, whatever is saved meanwhile."""

    def __init__(self, fs: CkptdFileSystem, path: str, stored: Stored) -> None:
        super().__init__(fs, path, cache_type="none", size=stored.size)
        self._stored = stored

    def _fetch_range(self, start: int, end: int) -> bytes:
        content: bytes = self.fs._read(self._stored, self.path, start, end)  # noqa: SLF001 - its own file
        return content


def _leave(_: NewFile) -> None:
    """A transaction will commit it."""


def _place(path: str) -> Place:
    """Raises FileNotFoundError for a path of nothing."""
    try:
        return place_of(path)
    except UsageError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), path) from error


def _writable(path: str) -> Place:
    """Raises OSError where no file can be written."""
    try:
        place = place_of(path)
    except UsageError as error:
        _refuse(path, str(error))
    if not place.file:
        _refuse(path, "found no name of a file; steps and jobs are neither written nor removed")
    _step(place, path)
    why = refusal(place.file)
    return _refuse(path, why) if why else place


def _step(place: Place, path: str) -> int:
    """Raises OSError unless a step is named, without an epoch."""
    try:
        address = place.address
    except UsageError as error:
        _refuse(path, str(error))
    if address.step is None or address.epoch is not None:
        _refuse(path, "found no step, or one with an epoch")
    return address.step


def _ask(job: str, path: str) -> Life:
    try:
        return running(job)
    except CkptdError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), path) from error


@contextmanager
def _raising(path: str) -> Iterator[None]:
    """Errors of ckptd as those of a file system."""
    try:
        yield
    except UsageError as error:
        _refuse(path, str(error))
    except CkptdError as error:
        code = errno.ENOTCONN if isinstance(error, DaemonUnavailable) else errno.EIO
        raise OSError(code, str(error), path) from error


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "type": "file"}


def _missing(path: str) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, "expected ckptd://job/step-12/NAME, of a step that `ckptd list` shows", path)


def _refuse(path: str, why: str) -> NoReturn:
    raise OSError(errno.EROFS, f"{why}; {_USE}", path)
