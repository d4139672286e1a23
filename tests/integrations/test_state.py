"""Training state to images and back: bit-exact, without pickle, and refused by name where that is impossible."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.fakes import bits, capture_to, restore_from
from torch import nn

from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.image import STOCK
from ckptd.ckpt.model import Version
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.rng import Generators
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.state import TrainingState
from ckptd.integrations.tree import decode

VERSION = Version(1, 5)


class Edges(nn.Module):
    """Parameters and buffers of every dtype with arbitrary bits, and of every shape at the edge."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name in [*STOCK, "complex128", "float8_e8m0fnu"]:
            dtype = getattr(torch, name)
            raw = torch.randint(0, 2 if name == "bool" else 256, (6 * dtype.itemsize,), generator=generator)
            tensor = raw.to(torch.uint8).view(dtype).view(2, 3)
            self.register_parameter(f"p_{name}", nn.Parameter(tensor, requires_grad=False))
            self.register_buffer(f"b_{name}", tensor.flip(0) if dtype.itemsize > 1 and name[:6] != "float8" else tensor)
        base = torch.rand(4, 5, generator=generator)
        self.transposed = nn.Parameter(base.t(), requires_grad=False)
        self.strided = nn.Parameter(base[:, ::2], requires_grad=False)
        self.expanded = nn.Parameter(torch.rand(3, 1, generator=generator).expand(3, 4), requires_grad=False)
        self.scalar = nn.Parameter(torch.rand((), generator=generator))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.tied = self.scalar
        self.register_buffer("conjugate", torch.rand(3, dtype=torch.complex64, generator=generator).conj())
        self.register_buffer("scratch", torch.rand(3, generator=generator), persistent=False)


def test_edge_tensors_survive(tmp_path: Path) -> None:
    """Every dtype, 0-dim, empty, non-contiguous, expanded and tied tensors come back bit for bit, in place."""
    saved, live = Edges(1), Edges(2)
    found = capture_to(tmp_path / "image", {"model": saved}, VERSION)
    before = {name: tensor.data_ptr() for name, tensor in live.named_parameters()}
    scratch = bits(live.get_buffer("scratch"))
    restore_from([found], {"model": live}, VERSION)
    for name, tensor in saved.state_dict().items():
        assert bits(live.state_dict()[name].resolve_conj()) == bits(tensor.resolve_conj()), name
    assert {name: tensor.data_ptr() for name, tensor in live.named_parameters()} == before
    assert live.tied is live.scalar
    assert bits(live.get_buffer("scratch")) == scratch
    names = safetensors.torch.load_file(found.path).keys()
    assert {"model.tied", "model.scalar", "model.expanded", "model.conjugate"} <= names
    assert "model.scratch" not in names


class Wrapper(nn.Module):
    """What torch.compile makes, without the time it takes to import it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_wrappers_leave_no_trace_in_names(tmp_path: Path) -> None:
    """A model captured compiled is restored into the plain one: names are those of the unwrapped module."""
    plain_, inner = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    found = capture_to(tmp_path / "image", {"model": Wrapper(nn.Sequential(Wrapper(inner)))}, VERSION)
    restore_from([found], {"model": plain_}, VERSION)
    assert torch.equal(plain_.get_parameter("0.weight"), inner.weight)
    inner.register_module("late", nn.Linear(1, 1))  # a change of the tree is noticed
    state = TrainingState({"model": Wrapper(inner)}, 0)
    assert {leaf.name for leaf in state.lazy()} >= {"model.weight", "model.late.bias"}
    inner.late = nn.Identity()
    assert {leaf.name for leaf in state.lazy()} == {"model.weight", "model.bias"}


class Odd(torch.optim.Optimizer):
    """State of every kind: plain values, None, nested tensors, float32 beside bfloat16, a key that is no parameter."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": torch.tensor(0.25), "betas": (0.5, 0.75)})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["master"] = torch.rand(p.shape)
                state["history"] = [torch.rand(2), None]
                state["none"] = None
        self.state["all"] = {"count": 7}  # type: ignore[index]


