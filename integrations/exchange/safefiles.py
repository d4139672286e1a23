"""safetensors files of anybody as content: one, or several with or without an index. Every byte of a header is checked."""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ckptd.ckpt import disk
from ckptd.ckpt.boxes import Box
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.image import MAX_DIMS, MAX_HEADER, STOCK
from ckptd.ckpt.strict import is_count, json_object, short
from ckptd.integrations.exchange.content import Content, Part, Whole, check_name

_NAMES = {code: name for name, (code, _) in STOCK.items()}
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,250}")
_DTYPE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ITEMSIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class _Spec:
    """A tensor as the header has it."""

    code: str
    shape: tuple[int, ...]
    first: int
    last: int


def of_index(index: Path) -> Content:
    """The tensors that an index of Hugging Face's kind names, from the files beside it.

    Raises CorruptionError when it and the files disagree, or when it names a file that is not beside it; StorageError.
    """
    try:
        found = json_object(disk.read_small(index, MAX_HEADER))
    except ValueError as error:
        raise CorruptionError(f"{index}: {error}; expected an object with a weight_map") from error
    where = found.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CorruptionError(f"{index}: weight_map is {short(where)}, expected names with files")
    for name, file in where.items():
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise CorruptionError(
                f"{index}: {short(name)} is in {short(file)}, expected the plain name of a file beside it"
            )
    content = of_files([index.with_name(file) for file in sorted(set(where.values()))])
    held = {tensor.name for tensor in content.tensors}
    if held != where.keys():
        missing, surplus = sorted(where.keys() - held), sorted(held - where.keys())
        raise CorruptionError(
            f"{index}: the files lack {len(missing)} of its names ({', '.join(missing[:3])}) and have {len(surplus)} others "
            f"({', '.join(surplus[:3])}); fetch all files of one version again"
        )
    return content


def of_files(paths: Sequence[Path]) -> Content:
    """The tensors of these files. Raises CorruptionError for a damaged one, or when two have the same name; StorageError."""
    tensors: dict[str, Whole] = {}
    steps = set()
    for path in paths:
        found, step = _read(path)
        double = tensors.keys() & found.keys()
        if double:
            raise CorruptionError(
                f"{path}: {short(min(double))} is in another of the files too; give the directory of one model"
            )
        tensors |= found
        steps.add(step)
    return Content(
        tuple(tensor for _, tensor in sorted(tensors.items())), step=steps.pop() if len(steps) == 1 else None
    )


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file, or a link to one. Raises StorageError: no fifo is waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"{path} is no file; give a checkpoint's files or their directory")
    return descriptor


def _read(path: Path) -> tuple[dict[str, Whole], int | None]:
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size < 8:
            _refuse(path, f"{size} bytes in all", "a header's length in the first 8")
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)
    (length,) = struct.unpack("<Q", memory[:8])
    if length > MAX_HEADER or 8 + length > size:
        _refuse(path, f"a header of {length} bytes in a file of {size}", f"a whole one of at most {MAX_HEADER}")
    try:
        header = json_object(memory[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        own = json_object(metadata.get("ckptd", "{}")) if isinstance(metadata, dict) else {}
    except (ValueError, TypeError, AttributeError) as error:
        _refuse(path, f"a header that is not readable ({error})", "a JSON object", error)
    specs = {check_name(name): _spec(path, name, spec) for name, spec in header.items()}
    _check_tiling(path, specs, 8 + length, size)
    carried = own.get("dtypes", {})
    if not isinstance(carried, dict) or not carried.keys() <= specs.keys():
        _refuse(path, f"dtypes {short(carried)}", "the dtypes of tensors that are there")
    raw = torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))
    tensors = {name: _whole(path, name, spec, carried.get(name), raw[8 + length :]) for name, spec in specs.items()}
    step = own.get("step")
    return tensors, int(step) if is_count(step) or (
        isinstance(step, str) and step.isascii() and step.isdigit()
    ) else None


def _spec(path: Path, name: str, found: Any) -> _Spec:
    what = f"tensor {short(name)}"
    if not isinstance(found, dict) or found.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{what}: {short(found)}", "dtype, shape and data_offsets")
    code, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(code, str) or code not in _NAMES:
        _refuse(path, f"{what}: dtype {short(code)}", "one of " + " ".join(_NAMES))
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(is_count, shape)):
        _refuse(path, f"{what}: shape {short(shape)}", f"at most {MAX_DIMS} numbers from 0 on")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        _refuse(path, f"{what}: offsets {short(offsets)}", "two numbers from 0 on")
    nbytes = math.prod(shape) * STOCK[_NAMES[code]][1]
    if offsets[1] - offsets[0] != nbytes:
        _refuse(path, f"{what}: offsets {short(offsets)}", f"{nbytes} bytes for {code} {short(shape)}")
    return _Spec(code, tuple(shape), *offsets)


def _check_tiling(path: Path, specs: dict[str, _Spec], start: int, size: int) -> None:
    cursor = 0
    for name, spec in sorted(specs.items(), key=lambda item: (item[1].first, item[1].last)):
        if spec.first != cursor:
            kind = "a hole" if spec.first > cursor else "an overlap"
            _refuse(path, f"{kind}: tensor {short(name)} begins at {spec.first}", f"byte {cursor}")
        cursor = spec.last
    if start + cursor != size:
        _refuse(
            path, f"{size} bytes", f"{start + cursor}, the header and its tensors: the file was cut, or is another's"
        )


def _whole(path: Path, name: str, spec: _Spec, carried: Any, raw: torch.Tensor) -> Whole:
    dtype: Any = getattr(torch, _NAMES[spec.code], None)
    shape = spec.shape
    if carried is not None:
        known = isinstance(carried, str) and _DTYPE_NAME.fullmatch(carried) and carried not in STOCK
        dtype = getattr(torch, carried, None) if known else None
        fits = isinstance(dtype, torch.dtype) and spec.code == "U8" and shape and shape[-1] == dtype.itemsize
        if not fits or dtype.itemsize not in _ITEMSIZES:
            _refuse(
                path,
                f"tensor {short(name)}: {short(carried)} carried as {spec.code} {short(shape)}",
                "a dtype of torch",
            )
        shape = shape[:-1]
    if not isinstance(dtype, torch.dtype):
        _refuse(
            path, f"tensor {short(name)}: {spec.code}, which torch {torch.__version__} lacks", "a dtype that it has"
        )
    read = partial(_typed, raw, spec.first, spec.last, dtype, shape)
    return Whole.of(name, dtype, shape, (Part(Box.whole(shape), read),))


def _typed(raw: torch.Tensor, first: int, last: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if first == last:
        return torch.empty(shape, dtype=dtype)
    data = raw[first:last]
    if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype).view(shape)


def _refuse(path: Path, found: str, expected: str, cause: Exception | None = None) -> NoReturn:
    raise CorruptionError(f"{path}: found {found}; expected {expected}; fetch or write the file again") from cause
