"""Pickles are read as symbols: what DCP writes is understood, what anybody else writes is refused, and nothing is called."""

from __future__ import annotations

import contextlib
import os
import pickle  # noqa: TID251 - to write what must be refused
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ckptd.ckpt.errors import CorruptionError
from ckptd.integrations.exchange.distcp import listing_of
from ckptd.integrations.exchange.symbols import Made, Pairs, tree_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


class Calls:
    """Has a pickle call whatever it is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def plainly(value: Any) -> Any:
    """A tree with dicts again."""
    if isinstance(value, Pairs):
        return {key: plainly(item) for key, item in value}
    return type(value)(map(plainly, value)) if isinstance(value, list | tuple) else value


@settings(max_examples=60, deadline=None)
@given(value=VALUES, protocol=st.integers(3, 5))
def test_plain_values_are_what_they_were(value: Any, protocol: int) -> None:
    """Numbers, texts, bytes, lists, tuples, dicts, in every protocol that has bytes."""
    assert plainly(tree_of(pickle.dumps(value, protocol=protocol))) == value


def test_nothing_is_called(tmp_path: Path) -> None:
    """A call is a symbol with its name and its arguments."""
    found = tree_of(pickle.dumps(Calls(os.system, f"touch {tmp_path / 'done'}")))
    assert isinstance(found, Made)
    assert (found.name, found.arguments) == ("posix.system", (f"touch {tmp_path / 'done'}",))
    assert not list(tmp_path.iterdir())


@settings(max_examples=80, deadline=None)
@given(content=st.binary(max_size=60) | VALUES.map(pickle.dumps).flatmap(
    lambda raw: st.tuples(st.just(raw), st.integers(0, len(raw) - 1), st.integers(0, 255)).map(
        lambda made: made[0][: made[1]] + bytes([made[2]]) + made[0][made[1] + 1 :]
    )
))  # fmt: skip
def test_damaged_pickles_raise_one_error(content: bytes) -> None:
    """Random bytes, and pickles with one byte changed: a tree or a CorruptionError, never anything else."""
    with contextlib.suppress(CorruptionError):
        tree_of(content)


def test_what_dcp_writes_is_understood(tmp_path: Path) -> None:
    """Names, dtypes, shapes, places and the nested paths are those of DCP's own reader."""
    state = {
        "model": {"w": torch.randn(4, 5), "b": torch.randn(3).bfloat16(), "s": torch.tensor(1), "e": torch.zeros(0, 2)}
    }
    dcp_save(state | {"lr": 0.5}, checkpoint_id=tmp_path, no_dist=True)
    found = listing_of((tmp_path / ".metadata").read_bytes())
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()} == {
        f"model.{name}": (tensor.dtype, tuple(tensor.shape)) for name, tensor in state["model"].items()
    }
    assert found.paths["model.w"] == ("model", "w")
    assert list(found.values) == ["lr"]
    pieces = [chunk.piece for tensor in found.tensors.values() for chunk in tensor.chunks] + list(found.values.values())
    assert {piece.file for piece in pieces} == {"__0_0.distcp"}
    assert sum(piece.length for piece in pieces) == (tmp_path / "__0_0.distcp").stat().st_size


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "a/b", ".hidden", ""])
def test_metadata_names_only_files_in_its_directory(tmp_path: Path, file: str) -> None:
    """A way out of the directory is refused by name."""
    dcp_save({"a": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())  # noqa: S301 - just written here
    for info in metadata.storage_data.values():
        info.relative_path = file
    with pytest.raises(CorruptionError, match="expected the plain name of a file in the directory"):
        listing_of(pickle.dumps(metadata))


@pytest.mark.parametrize(
    "value",
    [
        None, {}, [], "x", Calls(os.getcwd), Calls(torch.distributed.checkpoint.metadata.Metadata, {}),
        {"state_dict_metadata": {}},
    ],
)  # fmt: skip
def test_other_pickles_are_no_metadata(value: Any) -> None:
    """Whatever else a pickle holds is refused, and said."""
    with pytest.raises(CorruptionError, match=r"expected a Metadata of torch\.distributed\.checkpoint"):
        listing_of(pickle.dumps(value))


def test_a_chunk_beyond_its_tensor_is_refused(tmp_path: Path) -> None:
    """Shapes, boxes and places have to agree."""
    dcp_save({"a": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())  # noqa: S301 - just written here
    metadata.state_dict_metadata["a"].size = torch.Size([1])
    with pytest.raises(CorruptionError, match="is no part of"):
        listing_of(pickle.dumps(metadata))
    metadata.storage_data.clear()
    with pytest.raises(CorruptionError, match="does not say where"):
        listing_of(pickle.dumps(metadata))
