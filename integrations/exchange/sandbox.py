"""The one place where a pickle of somebody else is opened: a child process with little memory, that can write no file.

`python -m ckptd.integrations.exchange.sandbox KIND PATH MEMORY` opens a `torch.save` file or a DCP directory with
`weights_only=True`, says what is in it, and then sends the parts that it is asked for. `sandboxed.py` is its other end.

    child     a message: JSON of tensors (name, dtype, shape, parts), values (name: `tree`'s JSON), paths
    parent    number of a part (u64), as often as it likes; it closes the pipe when it has enough
    child     a message: the part's elements, row-major

A message is a status (u8: 0, or 1 where text says what went wrong), its length (u64), its bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from ckptd.ckpt.errors import CkptdError, CorruptionError, StateError, StorageError
from ckptd.ckpt.strict import short
from ckptd.integrations.exchange.content import BAND
from ckptd.integrations.exchange.distcp import Piece, listing_of
from ckptd.integrations.exchange.safefiles import open_regular
from ckptd.integrations.tensors import plain
from ckptd.integrations.tree import Encoder

_METADATA_MAX = 1 << 30
_GLOBAL = re.compile(r"GLOBAL (\S+)|Unsupported class (\S+)")


@dataclass(frozen=True, slots=True)
class _Held:
    """What was opened: the listing, and how to get each part."""

    listing: dict[str, Any]
    parts: list[Callable[[], torch.Tensor]]


def main(kind: str, path: Path, memory: int) -> None:
    """Answer until the other end has enough."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    _limit(memory)
    try:
        held = {"torch": _torch_file, "dcp": _dcp_directory}[kind](path)
        _send(sink, json.dumps(held.listing).encode())
        while number := sys.stdin.buffer.read(8):
            _send(sink, _bytes_of(held.parts[struct.unpack("<Q", number)[0]]()))
    except CkptdError as error:
        _fail(sink, str(error))
    except MemoryError:
        _fail(
            sink, f"{path} needs more memory than the {memory} bytes that importing it may take; raise --memory-limit"
        )


def _limit(memory: int) -> None:
    """From now on: so much more memory than there is now, no file that could be written, no core."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(sink: BinaryIO, content: bytes | memoryview) -> None:
    sink.write(struct.pack("<BQ", 0, len(content)))
    sink.write(content)
    sink.flush()


def _fail(sink: BinaryIO, reason: str) -> None:
    text = reason.encode()
    sink.write(struct.pack("<BQ", 1, len(text)) + text)
    sink.flush()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


# ---- a torch.save file --------------------------------------------------------------------------------------


def _torch_file(path: Path) -> _Held:
    os.close(open_regular(path))
    state = _load(path.name, path, mmap=zipfile.is_zipfile(path))
    if not isinstance(state, dict):
        raise StateError(f"{path} holds a {type(state).__name__}, expected a dict of tensors and values")
    try:
        flat, paths = flatten_state_dict(state)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path}: {short(error)}; rename one of them") from error
    tensors: list[dict[str, Any]] = []
    parts: list[Callable[[], torch.Tensor]] = []
    values = {}
    for name, value in flat.items():
        if isinstance(value, torch.Tensor):
            tensor = plain(name, value)
            box = [[0] * tensor.dim(), list(tensor.shape), len(parts)]
            tensors.append({"name": name, "dtype": _name_of(tensor.dtype), "shape": list(tensor.shape), "parts": [box]})
            parts.append(lambda tensor=tensor: tensor)  # type: ignore[misc]
        else:
            values[name] = _encoded(name, value)
    return _Held({"tensors": tensors, "values": values, "paths": {n: list(p) for n, p in paths.items()}}, parts)


def _load(what: str, source: Path | io.BytesIO, *, mmap: bool = False) -> Any:
    """Open one pickle. Raises CorruptionError saying in a line what is wrong with it."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as error:  # whatever torch makes of bytes that somebody else chose
        if "allocate memory" in str(error) or "can't allocate" in str(error):
            raise MemoryError from error
        match = _GLOBAL.search(str(error))
        if match:
            wanted = match[1] or match[2]
            raise CorruptionError(
                f"{what}: it holds more than tensors and plain values: opening it would call {short(wanted)}, which was not "
                "done; import files of tensors and plain values alone, from whom you trust"
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CorruptionError(
            f"{what} is damaged, or no file of torch.save ({type(error).__name__}: {first[:200]})"
        ) from error


def _encoded(name: str, value: Any) -> Any:
    encoder = Encoder()
    made = encoder.encode(value, name)
    if encoder.tensors:
        raise StateError(f"{name}: found tensors inside a {type(value).__name__}, expected them in dicts and lists")
    return made


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- a DCP directory ----------------------------------------------------------------------------------------


def _dcp_directory(path: Path) -> _Held:
    metadata = _pread(path / ".metadata", None)
    try:
        found = listing_of(metadata)
    except CorruptionError as error:
        raise CorruptionError(f"{path / '.metadata'}: {error}") from error
    tensors: list[dict[str, Any]] = []
    parts: list[Callable[[], torch.Tensor]] = []
    for name, tensor in found.tensors.items():
        boxes = []
        for chunk in tensor.chunks:
            boxes.append([list(chunk.offsets), list(chunk.shape), len(parts)])
            parts.append(lambda n=name, t=tensor.dtype, c=chunk: _chunk(path, n, t, c.shape, c.piece))  # type: ignore[misc]
        tensors.append({"name": name, "dtype": _name_of(tensor.dtype), "shape": list(tensor.shape), "parts": boxes})
    values = {
        name: _encoded(name, _load(f"{name} in {piece.file}", io.BytesIO(_pread(path / piece.file, piece))))
        for name, piece in found.values.items()
    }
    return _Held({"tensors": tensors, "values": values, "paths": {n: list(p) for n, p in found.paths.items()}}, parts)


def _chunk(path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...], piece: Piece) -> torch.Tensor:
    loaded = _load(f"{name} in {piece.file}", io.BytesIO(_pread(path / piece.file, piece)))
    if not isinstance(loaded, torch.Tensor) or loaded.dtype != dtype or tuple(loaded.shape) != shape:
        words = f"{loaded.dtype} {list(loaded.shape)}" if isinstance(loaded, torch.Tensor) else type(loaded).__name__
        raise CorruptionError(f"{name}: found {words} in {piece.file}, the metadata says {dtype} {list(shape)}")
    return plain(name, loaded)


def _pread(path: Path, piece: Piece | None) -> bytes:
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        offset, length = (0, size) if piece is None else (piece.offset, piece.length)
        if offset + length > size or (piece is None and length > _METADATA_MAX):
            raise CorruptionError(f"{path} has {size} bytes, expected {offset + length}; the file was cut")
        found = bytearray()
        while len(found) < length:
            more = os.pread(descriptor, min(length - len(found), BAND), offset + len(found))
            if not more:
                raise StorageError(f"{path} ended early")
            found += more
        return bytes(found)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
