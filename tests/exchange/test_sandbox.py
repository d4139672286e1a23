"""Pickles of somebody else: opened in a child with limits, or refused in one clear line; the good comes through whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle  # noqa: TID251 - to write what must be refused
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exchange.contents import KINDS, content_of_tensors, held, told
from tests.exchange.test_symbols import Calls
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ckptd.ckpt.errors import CkptdError, CorruptionError, StateError, StorageError
from ckptd.integrations.exchange import sandbox, sandboxed
from ckptd.integrations.exchange.readers import content_at
from ckptd.integrations.exchange.sandboxed import Limits, opened
from ckptd.integrations.exchange.writers import write
from ckptd.integrations.importing import import_step

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def read_all(path: Path) -> list[torch.Tensor]:
    """Every part of a DCP directory."""
    return [part() for part in sandbox._dcp_directory(path).parts]


def values_of(objects: dict[str, bytes]) -> dict[str, Any]:
    """What DCP's planner makes of them."""
    return {name: torch.load(io.BytesIO(raw), weights_only=True) for name, raw in objects.items()}


@pytest.mark.slow
def test_a_torch_file_comes_through(tmp_path: Path) -> None:
    """Every dtype, 0-d and empty ones, tied and turned tensors, parameters, nested dicts and lists, plain values."""
    tied, turned = torch.randn(4), torch.randn(4, 6).T
    state = {
        "kinds": KINDS, "tied": [tied, tied[1:3]], "turned": turned, "one": torch.randn(1).expand(3, 2),
        "p": torch.nn.Parameter(torch.ones(2)), "lr": 0.5, "betas": (0.9, 0.999), "state": {0: {"step": torch.tensor(3.0)}},
    }  # fmt: skip
    torch.save(state, tmp_path / "x.pt")
    with content_at(tmp_path / "x.pt", None, None) as found:
        wanted = {f"kinds.{name}": tensor for name, tensor in KINDS.items()}
        wanted |= {"tied.0": tied, "tied.1": tied[1:3], "turned": turned, "one": state["one"], "p": torch.ones(2)}  # type: ignore[dict-item]
        assert held(found) == told(wanted | {"state.0.step": torch.tensor(3.0)})
        assert values_of(found.objects) == {"lr": 0.5, "betas": (0.9, 0.999)}
        assert found.paths["state.0.step"] == ("state", "0", "step")


class Here:
    """A child that is no process."""

    def __init__(self, opened: sandbox._Held) -> None:
        self._opened = opened

    def part(self, number: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        return self._opened.parts[number]()


def test_a_dcp_directory_comes_through(tmp_path: Path) -> None:
    """Parts of several ranks, as an export writes them."""
    write("dcp", tmp_path, content_of_tensors(KINDS, 3), shard_bytes=0, add=lambda _: None)
    opened = sandbox._dcp_directory(tmp_path)
    assert len(opened.parts) > len(KINDS)
    found = sandboxed._content(bytearray(json.dumps(opened.listing).encode()), Here(opened))  # type: ignore[arg-type]
    assert held(found) == told(KINDS)


TENSOR = {"name": "a", "dtype": "float32", "shape": [2], "parts": [[[0], [2], 0]]}
NOTHING: dict[str, Any] = {"tensors": [], "values": {}, "paths": {}}


@pytest.mark.parametrize(
    "listing",
    [
        [], {"tensors": []}, NOTHING | {"tensors": [TENSOR, TENSOR]}, NOTHING | {"tensors": [TENSOR], "values": {"a": 1}},
        *(NOTHING | {"tensors": [TENSOR | {key: value}]} for key, value in (
            ("name", 3), ("name", "a\n"), ("dtype", "load"), ("dtype", "float99"), ("shape", [3]), ("shape", [-2]),
            ("parts", []), ("parts", [[[0], [1], 0]]), ("parts", [[[1], [2], 0]]), ("parts", [[[0], [2], -1]]),
            ("parts", [3]),
        )),
        NOTHING | {"paths": {"a": "b"}}, NOTHING | {"paths": {"a": [None]}}, NOTHING | {"values": {"a": {"$tensor": "x"}}},
        NOTHING | {"values": {"a": {"$nothing": 1}}}, NOTHING | {"tensors": [3]},
    ],
)  # fmt: skip
def test_a_listing_is_not_believed(listing: object) -> None:
    """What a child says is held against itself, as if somebody had taken it over."""
    with pytest.raises(CkptdError):
        sandboxed._content(bytearray(json.dumps(listing).encode()), Here(sandbox._Held({}, [])))  # type: ignore[arg-type]


@contextlib.contextmanager
def child(script: str, limits: Limits) -> Iterator[sandboxed._Child]:
    """One that runs a shell script."""
    with subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield sandboxed._Child(process, Path("x.pt"), limits)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exec sleep 60", "took more than 0.2 s and was ended; raise --time-limit"),
        ("printf 12345; exec sleep 60", "took more than 0.2 s"),
    ],
)
def test_a_child_that_takes_too_long_is_given_up(script: str, message: str) -> None:
    """It says nothing, or stops in the middle."""
    with child(script, Limits(100, 0.2)) as found, pytest.raises(CorruptionError, match=message):
        found.answer(10)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", r"ended with code 3; .* needs more memory than 100 bytes \(--memory-limit\)"),
        ("head -c 9 /dev/zero | tr '\\0' '\\377'; exec sleep 60", "an answer of 18446744073709551615 bytes"),
        (r"printf '\1\4\0\0\0\0\0\0\0oops'", "oops"),
    ],
)
def test_a_child_that_misbehaves_is_told_apart(script: str, message: str) -> None:
    """By how it ended, by announcing more than there can be, or in its own words."""
    with child(script, Limits(100, 60.0)) as found, pytest.raises(CorruptionError, match=message):
        found.answer(10)


