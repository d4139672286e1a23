"""Staging memory that becomes the image: a file lent by the daemon, in which tensors stand where the next image has them.

Saves of one state have one layout. So a writer that finds staged tensors among what it writes notes where in the image they
went, and borrows a file for the next save; the stager copies them there at once, and the next writer finds them in
place. Where anything has changed meanwhile it sees that from the addresses, and copies.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ckptd.ckpt.image import Layout
from ckptd.integrations import tensors
from ckptd.integrations.device import pin

Span = tuple[int, int]


class Berth:
    """A lent file, mapped: this process's for as long as anything that was staged in it is held."""

    def __init__(self, path: Path, mapping: tensors.Mapping, lock: int) -> None:
        """`lock`: a descriptor with the lock on the file, which goes with the last tensor."""
        self.path, self.mapping = path, mapping
        self._bytes: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = np.frombuffer(mapping.memory, dtype=np.uint8)
        weakref.finalize(self._bytes, _unlock, lock, os.getpid()).atexit = False

    def storage(self, span: Span) -> torch.UntypedStorage:
        """The memory at these bytes of the file."""
        assert self._bytes is not None, "it was left"
        return torch.from_numpy(self._bytes[span[0] : span[1]]).untyped_storage()

    def leave(self) -> None:
        """Nothing more is staged in it; what was keeps it."""
        self._bytes = None


def _unlock(lock: int, holder: int) -> None:
    """Forked processes, as those of a data loader, have the descriptor too: they neither keep the lock nor end it."""
    if os.getpid() == holder:
        fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


class Berths:
    """Lent files are the same few again and again: each is mapped, and pinned, once."""

    def __init__(self) -> None:
        self._mappings: dict[tuple[Path, int], tensors.Mapping] = {}

    def open(self, path: Path, size: int, *, pinned: bool) -> Berth | None:
        """Lock and map a file that was just lent; None where it was taken back meanwhile.

        Raises OSError, CorruptionError.
        """
        with ExitStack() as undo:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            undo.callback(os.close, lock)
            key = path, os.fstat(lock).st_ino
            self._mappings = {key: kept for key, kept in self._mappings.items() if _stands(*key)}
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not _stands(*key):  # a file that nobody has locked gets another name
                return None
            mapping = self._mappings.get(key) or self._map(key, size, pinned=pinned)
            mapping.memory[:8] = bytes(8)  # who reads an older image in it sees it by that
            undo.pop_all()
            return Berth(path, mapping, lock)

    def _map(self, key: tuple[Path, int], size: int, *, pinned: bool) -> tensors.Mapping:
        mapping = self._mappings[key] = tensors.Mapping(key[0], size, write=True)
        if pinned:
            pin([mapping])
        return mapping


def _stands(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Course:
    """Where to stage the next time."""

    berth: Berth
    spans: Mapping[int, Span]
    """By the number of a storage, as storages are come upon."""


class Staging:
    """One copy of a state: which storages it has, and in which berth, if it has one."""

    def __init__(self, course: Course | None) -> None:
        self._course = course
        self._held: list[weakref.ref[torch.Tensor]] = []
        self._numbers: dict[int, int] = {}
        """By the address of the copy."""
        self._count = 0
        self.next: Course | None = None
        """What the writer found; for the stager to take."""
        self.from_device = False

    @property
    def berth(self) -> Berth | None:
        """The file that some of it may stand in."""
        return None if self._course is None else self._course.berth

    def place(self, nbytes: int) -> torch.UntypedStorage | None:
        """Memory in the berth for the next storage of the state; None where it has no place there."""
        span = (0, 0) if self._course is None else self._course.spans.get(self._count, (0, 0))
        if self._course is None or span[1] - span[0] != nbytes or nbytes == 0:
            return None
        return self._course.berth.storage(span)

    def add(self, copy: torch.UntypedStorage) -> None:
        """That storage has been copied."""
        self._numbers[copy.data_ptr()] = self._count
        self._count += 1

    def close(self, held: Iterable[torch.Tensor]) -> None:
        """It is complete, and lives as long as these tensors."""
        self._held = [weakref.ref(tensor) for tensor in held]
        if self._course is not None:
            self._course.berth.leave()

    @property
    def lives(self) -> bool:
        """Whether anybody still has a tensor of it."""
        return any(tensor() is not None for tensor in self._held)

    def holds(self, part: torch.Tensor) -> bool:
        """Whether the tensor lies in its memory."""
        return part.untyped_storage().data_ptr() in self._numbers

    def spans(self, layout: Layout, parts: Mapping[str, torch.Tensor]) -> dict[int, Span]:
        """Where the storages that are whole parts of an image go in it, by their numbers."""
        found: dict[int, Span] = {}
        for name, part in parts.items():
            storage = part.untyped_storage()
            number = self._numbers.get(storage.data_ptr())
            if number is not None and storage.nbytes() == part.nbytes and _is_plain(part):
                found.setdefault(number, layout.spans[name])
        return found


_stagings: list[Staging] = []
_guard = threading.Lock()


def note(staging: Staging) -> None:
    """Let writers of this process find a copy."""
    with _guard:
        _stagings[:] = [other for other in _stagings if other.lives]
        _stagings.append(staging)


def staging_of(parts: Iterable[torch.Tensor]) -> Staging | None:
    """The copy that these tensors are of; None where they are of none."""
    with _guard:
        alive = [staging for staging in _stagings if staging.lives]
    return next((staging for part in parts for staging in alive if staging.holds(part)), None)


def stand(layout: Layout, parts: Mapping[str, torch.Tensor], memory: tensors.Mapping) -> frozenset[str] | None:
    """The parts that stand in a mapped file where the layout has them; None where the image can't be completed in that file.

    It can where each other part that lies in the file is read from bytes that stay: those of a part that stands.
    """
    base, size = memory.place
    if size != layout.size:
        return None
    there = frozenset(
        name
        for name, part in parts.items()
        if part.nbytes and part.data_ptr() == base + layout.spans[name][0] and _is_plain(part)
    )
    stay = {layout.spans[name] for name in there}
    for name in parts.keys() - there:
        storage = parts[name].untyped_storage()
        first = storage.data_ptr() - base
        if 0 <= first < size and storage.nbytes() and (first, first + storage.nbytes()) not in stay:
            return None
    return there


def _is_plain(part: torch.Tensor) -> bool:
    """Whether its bytes, from its first on, are those of an image."""
    return part.is_contiguous() and not (part.is_conj() or part.is_neg())
