"""The near end of the sandbox: starts it, holds it to its time, and believes nothing that it says."""

from __future__ import annotations

import io
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.errors import CorruptionError, UsageError
from ckptd.ckpt.image import MAX_DIMS, MAX_HEADER
from ckptd.ckpt.strict import is_count, json_object, short
from ckptd.integrations.exchange.content import Content, Part, Way, Whole, check_name
from ckptd.integrations.tree import decode

_HEAD = struct.Struct("<BQ")
_LISTING_MAX = 4 * MAX_HEADER
_TEXT_MAX = 1 << 20
_PIPE = 1 << 20  # the most that a user may have
_ENDS_S = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What opening somebody's pickles may take."""

    memory: int
    """Bytes."""
    time_s: float
    """Seconds until the next answer is whole."""


@contextmanager
def opened(kind: str, path: Path, limits: Limits) -> Iterator[Content]:
    """The content of a `torch.save` file ("torch") or a DCP directory ("dcp"), read in a child while the block runs.

    Raises CorruptionError for anything that is not tensors and plain values, and when the child takes more than the limits.
    """
    command = [sys.executable, "-m", "ckptd.integrations.exchange.sandbox", kind, str(path), str(limits.memory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pipesize=_PIPE)
    try:
        child = _Child(process, path, limits)
        yield _content(child.answer(_LISTING_MAX), child)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


class _Child:
    """Asks, and reads what comes, for so long."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, limits: Limits) -> None:
        self._process, self._path, self._limits = process, path, limits

    def part(self, number: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """One part. Raises CorruptionError."""
        made = torch.empty(shape, dtype=dtype)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("<Q", number))
        except OSError:
            self._ended()
        found = self.answer(made.nbytes)
        if len(found) != made.nbytes:
            raise CorruptionError(f"{self._path}: a part has {len(found)} bytes, expected {made.nbytes}")
        if found:
            made.reshape(-1).view(torch.uint8).copy_(torch.frombuffer(found, dtype=torch.uint8))
        return made

    def answer(self, most: int) -> bytearray:
        """The next message. Raises CorruptionError with what the child says is wrong, or why it says nothing."""
        deadline = time.monotonic() + self._limits.time_s
        status, length = _HEAD.unpack(self._read(_HEAD.size, deadline))
        if length > max(most, _TEXT_MAX):
            raise CorruptionError(f"{self._path}: an answer of {length} bytes, expected at most {most}")
        found = self._read(length, deadline)
        if status:
            raise CorruptionError(found.decode(errors="replace"))
        return found

    def _read(self, count: int, deadline: float) -> bytearray:
        assert self._process.stdout is not None
        found, at = bytearray(count), 0
        descriptor = self._process.stdout.fileno()
        while at < count:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CorruptionError(
                    f"{self._path}: opening it took more than {self._limits.time_s:g} s and was ended; "
                    "raise --time-limit if the file is to be trusted"
                )
            got = os.readv(descriptor, [memoryview(found)[at:]])
            if not got:
                self._ended()
            at += got
        return found

    def _ended(self) -> NoReturn:
        try:
            code = self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:  # it has only shut its pipe; `opened` kills it
            code = None
        raise CorruptionError(
            f"{self._path}: the process that opened it ended with code {code}; it is damaged, or needs more memory than "
            f"{self._limits.memory} bytes (--memory-limit)"
        )


def _content(text: bytearray, child: _Child) -> Content:
    """The listing, checked: names, dtypes, shapes, and that the parts make up every tensor."""
    try:
        found = json_object(bytes(text))
    except ValueError as error:
        raise CorruptionError(f"the listing is not readable ({error})") from error
    tensors, values, paths = (found.get(key) for key in ("tensors", "values", "paths"))
    if not isinstance(tensors, list) or not isinstance(values, dict) or not isinstance(paths, dict):
        raise CorruptionError("the listing lacks tensors, values or paths")
    wholes = {whole.name: whole for whole in (_whole(item, child) for item in tensors)}
    if len(wholes) != len(tensors) or wholes.keys() & values.keys():
        raise CorruptionError("the listing has a name twice")
    return Content(
        tuple(whole for _, whole in sorted(wholes.items())),
        {check_name(name): _pickled(value) for name, value in sorted(values.items())},
        {check_name(name): _way(name, path) for name, path in paths.items()},
    )


def _whole(item: Any, child: _Child) -> Whole:
    keys = ("name", "dtype", "shape", "parts")
    name, dtype_name, shape, parts = (item.get(key) if isinstance(item, dict) else None for key in keys)
    if not isinstance(name, str) or not isinstance(parts, list) or not isinstance(dtype_name, str):
        raise CorruptionError(f"the listing has {short(item)}, expected a tensor")
    dtype = getattr(torch, dtype_name, None)
    if not isinstance(dtype, torch.dtype):
        raise CorruptionError(f"{short(name)}: {short(dtype_name)} is no dtype of torch {torch.__version__}")
    made = []
    for part in parts:
        if not isinstance(part, list) or len(part) != 3 or not is_count(part[2]):
            raise CorruptionError(f"{short(name)}: {short(part)} is no part")
        box = Box(_sizes(name, part[0]), _sizes(name, part[1]))
        made.append(Part(box, partial(child.part, part[2], dtype, box.shape)))
    return Whole.of(check_name(name), dtype, _sizes(name, shape), tuple(made))


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMS or not all(map(is_count, value)):
        raise CorruptionError(f"{short(name)}: found the shape {short(value)}")
    return tuple(value)


def _pickled(value: Any) -> bytes:
    """A plain value as DCP's planner writes it."""
    sink = io.BytesIO()
    torch.save(decode(value, _no_tensor), sink)
    return sink.getvalue()


def _no_tensor(name: str) -> NoReturn:
    raise KeyError(name)


def _way(name: str, path: Any) -> Way:
    if not isinstance(path, list) or not all(isinstance(step, str) or is_count(step) for step in path):
        raise CorruptionError(f"the way to {short(name)} is {short(path)}, expected names and numbers")
    return tuple(path)


def default_limits(nbytes: int, memory: int | None, time_s: float | None) -> Limits:
    """Twice what the files have, and a GiB; ten minutes. Raises UsageError for limits that are none."""
    if time_s is not None and not 0 < time_s < 1e6:
        raise UsageError(f"time limit {time_s}: expected seconds")
    return Limits(2 * nbytes + (1 << 30) if memory is None else memory, 600.0 if time_s is None else time_s)


def size_of(path: Path) -> int:
    """The bytes of a file, or of the files in a directory."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
