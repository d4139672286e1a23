"""The image format: what stock tools read, and what a hostile header ends in."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.image import MAX_HEADER, PAGE, STOCK, Entry, Layout, entry_of, parse
from ckptd.ckpt.model import Version

VERSION = Version(3, 1200)
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
CARRIED = {"complex128": 16, "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1}


def layout_of(*entries: Entry, rank: int = 0, world: int = 1) -> Layout:
    return Layout.of(entries, job="job", rank=rank, world=world)


def image_of(layout: Layout, content: dict[str, bytes] | None = None, version: Version = VERSION) -> bytes:
    data = b"".join((content or {}).get(e.name, b"\1" * e.nbytes) for e in layout.entries)
    return layout.header_for(version) + data


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors() -> dict[str, torch.Tensor]:
    """One of every dtype with arbitrary bits, and the shapes at the edge."""
    made = {}
    for name, (_, size) in STOCK.items():
        raw = torch.arange(12 * size, dtype=torch.int64).mul(37).remainder(2 if name == "bool" else 256)
        made[f"t.{name}"] = raw.to(torch.uint8).view(getattr(torch, name)).view(3, 4)
    made |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "hollow": torch.empty(3, 0)}
    return made


def whole(name: str, tensor: torch.Tensor, rows: tuple[int, int] | None = None) -> Entry:
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    return entry_of(name, dtype, tensor.element_size(), shape, rows and Box.whole(shape).rows(*rows))


def test_stock_safetensors_reads_an_image(tmp_path: Path) -> None:
    """`safetensors.torch.load_file` opens an image and finds every tensor bit for bit."""
    given_ = tensors()
    file = tmp_path / "image.safetensors"
    layout = layout_of(*(whole(name, tensor) for name, tensor in given_.items()))
    file.write_bytes(image_of(layout, {name: bytes_of(tensor) for name, tensor in given_.items()}))
    found = safetensors.torch.load_file(file)
    assert found.keys() == given_.keys()
    for name, tensor in given_.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bytes_of(found[name]) == bytes_of(tensor), name


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_stock_dcp_reads_a_directory_of_images(tmp_path: Path) -> None:
    """`dcp.load` with HuggingFaceStorageReader joins the parts of two ranks, 0-dim and empty tensors included."""
    wide, scalar, empty = torch.arange(20.0).view(5, 4), torch.tensor(7), torch.empty(0, 2)
    carried = entry_of("carried", "complex128", 16, (2,))
    first = layout_of(whole("wide", wide, (0, 2)), whole("scalar", scalar), carried, world=2)
    second = layout_of(whole("wide", wide, (2, 3)), whole("empty", empty), rank=1, world=2)
    (tmp_path / "rank-00000.safetensors").write_bytes(
        image_of(first, {"wide": bytes_of(wide[:2]), "scalar": bytes_of(scalar)})
    )
    (tmp_path / "rank-00001.safetensors").write_bytes(image_of(second, {"wide": bytes_of(wide[2:])}))
    state = {"wide": torch.zeros(5, 4), "scalar": torch.tensor(0), "empty": torch.ones(0, 2)}
    dcp_load(state, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert torch.equal(state["wide"], wide)
    assert torch.equal(state["scalar"], scalar)


def test_versions_of_one_layout_differ_only_in_their_digits() -> None:
    """Every step of a layout has a header of the same length, and `parse` gives back what was laid out."""
    layout = layout_of(whole("b", torch.zeros(3, 5), (1, 2)), entry_of("c", "complex128", 16, (2, 2)), rank=2, world=4)
    for version in (Version(0, 0), VERSION, Version(9_999_999_999, 99_999_999_999_999_999_999)):
        image = image_of(layout, version=version)
        header = parse(image)
        assert len(image) == layout.size
        assert (header.version, header.job, header.rank, header.world) == (version, "job", 2, 4)
        assert (header.entries, header.spans, header.size) == (layout.entries, layout.spans, layout.size)
    carried = next(e for e in layout.entries if e.name == "c")
    assert (carried.dtype, carried.shape, carried.dtype_name, carried.local) == ("U8", (2, 2, 16), "complex128", (2, 2))


entries = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from([*STOCK, *CARRIED]), st.lists(st.integers(0, 5), max_size=3)),
    max_size=8,
)


@calm
@given(entries)
def test_tensors_are_aligned_and_tile_the_file(kinds: dict[str, tuple[str, list[int]]]) -> None:
    """The data begins on a page, there are no holes, and each tensor may be used where it lies."""
    layout = layout_of(
        *(
            entry_of(name, dtype, CARRIED.get(dtype) or STOCK[dtype][1], tuple(shape))
            for name, (dtype, shape) in kinds.items()
        )
    )
    assert layout.data_start % PAGE == 0
    cursor = layout.data_start
    for e in layout.entries:
        assert layout.spans[e.name] == (cursor, cursor + e.nbytes)
        assert cursor % e.itemsize == 0
        cursor += e.nbytes
    assert parse(image_of(layout)).entries == layout.entries


def tampered(change: Any, tail: bytes = b"") -> bytes:
    """A small valid image whose header went through `change(header, ckptd, sharding)`."""
    layout = layout_of(
        entry_of("a", "float32", 4, (2, 2)), entry_of("b", "uint8", 1, (3,)), entry_of("c", "complex128", 16, (1,))
    )
    image = image_of(layout)
    header = json.loads(image[8 : layout.data_start])
    own = json.loads(header["__metadata__"]["ckptd"])
    sharding = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    change(header, own, sharding)
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"].setdefault("ckptd", json.dumps(own))
        if json.loads(header["__metadata__"]["ckptd"]) != own:
            header["__metadata__"]["ckptd"] = json.dumps(own)
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(sharding)
    text = json.dumps(header).encode().ljust(layout.data_start - 8)
    return struct.pack("<Q", len(text)) + text + image[layout.data_start :] + tail


def put(where: str, *path: Any) -> Any:
    """A change that sets `header`, `own` or `sharding` at `path[:-1]` to `path[-1]`."""

    def change(header: Any, own: Any, sharding: Any) -> None:
        target = {"header": header, "own": own, "sharding": sharding}[where]
        for key in path[:-2]:
            target = target[key]
        target[path[-2]] = path[-1]

    return change


HOSTILE = {
    "unknown dtype": (put("header", "a", "dtype", "F128"), "unknown dtype 'F128'"),
    "dtype of another type": (put("header", "a", "dtype", 4), "unknown dtype 4"),
    "negative shape": (put("header", "a", "shape", [-2, -2]), "shape"),
    "huge shape": (put("header", "a", "shape", [2**62, 2**62]), "dimensions|part|bytes"),
    "too many dimensions": (put("header", "a", "shape", [1] * 65), "at most 64"),
    "shape with a bool": (put("header", "a", "shape", [2, True]), "shape"),
    "negative offset": (put("header", "a", "data_offsets", [-1, 15]), "offsets"),
    "overflowing offset": (put("header", "a", "data_offsets", [2**64, 2**64 + 16]), "offsets"),
    "reversed offsets": (put("header", "a", "data_offsets", [32, 16]), "16 bytes for F32"),
    "three offsets": (put("header", "a", "data_offsets", [16, 32, 48]), "16 bytes for F32"),
    "too large": (put("header", "b", "data_offsets", [32, 36]), "3 bytes for U8"),
    "a hole": (put("header", "b", "data_offsets", [33, 36]), "a hole"),
    "an overlap": (put("header", "b", "data_offsets", [31, 34]), "an overlap"),
    "misaligned": (lambda h, o, s: swap(h), "a multiple of"),
    "another key": (put("header", "a", "extra", 1), "dtype, shape and data_offsets"),
    "no object": (put("header", "a", 7), "dtype, shape and data_offsets"),
    "metadata of numbers": (put("header", "__metadata__", "format", 1), "an object of strings"),
    "no metadata": (lambda h, o, s: h.pop("__metadata__"), "an object of strings"),
    "a format to come": (put("own", "format", 2), "format 2"),
    "no step": (put("own", "step", 12), "step 12"),
    "a signed step": (put("own", "step", "-" + "0" * 19), "20 digits"),
    "a rank too many": (put("own", "rank", 1), "rank 1 of 1"),
    "no world": (put("own", "world", "1"), "of '1'"),
    "a path as job": (put("own", "job", "../../etc"), "job"),
    "extras for nobody": (put("own", "tensors", "zzz", {}), "other tensors"),
    "extras of another kind": (put("own", "tensors", []), "other tensors"),
    "an unknown extra": (put("own", "tensors", "a", {"evil": 1}), "a global shape or a dtype"),
    "a carrier too small": (put("own", "tensors", "b", {"dtype": "complex32"}), "carried as U8"),
    "a dtype like code": (put("own", "tensors", "c", {"dtype": "os.system"}), "true dtype"),
    "a part outside": (put("own", "tensors", "a", {"global_shape": [1, 2]}), "a part of"),
    "a part of other rank": (put("own", "tensors", "a", {"global_shape": [4]}), "a part of"),
    "sharding of nobody": (put("sharding", "zzz", {"saved_offsets": []}), "other tensors"),
    "sharding without offsets": (put("sharding", "a", {}), "saved_offsets"),
    "sharded outside": (put("sharding", "a", {"saved_offsets": [1, 0]}), "a part of"),
    "huge integer": (put("header", "a", "shape", [10**400, 1]), "shape"),
}


def swap(header: dict[str, Any]) -> None:
    header["b"]["data_offsets"], header["a"]["data_offsets"] = [16, 19], [19, 35]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_by_name(case: str) -> None:
    """Each lie in a header is a CorruptionError that says what was found and what was expected."""
    change, message = HOSTILE[case]
    with pytest.raises(CorruptionError, match=message) as raised:
        parse(tampered(change))
    assert re.search(r"found .*; expected .*; the image counts as lost", str(raised.value))


def framed(text: bytes) -> bytes:
    return struct.pack("<Q", PAGE - 8) + text.ljust(PAGE - 8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "0 bytes in all"),
        (b"\1\0\0", "3 bytes in all"),
        (struct.pack("<Q", MAX_HEADER + 1) + b" " * 100, "at most 100000000"),
        (struct.pack("<Q", 2**64 - 1) + b" " * 100, "at most 100000000"),
        (struct.pack("<Q", PAGE - 8) + b" " * 100, "a whole header"),
        (struct.pack("<Q", 2) + b"{}", "a start on a page"),
        (framed(b"{"), "not readable"),
        (framed(b"\xff\xfe{}"), "not readable"),
        (framed(b"[]"), "a list instead of an object"),
        (framed(b'{"a": 1, "a": 1}'), "the same key twice"),
        (framed(b'{"a": NaN}'), "NaN is not JSON"),
        (struct.pack("<Q", 2**20 - 8) + (b'{"a":' + b"[" * 100_000).ljust(2**20 - 8), "not readable"),
        (framed(b'{"a": ' + b"9" * 4000 + b"}"), "an object of strings"),
        (framed(b'{"__metadata__": {"ckptd": "\\ud800"}}'), "not readable"),
        (framed(b"{}"), "an object of strings"),
        (tampered(lambda h, o, s: None, b"tail"), "bytes in the file"),
        (tampered(lambda h, o, s: None)[:-1], "bytes in the file"),
    ],
)
def test_a_broken_frame_is_refused(image: bytes, message: str) -> None:
    """A file that is cut short, too long, or no safetensors file at all is a CorruptionError."""
    with pytest.raises(CorruptionError, match=message):
        parse(image)


VALID = tampered(lambda h, o, s: None)


@calm
@given(st.lists(st.tuples(st.integers(0, 1600), st.integers(0, 255)), min_size=1, max_size=6), st.integers(-3, 3))
def test_mutated_headers_never_surprise(changes: list[tuple[int, int]], resize: int) -> None:
    """Whatever bytes of a header are changed, `parse` returns a header or raises CorruptionError, nothing else."""
    image = bytearray(VALID)
    for at, value in changes:
        image[at] = value
    image = image[:resize] if resize < 0 else image + b"x" * resize
    try:
        header = parse(image)
    except CorruptionError:
        return
    assert sum(e.nbytes for e in header.entries) + PAGE == header.size == len(image)


def test_a_header_that_no_reader_would_take_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state with too many names is a StateError, not a file that nobody opens."""
    monkeypatch.setattr("ckptd.ckpt.image.MAX_HEADER", 10 * PAGE)
    with pytest.raises(StateError, match="may have 40960"):
        layout_of(*(entry_of(f"{'n' * 100}{index}", "uint8", 1, ()) for index in range(200)))
