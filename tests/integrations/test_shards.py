"""Sharded state, all ranks of a mesh played one after the other: what each captures, and what each reads back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from tests.fakes import bits, capture_to, restore_from
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import StateError
from ckptd.ckpt.image import Entry
from ckptd.ckpt.model import Version
from ckptd.integrations.exchange.steps import content_of
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.shards import empty_as, layout_of, part_of
from ckptd.integrations.tensors import Mapping

VERSION = Version(1, 5)
WORLD = 4

LINE = torch.arange(4)
SQUARE = LINE.view(2, 2)
LAYOUTS: dict[str, tuple[torch.Tensor, list[Any]]] = {
    "rows": (LINE, [Shard(0)]),
    "columns": (LINE, [Shard(1)]),
    "replicated": (LINE, [Replicate()]),
    "hybrid": (SQUARE, [Replicate(), Shard(0)]),
    "hybrid columns": (SQUARE, [Shard(1), Replicate()]),
    "grid": (SQUARE, [Shard(0), Shard(1)]),
    "twice": (SQUARE, [Shard(0), Shard(0)]),
    "tensor parallel": (SQUARE, [_StridedShard(0, split_factor=2), Shard(0)]),
}


@contextmanager
def as_rank(rank: int, world: int = WORLD) -> Iterator[None]:
    """Be this rank of the world, in a process group that talks to nobody."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]  # it holds meshes, which hold this rank's coordinates
        dist.destroy_process_group()


def on_every_rank(work: Callable[[int], Any], world: int = WORLD) -> list[Any]:
    found = []
    for rank in range(world):
        with as_rank(rank, world):
            found.append(work(rank))
    return found


def local_of(whole: torch.Tensor, mesh: DeviceMesh, placements: list[Any]) -> torch.Tensor:
    """This rank's part by torch's own cutting, one dimension of the mesh after the other."""
    at = mesh.get_coordinate()
    assert at is not None
    for size, index, placement in zip(mesh.mesh.shape, at, placements, strict=True):
        if not isinstance(placement, Replicate):
            whole = placement._split_tensor(whole, size, with_padding=False, contiguous=True)[0][index]
    return whole.clone()


def spread(whole: torch.Tensor, layout: str) -> DTensor:
    """The tensor as this rank sees it."""
    ranks, placements = LAYOUTS[layout]
    mesh = DeviceMesh("cpu", ranks)
    local = local_of(whole, mesh, placements)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def module_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor))
    return module


def wholes() -> dict[str, torch.Tensor]:
    """Even and uneven lengths, fewer rows than ranks, and nothing at all."""
    sizes = {"even": (8, 4), "uneven": (7, 5), "few": (1, 3), "none": (0, 4), "large": (33, 8)}
    return {name: torch.rand(size) for name, size in sizes.items()}


