"""What is written is what stock tools read: bit by bit, whatever the names, shapes, dtypes and parts are."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.exchange.contents import KINDS, content_of_tensors, held, told, whole_of
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.errors import CorruptionError, StateError, UsageError
from ckptd.integrations.exchange import content as content_module
from ckptd.integrations.exchange.content import Content, Part, Whole
from ckptd.integrations.exchange.readers import content_at
from ckptd.integrations.exchange.writers import INDEX, extra_bytes, write

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.int8, torch.int64, torch.bool]
NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=5)
ignore: Callable[[int], None] = lambda _: None  # noqa: E731


def made(specs: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Tensors of these dtypes and shapes; all bits of an element are used, except in bools."""
    found = {}
    for name, (dtype, shape) in specs.items():
        raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8)
        found[name] = raw.view(dtype).reshape(shape)
    return found


@settings(max_examples=20, deadline=None)
@given(specs=TENSORS, parts=st.integers(1, 3), shard=st.sampled_from([0, 1, 60]))
def test_any_tensors_go_out_as_safetensors_and_come_back(
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]], parts: int, shard: int
) -> None:
    """The stock library reads the same bits from the shards, and so does the import, which holds them against the index."""
    tensors = made(specs)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write("safetensors", directory, content_of_tensors(tensors, parts), shard_bytes=shard, add=ignore)
        stock = [load_file(path) for path in directory.glob("*.safetensors")]
        assert sum(map(len, stock)) == len(tensors)
        assert told({name: tensor for found in stock for name, tensor in found.items()}) == told(tensors)
        with content_at(directory, None, None) as found:
            assert held(found) == told(tensors)


@settings(max_examples=15, deadline=None)
@given(specs=TENSORS, parts=st.integers(1, 3))
def test_any_tensors_go_out_as_torch_and_dcp(specs: dict[str, tuple[torch.dtype, tuple[int, ...]]], parts: int) -> None:
    """`torch.load(weights_only=True)` and `dcp.load` read the same bits."""
    tensors = made(specs)
    with tempfile.TemporaryDirectory() as folder:
        content = content_of_tensors(tensors, parts)
        for fmt in ("torch", "dcp"):
            (Path(folder) / fmt).mkdir()
            write(fmt, Path(folder) / fmt, content, shard_bytes=0, add=ignore)
        assert told(torch.load(Path(folder) / "torch" / "checkpoint.pt", weights_only=True)) == told(tensors)
        blank = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        dcp_load(blank, checkpoint_id=Path(folder) / "dcp", no_dist=True)
        assert told(blank) == told(tensors)


def test_dtypes_that_safetensors_lacks_come_back(tmp_path: Path) -> None:
    """complex128 travels as bytes, and the file says what they are."""
    write("safetensors", tmp_path, content_of_tensors(KINDS, 2, step=7), shard_bytes=0, add=ignore)
    with content_at(tmp_path / "model.safetensors", None, None) as found:
        assert held(found) == told(KINDS)
        assert found.step == 7


def test_shards_have_names_and_an_index_as_hugging_faces(tmp_path: Path) -> None:
    """At most so many bytes each, but never a tensor in two; metadata says pt; the index names every tensor's file."""
    tensors = {name: torch.zeros(size) for name, size in (("a", 10), ("b", 10), ("c", 100), ("d", 1))}
    write("safetensors", tmp_path, content_of_tensors(tensors), shard_bytes=80, add=ignore)
    index = json.loads((tmp_path / INDEX).read_text())
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert index == {
        "metadata": {"total_size": 484},
        "weight_map": {"a": files[0], "b": files[0], "c": files[1], "d": files[2]},
    }
    for file in files:
        raw = (tmp_path / file).read_bytes()
        assert json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["format"] == "pt"


