"""The image: one rank's snapshot, whose bytes in the slot and on storage are one valid safetensors file.

    offset    bytes   content
    0         8       H, the length of the header, u64 little-endian, at most 100 MB
    8         H       the header: JSON, padded with spaces so that the tensors begin on a 4096-byte page
    8 + H     ...     the tensors: little-endian, row-major, end to end without holes, largest element size first and
                      then by name, so that each one is naturally aligned and can be used in place

The header is an object of `name: {"dtype", "shape", "data_offsets"}` as safetensors defines it, and `__metadata__`:

    ckptd               JSON: epoch and step (zero-padded strings, so that every step of one layout has a header of one
                        length), format, job, rank, world, and in `tensors` what safetensors cannot say of an entry: the
                        global shape of a part, the true dtype of bytes that are carried as U8 with one more dimension
    format              "pt"
    DCP_SHARDING_INFO   JSON: {name: {"saved_offsets": [...]}} for every entry, as DCP's HuggingFaceStorageReader reads it
                        (torch/distributed/checkpoint/hf_storage.py)

`parse` trusts nothing: it believes a header only after everything in it agrees with everything else.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.model import JOB_NAME, Version
from ckptd.ckpt.pieces import Buffer
from ckptd.ckpt.strict import is_count, json_object, short

PAGE = 4096
FORMAT = 1
MAX_HEADER = 100_000_000  # bytes; safetensors refuses longer headers too
MAX_DIMS = 64
EPOCH_DIGITS, STEP_DIGITS = 10, 20

STOCK = {
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "bool": ("BOOL", 1),
    "int64": ("I64", 8), "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1), "complex64": ("C64", 8),
    "uint64": ("U64", 8), "uint32": ("U32", 4), "uint16": ("U16", 2), "uint8": ("U8", 1),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
}  # fmt: skip
"""torch's dtype name -> safetensors' code and bytes per element: those that `safetensors.torch` 0.8 maps to torch. The
file format knows a few more (F8_E8M0, F4), but DCP's reader fails on a whole directory that holds one of them."""

_CODES = {code: (name, size) for name, (code, size) in STOCK.items()}
_DTYPE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FIXED = '{"__metadata__": {"ckptd": "{\\"epoch\\": \\"'
_BETWEEN = '\\", \\"step\\": \\"'


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, or one box of a tensor, as it is stored."""

    name: str
    dtype: str
    """safetensors' code of the stored elements."""
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    """Where this part begins in the whole tensor, per dimension."""
    global_shape: tuple[int, ...]
    true_dtype: str | None = None
    """torch's dtype name where `dtype` is only a carrier: U8, with the bytes of an element as the last dimension."""

    @property
    def dtype_name(self) -> str:
        """torch's name of the elements' dtype."""
        return self.true_dtype or _CODES[self.dtype][0]

    @property
    def itemsize(self) -> int:
        """Bytes of one (true) element."""
        return self.shape[-1] if self.true_dtype else _CODES[self.dtype][1]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _CODES[self.dtype][1]

    @property
    def local(self) -> tuple[int, ...]:
        """The shape of this part in true elements."""
        return self.shape[:-1] if self.true_dtype else self.shape

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the whole tensor in true elements."""
        return self.global_shape[:-1] if self.true_dtype else self.global_shape

    @property
    def box(self) -> Box:
        """Where this part lies in the whole tensor, in true elements."""
        return Box(self.offsets[: len(self.local)], self.local)


def entry_of(name: str, dtype: str, itemsize: int, whole: tuple[int, ...], box: Box | None = None) -> Entry:
    """Describe a tensor of torch's `dtype` name and shape `whole`, or that part of it which lies in `box`."""
    part = box or Box.whole(whole)
    stock = STOCK.get(dtype)
    if stock is not None:
        return Entry(name, stock[0], part.shape, part.offsets, whole)
    assert itemsize in (1, 2, 4, 8, 16), f"{name}: {dtype} has {itemsize} bytes per element"
    return Entry(name, "U8", (*part.shape, itemsize), (*part.offsets, 0), (*whole, itemsize), dtype)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in the images of one state layout; only the version differs from one image to the next."""

    entries: tuple[Entry, ...]
    """In file order."""
    spans: dict[str, tuple[int, int]]
    """First byte and the byte after the last, counted from the start of the file."""
    size: int
    template: bytes
    """The file's bytes before the tensors, for version 0 of epoch 0."""

    @staticmethod
    def of(entries: Sequence[Entry], *, job: str, rank: int, world: int) -> Layout:
        """Lay out `entries`, whose names must differ. Raises StateError when the header would be too long."""
        ordered = tuple(sorted(entries, key=lambda e: (-e.itemsize, e.name)))
        assert len({e.name for e in ordered}) == len(ordered), "two entries share a name"
        ends = list(accumulate((e.nbytes for e in ordered), initial=0))
        table = {e.name: [first, last] for e, first, last in zip(ordered, ends, ends[1:], strict=False)}
        template = _template(ordered, table, job=job, rank=rank, world=world)
        start = len(template)
        spans = {name: (start + first, start + last) for name, (first, last) in table.items()}
        return Layout(ordered, spans, start + ends[-1], template)

    @property
    def data_start(self) -> int:
        return len(self.template)

    def header_for(self, version: Version) -> bytes:
        """The bytes before the tensors in the image of `version`; always `data_start` of them."""
        assert 0 <= version.epoch < 10**EPOCH_DIGITS, version
        assert 0 <= version.step < 10**STEP_DIGITS, version
        names = f"{_FIXED}{version.epoch:0{EPOCH_DIGITS}d}{_BETWEEN}{version.step:0{STEP_DIGITS}d}".encode()
        return self.template[:8] + names + self.template[8 + len(names) :]


