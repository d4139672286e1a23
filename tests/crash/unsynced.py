"""What a power cut may leave on a disk: the primitive steps of a run are recorded, then every state that they allow is made.

The rules are POSIX's, at their worst: what was written to a file and not synced may be there, be missing, or be there in
part; a name made, moved or removed in a directory that was not synced since may be as before or as after, each directory
by itself, in the order of the steps.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

Tree = tuple[tuple[str, bytes | None], ...]
"""Names with their bytes (a directory: None, and before what is in it)."""
TEARS = ("lost", "torn", "whole")


@dataclass
class Recorder:
    """Notes every step that changes files under `root`, while it is really done."""

    root: Path
    steps: list[tuple[object, ...]] = field(default_factory=list)
    _files: dict[int, str] = field(default_factory=dict)
    """The recorded file or directory behind an open descriptor, by the name under which it was opened."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the recorder between the code and the system's calls."""
        for name in ("open", "close", "write", "ftruncate", "fsync", "mkdir", "rename", "unlink"):
            patch.setattr(os, name, self._around(getattr(os, name), getattr(self, f"_{name}")))
        patch.setattr(shutil, "rmtree", self._around(shutil.rmtree, self._rmtree, quiet=True))

    def _around(self, real: Callable[..., object], note: Callable[..., None], *, quiet: bool = False) -> object:
        def call(*arguments: object, **options: object) -> object:
            count = len(self.steps)
            result = real(*arguments, **options)
            if quiet:
                del self.steps[count:]  # how it removes a tree is one step to us
            note(result, *arguments)
            return result

        return call

    def _name(self, path: object) -> str | None:
        if not isinstance(path, str | Path) or not Path(path).is_relative_to(self.root):
            return None
        return str(Path(path).relative_to(self.root))

    def _note(self, kind: str, path: object, *more: object) -> None:
        name = self._name(path)
        if name is not None:
            self.steps.append((kind, name, *more))

    def _open(self, result: int, path: object, flags: int, *_: object) -> None:
        name = self._name(path)
        if name is not None:
            self._files[result] = name
            if flags & os.O_CREAT:
                self.steps.append(("create", name))

    def _close(self, _: None, descriptor: int) -> None:
        self._files.pop(descriptor, None)

    def _write(self, result: int, descriptor: int, data: memoryview) -> None:
        if descriptor in self._files:
            self.steps.append(("write", self._files[descriptor], bytes(data[:result])))

    def _ftruncate(self, _: None, descriptor: int, size: int) -> None:
        if descriptor in self._files:
            self.steps.append(("truncate", self._files[descriptor], size))

    def _fsync(self, _: None, descriptor: int) -> None:
        if descriptor in self._files:
            self.steps.append(("sync", self._files[descriptor]))

    def _mkdir(self, _: None, path: object, *__: object) -> None:
        self._note("mkdir", path)

    def _rename(self, _: None, path: object, target: object) -> None:
        self._note("rename", path, self._name(target))

    def _unlink(self, _: None, path: object, *__: object) -> None:
        self._note("remove", path)

    def _rmtree(self, _: None, path: object, *__: object) -> None:
        self._note("remove", path)


@dataclass(eq=False)
class _File:
    """A file's bytes as written, and as they were at the last sync."""

    written: bytearray = field(default_factory=bytearray)
    synced: bytes = b""

    def after(self, tear: str) -> bytes:
        if tear == "lost" or bytes(self.written) == self.synced:
            return self.synced
        half = len(self.written) // 2
        return bytes(self.written) if tear == "whole" else bytes(self.written[:half]).ljust(len(self.written), b"\0")


@dataclass(eq=False)
class _Dir:
    """A directory's entries as of the last sync, and what was done to them since, in order."""

    synced: dict[str, _File | _Dir] = field(default_factory=dict)
    entries: dict[str, _File | _Dir] = field(default_factory=dict)
    history: list[dict[str, _File | _Dir]] = field(default_factory=list)

    def change(self, name: str, entry: _File | _Dir | None) -> None:
        if entry is None:
            self.entries.pop(name)
        else:
            self.entries[name] = entry
        self.history.append(dict(self.entries))

    def sync(self) -> None:
        self.synced, self.history = dict(self.entries), []


class Disk:
    """The steps so far, as a disk that loses power may have taken them."""

    def __init__(self) -> None:
        self._root = _Dir()

    def do(self, kind: str, name: str, *more: object) -> None:
        """Take one recorded step."""
        parent, last = self._parent(name)
        if kind == "create" and last not in parent.entries:
            parent.change(last, _File())
        elif kind == "mkdir":
            parent.change(last, _Dir())
        elif kind == "remove":
            parent.change(last, None)
        elif kind == "rename":
            self._rename(parent, last, str(more[0]))
        elif kind in ("write", "truncate", "sync"):
            self._change(self._root if name == "." else parent.entries[last], kind, *more)

    def states(self) -> Iterator[tuple[str, Tree]]:
        """Every state after a power cut now: what it is, and what is there. Some are alike."""
        dirs = list(self._dirs(self._root))
        choices = [range(len(directory.history) + 1) for directory in dirs]
        for kept in itertools.product(*choices):
            chosen = {id(d): [d.synced, *d.history][count] for d, count in zip(dirs, kept, strict=True)}
            for tear in TEARS:
                yield f"{kept} name changes kept, unsynced data {tear}", tuple(self._tree(self._root, chosen, tear))

    def _parent(self, name: str) -> tuple[_Dir, str]:
        *above, last = Path(name).parts or (".",)
        directory = self._root
        for part in above:
            found = directory.entries[part]
            assert isinstance(found, _Dir)
            directory = found
        return directory, last

    def _rename(self, parent: _Dir, last: str, target: str) -> None:
        to, name = self._parent(target)
        assert to is parent, "a rename between directories: two changes that may come apart"
        entry = parent.entries.pop(last)
        parent.change(name, entry)

    def _change(self, entry: _File | _Dir, kind: str, *more: object) -> None:
        if isinstance(entry, _Dir):
            entry.sync()
        elif kind == "write" and isinstance(more[0], bytes):
            entry.written += more[0]
        elif kind == "truncate" and isinstance(more[0], int):
            del entry.written[more[0] :]
        else:
            entry.synced = bytes(entry.written)

    def _dirs(self, directory: _Dir) -> Iterator[_Dir]:
        yield directory
        seen = {id(entry): entry for state in (directory.synced, *directory.history) for entry in state.values()}
        for entry in seen.values():
            if isinstance(entry, _Dir):
                yield from self._dirs(entry)

    def _tree(
        self, directory: _Dir, chosen: dict[int, dict[str, _File | _Dir]], tear: str, above: str = ""
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, entry in chosen[id(directory)].items():
            path = f"{above}{name}"
            if isinstance(entry, _Dir):
                yield path, None
                yield from self._tree(entry, chosen, tear, f"{path}/")
            else:
                yield path, entry.after(tear)


def lay_out(tree: Tree, into: Path) -> None:
    """Make what a state has in an empty directory."""
    for name, content in tree:
        if content is None:
            (into / name).mkdir()
        else:
            (into / name).write_bytes(content)
