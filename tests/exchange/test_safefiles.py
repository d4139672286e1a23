"""safetensors files that are damaged, hostile or unusual: each is told apart from a good one before a tensor is touched."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.exchange.contents import held, told

from ckptd.ckpt.errors import CkptdError, CorruptionError, StateError, StorageError, UsageError
from ckptd.integrations.exchange.readers import content_at, kind_of
from ckptd.integrations.exchange.safefiles import of_files, of_index

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]},
}


def written(path: Path, header: object, data: bytes = bytes(12), length: int | None = None) -> Path:
    """A file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def changed(**fields: Any) -> dict[str, Any]:
    """The good header with another tensor a."""
    return GOOD | {"a": GOOD["a"] | fields}


@pytest.mark.parametrize(
    "header",
    [
        changed(data_offsets=[0, 7]), changed(data_offsets=[4, 12]), changed(data_offsets=[-8, 0]),
        changed(data_offsets=[8, 0]),
        changed(data_offsets=[0]), changed(dtype="F99"), changed(dtype=4), changed(shape=[3]), changed(shape=[-2]),
        changed(shape=[2**62, 2**62]), changed(shape="2"), changed(shape=[True, 2]), changed(extra=1), GOOD | {"a": []},
        {"b": GOOD["b"]}, GOOD | {"c": {"dtype": "U8", "shape": [1], "data_offsets": [11, 12]}}, [], b"{", b"\xff\xfe",
        b'{"a": 1, "a": 2}', GOOD | {"__metadata__": {"ckptd": json.dumps({"dtypes": {"b": "os.system"}})}},
        GOOD | {"__metadata__": {"ckptd": json.dumps({"dtypes": {"b": "complex128"}})}},
        GOOD | {"__metadata__": {"ckptd": json.dumps({"dtypes": {"z": "complex128"}})}},
    ],
)  # fmt: skip
def test_headers_that_do_not_agree_are_refused(tmp_path: Path, header: object) -> None:
    """Names, dtypes, shapes, offsets: whatever is not as the format says ends in one error that names the file."""
    with pytest.raises(CorruptionError, match=r"x\.safetensors: found"):
        of_files([written(tmp_path / "x.safetensors", header)])


@pytest.mark.parametrize(("data", "length"), [(bytes(11), None), (bytes(13), None), (bytes(12), 2**63), (b"", 10_000)])
def test_cut_files_and_wrong_header_lengths_are_refused(tmp_path: Path, data: bytes, length: int | None) -> None:
    """A file that was cut, one that is longer, a header longer than the file or than any."""
    with pytest.raises(CorruptionError, match="found"):
        of_files([written(tmp_path / "x.safetensors", GOOD, data, length)])


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 199), bit=st.integers(0, 7), cut=st.integers(0, 300))
def test_no_flipped_bit_or_cut_raises_anything_else(tmp_path_factory: Any, at: int, bit: int, cut: int) -> None:
    """What is damaged raises a CkptdError or is read as some tensors; nothing else ever comes out."""
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}.safetensors"
    raw = bytearray(written(path, GOOD).read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    path.write_bytes(raw[: len(raw) - cut % len(raw)] if cut > 150 else raw)
    with contextlib.suppress(CkptdError):
        assert held(of_files([path])).keys()


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    """Other writers may put a float after a byte; the format allows it."""
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    data = b"\x07" + struct.pack("<2f", 1.5, -2.0)
    found = of_files([written(tmp_path / "x.safetensors", header, data)])
    assert held(found) == told({"a": torch.tensor([7], dtype=torch.uint8), "b": torch.tensor([1.5, -2.0])})


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".hidden", "", 7, None, "x\0y", "a" * 300]
)
def test_an_index_names_only_files_beside_it(tmp_path: Path, file: object) -> None:
    """A name that leads out of the directory is refused before anything is opened."""
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    (tmp_path / "sub").mkdir()
    index = tmp_path / "sub" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CorruptionError, match="expected the plain name of a file beside it"):
        of_index(index)


@pytest.mark.parametrize("weights", [{"a": "x.safetensors", "b": "x.safetensors"}, {"b": "x.safetensors"}, {}, []])
def test_an_index_and_its_files_agree(tmp_path: Path, weights: object) -> None:
    """A name that the files lack, or have beyond it, is said."""
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(CorruptionError, match=r"lack 1 of its names \(b\)|weight_map is"):
        of_index(index)


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    """Which one was meant can't be known."""
    for name in ("x", "y"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CorruptionError, match="'a' is in another of the files too"), content_at(tmp_path, None, None):
        pass


def test_links_to_files_are_followed_and_nothing_else_is_waited_for(tmp_path: Path) -> None:
    """Hugging Face's cache is made of links; a fifo, a directory and a link to nothing are refused at once."""
    save_file({"a": torch.ones(2)}, tmp_path / "blob")
    (tmp_path / "x.safetensors").symlink_to("blob")
    with content_at(tmp_path / "x.safetensors", None, None) as found:
        assert held(found) == told({"a": torch.ones(2)})
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "lost.safetensors").symlink_to("nothing")
    for name in ("fifo.safetensors", "lost.safetensors"):
        with pytest.raises(StorageError):
            of_files([tmp_path / name])


def _step(path: Path) -> None:
    (path / "manifest.json").touch()
    (path / "rank-00000.safetensors").touch()


MAKERS: dict[str, Callable[[Path], None]] = {
    "step": _step,
    "dcp": lambda path: (path / ".metadata").touch(),
    "index": lambda path: (path / "model.safetensors.index.json").touch(),
    "safetensors": lambda path: (path / "a.safetensors").touch(),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_lies_there_is_told_by_its_names(tmp_path: Path, kind: str) -> None:
    """A persisted step, a DCP directory, safetensors with and without an index."""
    MAKERS[kind](tmp_path)
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(
    "names", [(), ("a.safetensors.index.json", "b.safetensors.index.json"), ("pytorch_model.bin",)]
)
def test_what_is_no_checkpoint_is_said(tmp_path: Path, names: tuple[str, ...]) -> None:
    """An empty directory, two models in one, a torch.save file that was not named."""
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="give the directory of one checkpoint"):
        kind_of(tmp_path)


def test_names_from_files_are_checked(tmp_path: Path) -> None:
    """A control character in a name would get into terminals and logs."""
    with pytest.raises(StateError, match="printable"):
        of_files([written(tmp_path / "x.safetensors", {"a\x1b[31m": GOOD["a"]}, bytes(8))])