@pytest.mark.slow
def test_a_malicious_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """The error names what would have been called; it was not called, and no step was begun."""
    torch.save({"a": Calls(os.system, f"touch {tmp_path / 'done'}")}, tmp_path / "x.pt")
    message = r"opening it would call 'posix\.system', which was not done"
    asked = {"source": str(tmp_path / "x.pt"), "storage": str(tmp_path / "root"), "job": "job", "step": None}
    with pytest.raises(CorruptionError, match=message) as caught:
        import_step(asked | {"memory": None, "time_s": None})
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.slow
def test_the_child_has_little_memory(tmp_path: Path) -> None:
    """What takes more than its limit fails, and the error says which limit to raise."""
    torch.save(
        {"a": torch.zeros(50_000_000, dtype=torch.uint8)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False
    )
    with (
        pytest.raises(CorruptionError, match="--memory-limit"),
        opened("torch", tmp_path / "x.pt", Limits(10 << 20, 60.0)),
    ):
        pass


def test_the_limits_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """So much more memory than there is, no file that could be written, no core."""
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update({kind: pair}))
    sandbox._limit(1 << 20)
    assert limits[resource.RLIMIT_FSIZE] == limits[resource.RLIMIT_CORE] == (0, 0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    assert limits[resource.RLIMIT_AS][0] < pages * resource.getpagesize() + (1 << 26)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.ones(1)], "expected a dict of tensors and values"),
        (torch.ones(1), "expected a dict of tensors and values"),
        ({"a": {1: torch.ones(1), "1": torch.ones(1)}}, "rename one of them"),
        ({"a": torch.eye(2).to_sparse()}, "a: found a Tensor"),
        ({"a": (torch.ones(1), 2)}, "found tensors inside a tuple"),
    ],
)
def test_states_that_no_step_can_hold_are_refused(tmp_path: Path, state: object, message: str) -> None:
    """Each by what it is."""
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(StateError, match=message):
        sandbox._torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("cut", [1, 200, 900])
def test_cut_torch_files_are_damaged(tmp_path: Path, cut: int) -> None:
    """Wherever the end is missing."""
    torch.save({"a": torch.ones(200)}, tmp_path / "x.pt")
    raw = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(raw[:-cut])
    with pytest.raises(CorruptionError, match=r"x\.pt is damaged, or no file of torch\.save"):
        sandbox._torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", pickle.dumps({"a": Calls(os.getcwd)}), b"PK\x03\x04" + bytes(40)]
)
def test_what_torch_did_not_write_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, half a pickle, a plain pickle, half a zip archive."""
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CorruptionError):
        sandbox._torch_file(tmp_path / "x.pt")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    """Nor anything else that is no file."""
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(StorageError, match="is no file"):
        sandbox._torch_file(tmp_path / "x.pt")


def test_a_cut_dcp_directory_is_damaged(tmp_path: Path) -> None:
    """A file that is shorter than the metadata says, one that is missing, a value that wants something called."""
    dcp_save({"a": torch.ones(100), "v": 1}, checkpoint_id=tmp_path, no_dist=True)
    data = tmp_path / "__0_0.distcp"
    raw = data.read_bytes()
    data.write_bytes(raw[:-1])
    with pytest.raises(CkptdError, match="the file was cut"):
        read_all(tmp_path)
    data.unlink()
    with pytest.raises(StorageError, match="cannot read"):
        sandbox._dcp_directory(tmp_path)


def test_values_in_a_dcp_directory_are_plain(tmp_path: Path) -> None:
    """DCP would unpickle anything: an import takes plain values and names the one that is not."""
    dcp_save({"a": torch.ones(2), "bad": Calls(os.getcwd)}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(CorruptionError, match=r"bad in __0_0\.distcp: it holds more than tensors and plain values"):
        sandbox._dcp_directory(tmp_path)


def test_a_chunk_is_what_the_metadata_says(tmp_path: Path) -> None:
    """Another directory's data file has other shapes at the same places."""
    for name, tensor in (("x", torch.ones(4)), ("y", torch.ones(2, 2))):
        dcp_save({"a": tensor}, checkpoint_id=tmp_path / name, no_dist=True)
    (tmp_path / "y" / "__0_0.distcp").rename(tmp_path / "x" / "__0_0.distcp")
    (part,) = sandbox._dcp_directory(tmp_path / "x").parts
    with pytest.raises(CkptdError, match=r"a: found|the file was cut"):
        part()