def test_optimizer_state_is_not_cast(tmp_path: Path) -> None:
    """float32 state of bfloat16 parameters, plain values and nested tensors come back as they were; lr stays itself."""
    saved, live = (nn.Linear(2, 2, dtype=torch.bfloat16) for _ in range(2))
    free, free_live = torch.rand(2), torch.rand(2)
    optimizer, fresh = (
        Odd([{"params": saved.parameters()}, {"params": [free]}]),
        Odd([{"params": live.parameters()}, {"params": [free_live]}]),
    )
    optimizer.step()
    optimizer.param_groups[0]["lr"].fill_(0.125)
    found = capture_to(tmp_path / "image", {"model": saved, "optimizer": optimizer}, VERSION)
    assert {"optimizer.state.weight.master", "optimizer.state.param_1_0.master"} <= safetensors.torch.load_file(
        found.path
    ).keys()
    fresh.step()
    lr = fresh.param_groups[0]["lr"]
    kept = fresh.state[live.weight]["master"]
    restore_from([found], {"model": live, "optimizer": fresh}, VERSION)
    for ours, theirs in ((live.weight, saved.weight), (live.bias, saved.bias), (free_live, free)):
        state, expected = fresh.state[ours], optimizer.state[theirs]
        assert state.keys() == expected.keys()
        assert state["master"].dtype == torch.float32
        assert bits(state["master"]) == bits(expected["master"])
        assert (state["step"], state["none"]) == (1, None)
        assert bits(state["history"][0]) == bits(expected["history"][0])
    assert fresh.state[live.weight]["master"] is kept
    assert fresh.param_groups[0]["lr"] is lr
    assert float(lr) == 0.125
    assert fresh.param_groups[0]["betas"] == (0.5, 0.75)
    assert fresh.state["all"] == {"count": 7}  # type: ignore[index]


def test_the_document_follows_every_change_of_an_option() -> None:
    """Options that are told from memory are told anew when they are replaced, renamed, removed or written in place."""
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.5)
    group = optimizer.param_groups[0]
    state = TrainingState({"optimizer": optimizer}, 1)
    state.lazy()

    def told() -> Any:
        tensors, document = state.eager()
        options = json.loads(document)["optimizer"]["groups"][0]["options"]
        return decode(options, lambda name: tensors[name])

    def expected() -> Any:
        return {key: value for key, value in group.items() if key != "params"}

    group["plan"], group["betas"], group["$odd"] = [1, 2], (0.1, [3]), None
    assert told() == expected()
    del group["$odd"]
    for change in (
        lambda: None,
        lambda: group.update(lr=0.25),
        lambda: group["plan"].append(3),
        lambda: group["betas"][1].append(4),
        lambda: group.update(fresh=group.pop("nesterov")),
        lambda: group.update(lr=torch.tensor(0.5)),
        lambda: group["lr"].mul_(2.0),
        lambda: group.pop("plan"),
    ):
        change()
        assert told() == expected()