def _template(entries: Sequence[Entry], table: dict[str, list[int]], *, job: str, rank: int, world: int) -> bytes:
    digits = {"epoch": "0" * EPOCH_DIGITS, "step": "0" * STEP_DIGITS}
    extras = {e.name: _extra(e) for e in entries if e.true_dtype or e.global_shape != e.shape}
    own = {**digits, "format": FORMAT, "job": job, "rank": rank, "world": world, "tensors": extras}
    sharding = {e.name: {"saved_offsets": list(e.offsets)} for e in entries}
    metadata = {"ckptd": json.dumps(own), "format": "pt", "DCP_SHARDING_INFO": json.dumps(sharding)}
    header: dict[str, Any] = {"__metadata__": metadata}
    for e in entries:
        header[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": table[e.name]}
    text = json.dumps(header).encode()
    length = -(-(8 + len(text)) // PAGE) * PAGE - 8
    if length > MAX_HEADER:
        raise StateError(
            f"the state's {len(entries)} tensors need a header of {length} bytes, a safetensors file may have"
            f" {MAX_HEADER}; capture fewer or shorter-named tensors"
        )
    return struct.pack("<Q", length) + text.ljust(length)


def _extra(e: Entry) -> dict[str, Any]:
    part = {"global_shape": list(e.global_shape)} if e.global_shape != e.shape else {}
    return part | ({"dtype": e.true_dtype} if e.true_dtype else {})


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself, after every cross-check has passed; entries and spans as in `Layout`."""

    version: Version
    job: str
    rank: int
    world: int
    entries: tuple[Entry, ...]
    spans: dict[str, tuple[int, int]]
    size: int


def parse(image: Buffer) -> Header:
    """Read the header of a whole image. Raises CorruptionError when anything in it is not as this file promises."""
    view = memoryview(image)
    start = data_start(view)
    header = _object(bytes(view[8:start]), "the header")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(f"__metadata__ {short(metadata)}", "an object of strings")
    own = _object(metadata.get("ckptd", ""), "ckptd's metadata")
    sharding = _object(metadata.get("DCP_SHARDING_INFO", ""), "DCP_SHARDING_INFO")
    extras = own.get("tensors")
    if not isinstance(extras, dict) or not extras.keys() <= header.keys() or sharding.keys() != header.keys():
        _refuse("metadata that names other tensors than the header", "the same names in both")
    entries = {name: _entry(name, spec, extras.get(name, {}), sharding[name]) for name, spec in header.items()}
    spans = _tiled(header, entries, start, len(view))
    ordered = tuple(sorted(entries.values(), key=lambda e: spans[e.name]))
    version, job, rank, world = _identity(own)
    return Header(version, job, rank, world, ordered, spans, len(view))


def data_start(view: memoryview) -> int:
    """How many bytes of an image are its header, by its first eight. Raises CorruptionError."""
    if len(view) < 8:
        _refuse(f"{len(view)} bytes in all", "a header's length in the first 8")
    (length,) = struct.unpack("<Q", view[:8])
    if length > MAX_HEADER:
        _refuse(f"a header of {length} bytes", f"at most {MAX_HEADER}")
    if 8 + length > len(view):
        _refuse(f"a header of {length} bytes in a file of {len(view)}", "a whole header")
    if (8 + length) % PAGE:
        _refuse(f"tensors from byte {8 + length} on", f"a start on a page of {PAGE} bytes")
    return 8 + int(length)


def _identity(own: dict[str, Any]) -> tuple[Version, str, int, int]:
    if own.get("format") != FORMAT:
        _refuse(f"format {short(own.get('format'))}", f"format {FORMAT}, the only one that this ckptd reads")
    numbers = []
    for key, digits in (("epoch", EPOCH_DIGITS), ("step", STEP_DIGITS)):
        text = own.get(key)
        if not (isinstance(text, str) and len(text) == digits and text.isascii() and text.isdigit()):
            _refuse(f"{key} {short(text)}", f"{digits} digits")
        numbers.append(int(text))
    job, rank, world = (own.get(key) for key in ("job", "rank", "world"))
    if not (isinstance(job, str) and JOB_NAME.fullmatch(job)):
        _refuse(f"job {short(job)}", "a job's name")
    if not (is_count(rank) and is_count(world) and int(rank) < int(world)):
        _refuse(f"rank {short(rank)} of {short(world)}", "a rank below the number of ranks")
    return Version(*numbers), job, int(rank), int(world)


def _entry(name: str, spec: Any, extra: Any, sharding: Any) -> Entry:
    """One tensor's description, checked by itself; where it lies is checked by `_tiled`."""
    what = f"tensor {short(name)}"
    if not isinstance(spec, dict) or spec.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(f"{what}: {short(spec)}", "dtype, shape and data_offsets")
    if not isinstance(extra, dict) or not extra.keys() <= {"global_shape", "dtype"}:
        _refuse(f"{what}: {short(extra)}", "a global shape or a dtype")
    if not isinstance(sharding, dict) or sharding.keys() != {"saved_offsets"}:
        _refuse(f"{what}: {short(sharding)}", "saved_offsets")
    code = spec["dtype"]
    if not isinstance(code, str) or code not in _CODES:
        _refuse(f"{what}: unknown dtype {short(code)}", "one of " + " ".join(_CODES))
    shape = _counts(spec["shape"], f"{what}: shape")
    whole = _counts(extra.get("global_shape", spec["shape"]), f"{what}: global shape")
    offsets = _counts(sharding["saved_offsets"], f"{what}: saved_offsets")
    fits = [first + part <= all_ for first, part, all_ in zip(offsets, shape, whole, strict=False)]
    if not (len(shape) == len(whole) == len(offsets) and all(fits)):
        _refuse(f"{what}: {short(shape)} at {short(offsets)}", f"a part of {short(whole)}")
    true_dtype = extra.get("dtype")
    if true_dtype is not None:
        if not isinstance(true_dtype, str) or not _DTYPE_NAME.fullmatch(true_dtype) or true_dtype in STOCK:
            _refuse(f"{what}: true dtype {short(true_dtype)}", "the name of a dtype that safetensors lacks")
        if code != "U8" or not shape or shape[-1] not in (1, 2, 4, 8, 16) or shape[-1] != whole[-1]:
            _refuse(f"{what}: {true_dtype} carried as {code} {short(shape)}", "U8 with a dimension of bytes at the end")
    return Entry(name, code, shape, offsets, whole, true_dtype)


def _tiled(header: dict[str, Any], entries: dict[str, Entry], start: int, total: int) -> dict[str, tuple[int, int]]:
    """The span of every tensor, once they are known to tile the data without holes and overlaps, aligned."""
    claimed = {}
    for name, spec in header.items():
        claim = claimed[name] = _counts(spec["data_offsets"], f"tensor {short(name)}: offsets")
        if len(claim) != 2 or claim[1] - claim[0] != entries[name].nbytes:
            e = entries[name]
            _refuse(f"tensor {short(name)}: offsets {short(claim)}", f"{e.nbytes} bytes for {e.dtype} {short(e.shape)}")
    cursor = 0
    for name, (first, last) in sorted(claimed.items(), key=lambda item: item[1]):
        if first != cursor:
            kind = "a hole" if first > cursor else "an overlap"
            _refuse(f"{kind}: tensor {short(name)} begins at {first}", f"byte {cursor}")
        if first % entries[name].itemsize:
            _refuse(f"tensor {short(name)} at byte {first}", f"a multiple of {entries[name].itemsize}")
        cursor = last
    if start + cursor != total:
        _refuse(f"{total} bytes in the file", f"{start + cursor}, the header and its tensors")
    return {name: (start + first, start + last) for name, (first, last) in claimed.items()}


def _counts(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMS or not all(is_count(n) for n in value):
        _refuse(f"{what} {short(value)}", f"at most {MAX_DIMS} numbers from 0 to 2^63-1")
    return tuple(value)


def _object(text: bytes | str, what: str) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        _refuse(f"{what} is not readable ({error})", "a JSON object", error)


def _refuse(found: str, expected: str, cause: Exception | None = None) -> NoReturn:
    raise CorruptionError(
        f"image header: found {found}; expected {expected}; "
        "the image counts as lost: let ckptd rebuild it from parity, or restore another step"
    ) from cause