def test_joining_takes_a_band_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of two ranks is joined in bands: no more than one is made, and the progress counts each byte once."""
    monkeypatch.setattr(content_module, "BAND", 64)
    tensor = torch.arange(400.0).view(100, 4)
    added: list[int] = []
    write("safetensors", tmp_path, content_of_tensors({"a": tensor}, 2), shard_bytes=0, add=added.append)
    assert max(added) == 64
    assert sum(added) == tensor.nbytes
    assert load_file(tmp_path / "model.safetensors")["a"].equal(tensor)


def test_torch_files_hold_no_more_than_the_tensors(tmp_path: Path) -> None:
    """A part that is a view of a whole mapped image is written by itself; only joined tensors take room beside."""
    image = torch.zeros(1_000_000)
    content = Content((whole_of("a", image[5:9]), whole_of("b", image[:8].view(4, 2), 2)))
    assert extra_bytes("torch", content) == 32
    write("torch", tmp_path, content, shard_bytes=0, add=ignore)
    assert (tmp_path / "checkpoint.pt").stat().st_size < 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_values_stay_in_dcp_and_are_named_where_they_are_left_out(tmp_path: Path) -> None:
    """What is no tensor goes into a DCP directory as it is; other formats say what they lack."""
    value = io.BytesIO()
    torch.save({"betas": (0.9, 0.999)}, value)
    content = Content(content_of_tensors({"a": torch.ones(2)}).tensors, {"opt": value.getvalue()}, {"opt": ("opt",)})
    for fmt, left_out in (("dcp", []), ("torch", ["opt"]), ("safetensors", ["opt"])):
        (tmp_path / fmt).mkdir()
        assert write(fmt, tmp_path / fmt, content, shard_bytes=0, add=ignore) == left_out
    found = {"a": torch.zeros(2), "opt": {}}
    dcp_load(found, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert found["opt"] == {"betas": (0.9, 0.999)}


def test_a_part_is_chosen_by_the_name_of_its_object() -> None:
    """Its own names; what several ranks have for themselves from the lowest; what one alone has (a pipeline's stage)."""
    named = {
        "model.w": 0, "model.stat": 1, "rank-00001.model.stat": 2, "rank-00002.model.late": 3, "optim.state.w": 4,
        "ckptd.state.rank-00000": 5,
    }  # fmt: skip
    content = content_of_tensors({name: torch.tensor(number) for name, number in named.items()})
    chosen = {tensor.name: int(next(tensor.bands())) for tensor in content.select("model", "").tensors}
    assert chosen == {"w": 0, "stat": 1, "late": 3}
    assert [tensor.name for tensor in content.select("model", "l").tensors] == ["ate", "stat", "w"]


@pytest.mark.parametrize(
    ("part", "strip", "message"),
    [
        ("modle", "", "there are: model"),
        (None, "x.", "begins with 'x.'"),
        ("model", "a.", "the name of another tensor"),
    ],
)
def test_what_can_not_be_chosen_is_said(part: str | None, strip: str, message: str) -> None:
    """A part that is not there, a prefix that no name has, two tensors that would get one name."""
    content = content_of_tensors({"model.a.b": torch.ones(1), "model.b": torch.ones(1)})
    with pytest.raises(UsageError, match=message):
        content.select(part, strip)


@pytest.mark.parametrize("name", ["__metadata__", "", "a\nb", "x" * 5000])
def test_names_that_no_file_can_hold_are_refused(tmp_path: Path, name: str) -> None:
    """By name, and in words."""
    with pytest.raises(StateError, match="rename it"):
        write("safetensors", tmp_path, content_of_tensors({name: torch.ones(1)}), shard_bytes=0, add=ignore)


@pytest.mark.parametrize(
    "boxes",
    [
        [Box((0,), (2,))],
        [Box((0,), (2,)), Box((1,), (3,))],
        [Box((0,), (5,))],
        [Box((0, 0), (4, 1))],
        [],
    ],
)
def test_parts_that_do_not_make_up_a_tensor_are_refused(boxes: list[Box]) -> None:
    """A hole, an overlap, a part that goes beyond, one of other dimensions, none."""
    with pytest.raises(CorruptionError, match="do not make up"):
        Whole.of("a", torch.float32, (4,), tuple(Part(box, lambda: torch.zeros(4)) for box in boxes))