def test_state_that_was_not_there_is_removed(tmp_path: Path) -> None:
    """Restoring a snapshot from before the first update leaves no momentum behind."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = capture_to(tmp_path / "image", {"model": model, "optimizer": optimizer}, VERSION)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    restore_from([found], {"model": model, "optimizer": optimizer}, VERSION)
    assert not optimizer.state


def test_two_models_share_an_optimizer(tmp_path: Path) -> None:
    """Parameters of several models are told apart in the optimizer's names."""
    g, d = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*g.parameters(), *d.parameters()])
    (g(torch.ones(1, 2)) + d(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    found = capture_to(tmp_path / "image", {"g": g, "d": d, "opt": optimizer}, VERSION)
    names = safetensors.torch.load_file(found.path).keys()
    assert {"g.weight", "d.weight", "opt.state.g.weight.exp_avg", "opt.state.d.weight.exp_avg"} <= names


class Extra(nn.Module):
    """A module with an extra state."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def get_extra_state(self) -> Any:
        return {"value": self.value, "amax": torch.full((2,), float(self.value))}

    def set_extra_state(self, state: Any) -> None:
        self.value = state["value"]


def test_extra_state_of_modules_survives(tmp_path: Path) -> None:
    """`get_extra_state` is captured and given to `set_extra_state`."""
    live = nn.Sequential(Extra(2))
    restore_from(
        [capture_to(tmp_path / "image", {"model": nn.Sequential(Extra(1))}, VERSION)], {"model": live}, VERSION
    )
    assert live[0].value == 1


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    """Python, numpy and torch draw the same numbers after a restore."""

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))]

    before = Generators().state_dict()
    random.gauss(0, 1)  # leaves a second value behind
    found = capture_to(tmp_path / "image", {}, VERSION)
    first = draw()
    restore_from([found], {}, VERSION)
    assert draw() == first
    Generators().load_state_dict(before)


def objects(width: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(2, width, dtype=dtype), nn.BatchNorm1d(width, dtype=dtype))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 2, dtype=dtype)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}


def changed(what: str) -> dict[str, Any]:
    made = objects(4 if what == "shape" else 3, torch.float64 if what == "dtype" else torch.float32)
    if what == "surplus object":
        del made["scheduler"]
    elif what == "missing object":
        made["data"] = Generators()
    elif what == "missing tensor":
        made["model"].append(nn.Linear(1, 1))
    elif what == "surplus tensor":
        del made["model"][1]
        made["optimizer"].param_groups[0]["params"][2:] = []
    elif what == "groups":
        made["optimizer"].add_param_group({"params": [torch.ones(1)]})
    elif what == "optimizer dtype":
        made["optimizer"].state[made["model"][0].weight]["exp_avg"] = torch.ones(3, 2, dtype=torch.float64)
    return made


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("shape", r"model\.0\.weight \(float32 \[3, 2\] in the snapshot, float32 \[4, 2\] here\)"),
        ("dtype", r"model\.0\.weight \(float32 \[3, 2\] in the snapshot, float64 \[3, 2\] here\)"),
        ("surplus object", "only in it: scheduler"),
        ("missing object", "missing in it: data"),
        ("missing tensor", r"missing in it: model\.2\.weight, model\.2\.bias"),
        ("surplus tensor", r"only in it: model\.1\.bias"),
        ("groups", r"optimizer\.param_groups \(\[4\] parameters per group in the snapshot, \[4, 1\] here"),
        ("optimizer dtype", r"optimizer\.state\.0\.weight\.exp_avg \(float32"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path, what: str, message: str) -> None:
    """A missing or surplus entry, another shape or dtype is a StateError with names; no byte was written."""
    found = capture_to(tmp_path / "image", objects(), VERSION)
    live = changed(what)
    before = {name: bits(tensor) for name, tensor in live["model"].state_dict().items()}
    random_before = torch.get_rng_state()
    with pytest.raises(StateError, match=message):
        restore_from([found], live, VERSION)
    assert {name: bits(tensor) for name, tensor in live["model"].state_dict().items()} == before
    assert torch.equal(torch.get_rng_state(), random_before)


class ShardedTensor(torch.Tensor):
    """Looks sharded."""


class ZeroRedundancyOptimizer(torch.optim.SGD):
    """Looks sharded."""


def sharded() -> nn.Module:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.ones(2).as_subclass(ShardedTensor)))
    return module


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"data": [1, 2]}, "data: found a list, expected a module"),
        ({"model": nn.Linear}, "model: found a type"),
        ({"rng": nn.Linear(1, 1)}, "'rng': expected a Python identifier"),
        ({"rank-00001": nn.Linear(1, 1)}, "'rank-00001': expected a Python identifier"),
        ({"model": sharded()}, r"model\.weight: found a ShardedTensor, expected a whole local tensor"),
        ({"model": nn.LazyLinear(2)}, r"model\.weight: not initialized yet; run one forward"),
        (
            {"optimizer": ZeroRedundancyOptimizer([torch.ones(1)])},
            "found a ZeroRedundancyOptimizer.*shard with fully_shard",
        ),
    ],
    ids=["list", "class", "reserved", "prefix", "ShardedTensor", "lazy", "ZeRO"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_objects_that_cannot_be_captured(tmp_path: Path, given_: dict[str, Any], message: str) -> None:
    """What is no module, optimizer or Stateful, or is sharded, is a StateError that says what to do."""
    with pytest.raises(StateError, match=message):
        capture_to(tmp_path / "image", given_, VERSION)


def test_every_rank_restores_its_own(tmp_path: Path) -> None:
    """Without DDP each rank's tensors are its own, under its prefix; rank 0's names are plain for stock readers."""
    ranks = [Ranks(rank, 2) for rank in range(2)]
    models = [nn.Linear(2, 2) for _ in ranks]
    found = [
        capture_to(tmp_path / f"image{r.rank}", {"model": m}, VERSION, ranks=r)
        for r, m in zip(ranks, models, strict=True)
    ]
    assert "model.weight" in safetensors.torch.load_file(found[0].path)
    assert "rank-00001.model.weight" in safetensors.torch.load_file(found[1].path)
    for r, expected in zip(ranks, models, strict=True):
        live = nn.Linear(2, 2)
        restore_from(found, {"model": live}, VERSION, ranks=r)
        assert torch.equal(live.weight, expected.weight)


def test_images_must_be_what_they_were_announced_as(tmp_path: Path) -> None:
    """Another step, job, rank or number of ranks, a missing image or a resized file is a CorruptionError."""
    found = capture_to(tmp_path / "image", {"model": nn.Linear(1, 1)}, VERSION)
    other = capture_to(tmp_path / "other", {"model": nn.Linear(1, 1)}, VERSION, ranks=Ranks(0, 2))
    for images, version, job, world in (
        ([found], Version(1, 6), "job", 1),
        ([found], Version(2, 5), "job", 1),
        ([found], VERSION, "other", 1),
        ([found], VERSION, "job", 2),
        ([other], VERSION, "job", 1),
        ([], VERSION, "job", 1),
        ([Found(0, found.path, found.size + 1, "own")], VERSION, "job", 1),
        ([Found(0, tmp_path / "none", found.size, "own")], VERSION, "job", 1),
        ([other, Found(1, other.path, other.size, "own")], VERSION, "job", 2),
    ):
        with pytest.raises(CorruptionError):
            Snapshot(images, version, job, world)