def captured(tmp_path: Path, objects: Callable[[int], dict[str, Any]]) -> list[Found]:
    def capture(rank: int) -> Found:
        path = tmp_path / f"rank-{rank:05d}.safetensors"
        return capture_to(path, objects(rank), VERSION, ranks=Ranks(rank, WORLD))

    found: list[Found] = on_every_rank(capture)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_are_captured_once_and_found_by_stock_readers(tmp_path: Path, layout: str) -> None:
    """Each element is in one image; each image has about its part; DCP's reader and the export join the same tensors."""
    tensors = wholes()
    found = captured(tmp_path, lambda _: {"model": module_of({n: spread(t, layout) for n, t in tensors.items()})})
    names = {f"model.{name}": tensor for name, tensor in tensors.items()}
    sizes = [
        sum(t.numel() for name, t in safetensors.torch.load_file(image.path).items() if name in names)
        for image in found
    ]
    assert sum(sizes) == sum(tensor.numel() for tensor in tensors.values())
    assert max(sizes) < 0.4 * sum(sizes)
    joined = {tensor.name: tensor for tensor in content_of([image.path for image in found]).tensors}
    blank = {name: torch.zeros_like(tensor) for name, tensor in names.items()}
    dcp_load(blank, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    for name, tensor in names.items():
        assert b"".join(bits(band) for band in joined[name].bands()) == bits(tensor), name
        assert bits(blank[name]) == bits(tensor), name


@pytest.mark.parametrize(
    ("before", "after"), [*((layout, layout) for layout in LAYOUTS), ("rows", "hybrid"), ("grid", "tensor parallel")]
)
def test_every_rank_reads_its_part_back(tmp_path: Path, before: str, after: str) -> None:
    """In place and bit for bit, in the layout of the capture and in another one of as many ranks."""
    tensors = wholes()
    found = captured(tmp_path, lambda _: {"model": module_of({n: spread(t, before) for n, t in tensors.items()})})

    def restore(rank: int) -> None:
        live = module_of({name: spread(torch.zeros_like(tensor), after) for name, tensor in tensors.items()})
        local = {name: parameter._local_tensor for name, parameter in live.named_parameters()}  # type: ignore[attr-defined]
        restore_from(found, {"model": live}, VERSION, ranks=Ranks(rank, WORLD))
        for name, tensor in tensors.items():
            assert bits(local[name]) == bits(spread(tensor, after)._local_tensor), name

    on_every_rank(restore)


def test_a_rank_reads_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the others' images only headers are looked at, unless some of its rows lie there."""
    whole = torch.rand(8, 4)
    found = captured(tmp_path, lambda _: {"model": module_of({"w": spread(whole, "rows")})})
    opened: list[tuple[str, tuple[int, ...]]] = []
    tensor = Mapping.tensor

    def spy(mapping: Mapping, described: Entry, span: tuple[int, int]) -> torch.Tensor:
        opened.append((described.name, described.offsets))
        return tensor(mapping, described, span)

    monkeypatch.setattr(Mapping, "tensor", spy)
    for layout, rows in (("rows", [(6, 0)]), ("hybrid", [(4, 0), (6, 0)])):
        opened.clear()
        with as_rank(3):
            restore_from(found, {"model": module_of({"w": spread(whole, layout)})}, VERSION, ranks=Ranks(3, WORLD))
        assert [at for name, at in opened if name == "model.w"] == rows
        assert {name for name, _ in opened if name != "model.w"} == {
            "ckptd.state.rank-00003", "rank-00003.rng.numpy.state.key", "rank-00003.rng.python.1", "rank-00003.rng.torch"
        }  # fmt: skip


def test_replicated_state_is_read_into_shards_where_all_of_it_can_be(tmp_path: Path) -> None:
    """Parameters of DistributedDataParallel fit sharded ones; its optimizer's step, which each rank then has, does not."""
    whole = torch.rand(6, 3)

    def replicated(_: int, optimizer: bool) -> dict[str, Any]:
        model = DistributedDataParallel(module_of({"w": whole.clone()}))
        objects: dict[str, Any] = {"model": model}
        if optimizer:
            objects["optimizer"] = torch.optim.AdamW(model.parameters())
            model.module.w.grad = torch.ones(6, 3)
            objects["optimizer"].step()
        return objects

    found = captured(tmp_path, lambda rank: replicated(rank, optimizer=False))
    assert "rank-00001.model.w" not in safetensors.torch.load_file(found[1].path)
    with as_rank(1):
        live = module_of({"w": spread(torch.zeros(6, 3), "rows")})
        restore_from(found, {"model": live}, VERSION, ranks=Ranks(1, WORLD))
        assert bits(live.get_parameter("w")._local_tensor) == bits(whole[2:4])  # type: ignore[attr-defined]
    found = captured(tmp_path, lambda rank: replicated(rank, optimizer=True))
    with as_rank(1):
        live = module_of({"w": spread(torch.zeros(6, 3), "rows")})
        optimizer = torch.optim.AdamW(live.parameters())
        with pytest.raises(StateError, match=r"different: optimizer\.state\.w\.step"):
            restore_from(found, {"model": live, "optimizer": optimizer}, VERSION, ranks=Ranks(1, WORLD))
        assert not optimizer.state


class Odd(torch.optim.Optimizer):
    """State that is distributed like its parameter, otherwise, and not at all."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def fill(self, rank: int) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {
                "like": (torch.zeros_like(parameter) + 1.5),
                "norms": spread(torch.arange(4.0).view(4, 1), "replicated"),
                "own": torch.full((2,), float(rank)),
            }


def test_optimizer_state_is_made_anew_as_it_was_distributed(tmp_path: Path) -> None:
    """A fresh optimizer gets DTensors where there were some, with the same placements, and plain tensors elsewhere."""

    def objects(rank: int) -> dict[str, Any]:
        model = module_of({"w": spread(torch.rand(6, 2), "rows"), "plain": torch.rand(3)})
        optimizer = Odd([model.get_parameter("w")])
        optimizer.fill(rank)
        return {"model": model, "optimizer": optimizer}

    found = captured(tmp_path, objects)

    def restore(rank: int) -> None:
        live = objects(rank)
        w, optimizer = live["model"].get_parameter("w"), live["optimizer"]
        optimizer.state.clear()
        restore_from(found, live, VERSION, ranks=Ranks(rank, WORLD))
        state = optimizer.state[w]
        assert list(state) == ["like", "norms", "own"]
        assert (state["like"].placements, state["like"].shape) == (w.placements, w.shape)
        assert bits(state["like"]._local_tensor) == bits(torch.full_like(w._local_tensor, 1.5))
        assert state["norms"].placements == (Replicate(),)
        assert bits(state["norms"]._local_tensor) == bits(torch.arange(4.0))
        assert bits(state["own"]) == bits(torch.full((2,), float(rank)))

    on_every_rank(restore)


def test_meshes_of_a_part_of_the_ranks_are_told_apart(tmp_path: Path) -> None:
    """Two meshes may hold different tensors under one name: their entries carry the name of their first rank."""

    def parameter(rank: int, fill: float) -> DTensor:
        mesh = DeviceMesh("cpu", torch.tensor([0, 1]) if rank < 2 else torch.tensor([2, 3]))
        local = torch.full((2, 3), fill + rank // 2)
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size([4, 3]), stride=(3, 1))

    found = captured(tmp_path, lambda rank: {"model": module_of({"w": parameter(rank, 1.0)})})
    assert "rank-00002.model.w" in safetensors.torch.load_file(found[3].path)

    def restore(rank: int) -> None:
        live = module_of({"w": parameter(rank, 7.0)})
        restore_from(found, {"model": live}, VERSION, ranks=Ranks(rank, WORLD))
        assert bits(live.get_parameter("w")._local_tensor) == bits(torch.full((2, 3), 1.0 + rank // 2))  # type: ignore[attr-defined]

    on_every_rank(restore)


def test_replicas_among_a_part_of_the_ranks_split_what_they_share(tmp_path: Path) -> None:
    """Each process group captures its own tensors once, half by either of its ranks, and reads back its own."""

    def replicas(rank: int, fill: float) -> dict[str, Any]:
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        module = module_of({"w": torch.full((4, 3), fill + rank // 2)})
        return {"model": DistributedDataParallel(module, process_group=groups[rank // 2])}

    found = captured(tmp_path, lambda rank: replicas(rank, 1.0))
    images = [safetensors.torch.load_file(image.path) for image in found]
    assert [
        image[name].shape for image, name in zip(images, ["model.w"] * 2 + ["rank-00002.model.w"] * 2, strict=True)
    ] == [(2, 3)] * WORLD

    def restore(rank: int) -> None:
        live = replicas(rank, 7.0)
        restore_from(found, live, VERSION, ranks=Ranks(rank, WORLD))
        assert bits(live["model"].module.w) == bits(torch.full((4, 3), 1.0 + rank // 2))

    on_every_rank(restore)


def test_a_buffer_that_is_distributed_stays_with_its_rank(tmp_path: Path) -> None:
    """Buffers are copied at once, each rank its local part, under its own name."""

    def module(fill: float) -> nn.Module:
        made = nn.Module()
        made.register_buffer("b", spread(torch.full((6, 2), fill), "rows"))
        return made

    found = captured(tmp_path, lambda _: {"model": module(2.0)})

    def restore(rank: int) -> None:
        live = module(0.0)
        restore_from(found, {"model": live}, VERSION, ranks=Ranks(rank, WORLD))
        assert bool((live.b._local_tensor == 2.0).all())  # type: ignore[union-attr]

    on_every_rank(restore)


def test_what_cannot_be_expressed_is_refused_by_name() -> None:
    """Pending sums, scattered rows, local tensors of another shape, and DTensors inside of a state_dict()."""
    with as_rank(1):
        mesh = DeviceMesh("cpu", LINE)

        def made(local: torch.Tensor, placement: Any, shape: tuple[int, ...]) -> DTensor:
            size = torch.Size(shape)
            return DTensor.from_local(local, mesh, [placement], run_check=False, shape=size, stride=(1,) * len(size))

        for tensor, message in (
            (made(torch.ones(8), Partial(), (8,)), r"w: found a DTensor with placement P\(sum\), expected Shard"),
            (made(torch.ones(2), _StridedShard(0, split_factor=2), (8,)), "w: .* scattered over the whole"),
            (made(torch.ones(3), Shard(0), (8,)), r"w: found a local tensor of shape \[3\], expected \[2\]"),
        ):
            with pytest.raises(StateError, match=message):
                part_of("w", tensor, (1,))


class Keeper:
    """A Stateful object with a DTensor in its state."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor = state["shadow"]


def test_distributed_tensors_inside_a_state_dict_are_refused(tmp_path: Path) -> None:
    """What would come back as a plain tensor is refused at the capture, with the way out."""
    with (
        as_rank(0),
        pytest.raises(StateError, match=r"ema\.shadow: found a DTensor.*give the Checkpointer that module"),
    ):
        capture_to(tmp_path / "image", {"ema": Keeper(spread(torch.rand(4, 2), "rows"))}, VERSION)


def test_distributed_state_of_a_plain_parameter_is_refused(tmp_path: Path) -> None:
    """Nothing here would say on which mesh to make it anew."""
    with as_rank(0):
        model = module_of({"w": torch.rand(4, 2)})
        optimizer = Odd(model.parameters())
        optimizer.state[model.get_parameter("w")]["like"] = spread(torch.rand(4, 2), "rows")
        with pytest.raises(StateError, match=r"optimizer\.state\.w\.like: found a DTensor in the state of a parameter"):
            capture_to(tmp_path / "image", {"model": model, "optimizer": optimizer}, VERSION)


def test_a_rank_outside_of_a_mesh_has_no_part() -> None:
    """It captures nothing of such a tensor and is not asked for anything."""
    with as_rank(3):
        mesh = DeviceMesh("cpu", torch.tensor([0, 1]))
        tensor = DTensor.from_local(
            torch.empty(0), mesh, [Shard(0)], run_check=False, shape=torch.Size([4]), stride=(1,)
        )
        part = part_of("w", tensor, (3,))
        assert (part.box, part.holders, part.replicas) == (Box((0,), (0,)), (0, 1), ())


def test_layouts_have_words() -> None:
    """Every placement of an optimizer's state has a word, from which the same layout is made; other words are refused."""
    with as_rank(2):
        parameter = spread(torch.rand(8, 4), "hybrid")
        for first, second in product([Replicate(), Shard(0), Shard(1)], repeat=2):
            tensor = DTensor.from_local(
                local_of(torch.rand(8, 4), parameter.device_mesh, [first, second]),
                parameter.device_mesh, [first, second], run_check=False, shape=torch.Size([8, 4]), stride=(4, 1),
            )  # fmt: skip
            layout = layout_of("s", tensor, parameter)
            again = empty_as("s", parameter, layout, (8, 4), torch.float64, torch.device("cpu"))
            assert isinstance(again, DTensor)
            assert (again.placements, again.dtype) == (tensor.placements, torch.float64)
            assert again._local_tensor.shape == tensor._local_tensor.shape
        for layout, message in (
            ("R", "on a mesh of 2"),
            ("R Q", "expected words like"),
            ("R S0/0", "expected words like"),
            ("S0 S7", r"of shape \[8, 4\]"),
        ):
            with pytest.raises(StateError, match=message):
                empty_as("s", parameter, layout, (8, 4), torch.float32, torch.device("cpu"))
        other = spread(torch.rand(8, 4), "rows")
        with pytest.raises(StateError, match="on another mesh"):
            layout_of("s", other, parameter)
