"""What DCP's `.metadata` says: which tensors and values a directory holds, and where. Nothing in it is unpickled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.image import MAX_DIMS
from ckptd.ckpt.strict import is_count, short
from ckptd.integrations.exchange.symbols import Made, Name, Pairs, tree_of

_METADATA = "torch.distributed.checkpoint.metadata."
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,250}")


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file in the directory."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    piece: Piece


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor and its boxes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """What there is, by name."""

    tensors: dict[str, Tensor]
    values: dict[str, Piece]
    paths: dict[str, tuple[str | int, ...]]


def listing_of(content: bytes) -> Listing:
    """Take a `.metadata` apart. Raises CorruptionError for everything that DCP's FileSystemWriter does not write."""
    found = _state(tree_of(content), "Metadata")
    pieces: dict[tuple[str, tuple[int, ...] | None], Piece] = {}
    for key, value in _pairs(found.get("storage_data")):
        index = _state(key, "MetadataIndex")
        offset = index.get("offset")
        pieces[_text(index.get("fqn")), None if offset is None else _sizes(offset)] = _piece(value)
    tensors: dict[str, Tensor] = {}
    values: dict[str, Piece] = {}
    for name, described in _pairs(found.get("state_dict_metadata")):
        if isinstance(described, Made) and described.name == f"{_METADATA}BytesStorageMetadata":
            values[_text(name)] = _find(pieces, _text(name), None)
        else:
            tensors[_text(name)] = _tensor(_text(name), _state(described, "TensorStorageMetadata"), pieces)
    paths = found.get("planner_data")
    return Listing(tensors, values, {} if paths is None else {_text(n): _path(n, p) for n, p in _pairs(paths)})


def _tensor(name: str, state: dict[str, Any], pieces: dict[tuple[str, tuple[int, ...] | None], Piece]) -> Tensor:
    properties = state.get("properties")
    inner = properties.state if isinstance(properties, Made) else None
    named = inner[0] if isinstance(inner, tuple) and inner else None
    dtype = getattr(torch, named.path.removeprefix("torch."), None) if isinstance(named, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise CorruptionError(f"{short(name)}: its dtype is no dtype of torch {torch.__version__}")
    chunks = []
    for described in _list(state.get("chunks")):
        chunk = _state(described, "ChunkStorageMetadata")
        offsets, shape = _sizes(chunk.get("offsets")), _sizes(chunk.get("sizes"))
        chunks.append(Chunk(offsets, shape, _find(pieces, name, offsets)))
    whole = _sizes(state.get("size"))
    for part in chunks:
        beyond = any(o + n > size for o, n, size in zip(part.offsets, part.shape, whole, strict=False))
        if not len(part.offsets) == len(part.shape) == len(whole) or beyond:
            raise CorruptionError(f"{short(name)}: {part.shape} at {part.offsets} is no part of {whole}")
    return Tensor(dtype, whole, tuple(chunks))


def _piece(value: Any) -> Piece:
    if not isinstance(value, Made) or not value.name.endswith("._StorageInfo"):
        raise CorruptionError("the directory was not written by DCP's FileSystemWriter; load it by its own reader")
    state = value.state.plain() if isinstance(value.state, Pairs) else {}
    if state.get("transform_descriptors"):
        raise CorruptionError("the files are transformed (compressed); write them once more without extensions")
    file, offset, length = (state.get(key) for key in ("relative_path", "offset", "length"))
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise CorruptionError(f"it names the file {short(file)}, expected the plain name of a file in the directory")
    if not is_count(offset) or not is_count(length):
        raise CorruptionError(f"{file}: bytes {short(offset)} and {short(length)} more, expected numbers")
    return Piece(file, offset, length)


def _find(pieces: dict[tuple[str, tuple[int, ...] | None], Piece], name: str, offset: tuple[int, ...] | None) -> Piece:
    piece = pieces.get((name, offset))
    if piece is None:
        raise CorruptionError(f"{short(name)}: it does not say where the part at {offset} is")
    return piece


def _state(value: Any, kind: str) -> dict[str, Any]:
    if not isinstance(value, Made) or value.name != _METADATA + kind or not isinstance(value.state, Pairs):
        raise CorruptionError(f"found {_words(value)}, expected a {kind} of torch.distributed.checkpoint")
    return value.state.plain()


def _words(value: Any) -> str:
    if isinstance(value, Made | Name):
        return f"a call of {short(value.name if isinstance(value, Made) else value.path)}"
    return f"a {type(value).__name__}"


def _pairs(value: Any) -> Pairs:
    if not isinstance(value, Pairs):
        raise CorruptionError(f"found {_words(value)}, expected a dict")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise CorruptionError(f"found {_words(value)}, expected a list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise CorruptionError(f"found {_words(value)}, expected a name")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Made) and value.name == "torch.Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, tuple) or len(value) > MAX_DIMS or not all(map(is_count, value)):
        raise CorruptionError(f"found {_words(value)}, expected a torch.Size")
    return value


def _path(name: Any, value: Any) -> tuple[str | int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(step, str) or is_count(step) for step in value):
        raise CorruptionError(f"the way to {short(name)} is {_words(value)}, expected names and numbers")
    return value
