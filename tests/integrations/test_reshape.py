"""More or fewer ranks than captured the snapshot, played one after the other: what each takes over, and what is refused."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fakes import FakeChannel, bits, capture_to, restore_from
from tests.integrations.test_shards import local_of, module_of, on_every_rank, wholes
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import StateError, Unrecoverable
from ckptd.ckpt.model import PIECE, Version
from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.restore import Restore
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.state import TrainingState

VERSION = Version(1, 5)
Objects = dict[str, Any]
LAYOUTS: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "one": ((1,), [Shard(0)]),
    "two rows": ((2,), [Shard(0)]),
    "three rows": ((3,), [Shard(0)]),
    "five columns": ((5,), [Shard(1)]),
    "two alike": ((2,), [Replicate()]),
    "hybrid": ((2, 2), [Replicate(), Shard(0)]),
    "grid": ((2, 3), [Shard(1), Shard(0)]),
    "tensor parallel": ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
}
"""Shape of the mesh and placements."""


def spread(whole: torch.Tensor, layout: str) -> DTensor:
    """The tensor as this rank sees it."""
    shape, placements = LAYOUTS[layout]
    mesh = DeviceMesh("cpu", torch.arange(world_of(layout)).view(shape))
    local = local_of(whole, mesh, placements)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def world_of(layout: str) -> int:
    return int(np.prod(LAYOUTS[layout][0]))


def captured(tmp_path: Path, world: int, objects: Callable[[int], Objects]) -> list[Found]:
    """The images of these ranks."""

    def capture(rank: int) -> Found:
        return capture_to(tmp_path / f"rank-{rank:05d}", objects(rank), VERSION, ranks=Ranks(rank, world))

    found: list[Found] = on_every_rank(capture, world)
    return found


def adamw(module: nn.Module, *, steps: int = 1) -> torch.optim.Optimizer:
    """With a state of its own for each parameter."""
    optimizer = torch.optim.AdamW(module.parameters())
    for step in range(steps):
        for number, parameter in enumerate(module.parameters()):
            parameter.grad = torch.full_like(parameter, 0.5 + number + step)
        optimizer.step()
    return optimizer


def full(layout: str, tensors: dict[str, torch.Tensor]) -> Objects:
    model = module_of({name: spread(tensor, layout) for name, tensor in tensors.items()})
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("hybrid", "two rows"),
        ("two rows", "three rows"),
        ("three rows", "one"),
        ("one", "grid"),
        ("grid", "hybrid"),
        ("five columns", "tensor parallel"),
        ("tensor parallel", "five columns"),
        ("two alike", "three rows"),
        ("three rows", "two alike"),
    ],
)
def test_every_rank_assembles_its_part(tmp_path: Path, before: str, after: str) -> None:
    """Parameters and moments of any layout are read into any other, bit for bit, whatever the lengths."""
    tensors = {name: tensor for name, tensor in wholes().items() if name in ("uneven", "few", "large")}
    moments = {name: tensor * 3.0 for name, tensor in tensors.items()}

    def filled(_: int) -> Objects:
        objects = full(before, tensors)
        for name, parameter in objects["model"].named_parameters():
            state = {"step": torch.tensor(7.0), "exp_avg": spread(moments[name], before)}
            objects["optimizer"].state[parameter] = state
        return objects

    found = captured(tmp_path, world_of(before), filled)

    def restore(rank: int) -> None:
        live = full(after, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
        restore_from(found, live, VERSION, ranks=Ranks(rank, world_of(after)))
        for name, parameter in live["model"].named_parameters():
            state = live["optimizer"].state[parameter]
            assert bits(parameter._local_tensor) == bits(spread(tensors[name], after)._local_tensor), name
            assert bits(state["exp_avg"]._local_tensor) == bits(spread(moments[name], after)._local_tensor), name
            assert bits(state["step"]) == bits(torch.tensor(7.0))

    on_every_rank(restore, world_of(after))


def test_replicated_state_is_gathered_and_spread(tmp_path: Path) -> None:
    """What DDP's ranks have split comes to other replicas, plain ranks and shards, the optimizer's step included."""

    def replicas(value: torch.Tensor) -> nn.Module:
        return DistributedDataParallel(module_of({"w": value.clone()}))

    whole = torch.rand(7, 3)

    def trained(_: int) -> Objects:
        model = replicas(whole)
        return {"model": model, "optimizer": adamw(model)}

    found = captured(tmp_path, 3, trained)
    reference = module_of({"w": whole.clone()})
    moment = adamw(reference).state[reference.get_parameter("w")]["exp_avg"]

    def restore(make: Callable[[torch.Tensor], nn.Module], part: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        def live(rank: int) -> None:
            model = make(torch.zeros(7, 3))
            optimizer = torch.optim.AdamW(model.parameters())
            restore_from(found, {"model": model, "optimizer": optimizer}, VERSION, ranks=Ranks(rank, 2))
            (parameter,) = model.parameters()
            state = optimizer.state[parameter]
            assert bits(local(parameter)) == bits(part(reference.get_parameter("w").detach()))
            assert bits(local(state["exp_avg"])) == bits(part(moment))
            assert bits(state["step"]) == bits(torch.tensor(1.0))

        return live

    def local(tensor: torch.Tensor) -> torch.Tensor:
        return tensor._local_tensor if isinstance(tensor, DTensor) else tensor

    on_every_rank(restore(replicas, lambda tensor: tensor), 2)
    on_every_rank(restore(lambda tensor: module_of({"w": tensor}), lambda tensor: tensor), 2)
    sharded = restore(lambda t: module_of({"w": spread(t, "two rows")}), lambda t: local(spread(t, "two rows")))
    on_every_rank(sharded, 2)


class Position:
    """A Stateful object without a way to another number of ranks."""

    def __init__(self, at: int, window: torch.Tensor | None = None) -> None:
        self.at, self.window = at, torch.zeros(2) if window is None else window

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "window": self.window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.window = state["at"], state["window"]


class Divided(Position):
    """One that has it."""

    def reshape_state_dict(self, states: Sequence[dict[str, Any]], *, rank: int, world: int) -> dict[str, Any]:
        return {
            "at": sum(state["at"] for state in states) // world,
            "window": torch.cat([state["window"] for state in states])[rank::world],
        }


def test_what_all_ranks_have_alike_is_taken_over(tmp_path: Path) -> None:
    """A schedule, a position and plain parameters, bit for bit: a not-a-number is like itself."""
    window = torch.tensor([float("nan"), -0.0])
    plain = torch.rand(3)
    found = captured(tmp_path, 3, lambda _: {"model": module_of({"w": plain.clone()}), "data": Position(4, window)})
    live: Objects = {"model": module_of({"w": torch.zeros(3)}), "data": Position(0)}
    restore_from(found, live, VERSION, ranks=Ranks(1, 2))
    assert (live["data"].at, bits(live["data"].window)) == (4, bits(window))
    assert bits(live["model"].w) == bits(plain)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (lambda rank: {"data": Position(rank)}, r"different: data \(its state differs between the 2 ranks"),
        (lambda rank: {"data": Position(0, torch.full((2,), float(rank)))}, r"data .* reshape_state_dict\("),
        (lambda rank: {"data": Position(0, torch.zeros(2 + rank))}, r"data .* or start 2 ranks"),
        (
            lambda rank: {"model": module_of({"w": torch.tensor([-0.0 if rank else 0.0, 1.0])})},
            "ranks 0, 1 have different model.w",
        ),
    ],
)
def test_what_differs_between_the_ranks_is_refused_by_name(
    tmp_path: Path, objects: Callable[[int], Objects], message: str
) -> None:
    """Nobody guesses which rank was right; and nothing has changed then."""
    found = captured(tmp_path, 2, objects)
    live = objects(0)
    before = [bits(tensor) for thing in live.values() for tensor in _tensors(thing)]
    with pytest.raises(StateError, match=message):
        restore_from(found, live, VERSION, ranks=Ranks(0, 1))
    assert [bits(tensor) for thing in live.values() for tensor in _tensors(thing)] == before


def _tensors(thing: Any) -> list[torch.Tensor]:
    return list(thing.parameters()) if isinstance(thing, nn.Module) else [thing.window]


def test_an_object_may_know_the_way_itself(tmp_path: Path) -> None:
    """It is given what all ranks had, in their order, with their tensors."""
    found = captured(tmp_path, 2, lambda rank: {"data": Divided(6, torch.tensor([2.0, 3.0]) + 2 * rank)})
    for rank, window in enumerate(([2.0, 5.0], [3.0], [4.0])):
        live = Divided(0)
        restore_from(found, {"data": live}, VERSION, ranks=Ranks(rank, 3))
        assert (live.at, live.window.tolist()) == (4, window)


def test_buffers_that_have_drifted_apart_become_those_of_the_first_rank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in DistributedDataParallel and DCP; a warning names them, once."""

    def norm(fill: float) -> nn.BatchNorm1d:
        made = nn.BatchNorm1d(2, affine=False)
        made.running_mean = torch.full((2,), fill)
        return made

    found = captured(tmp_path, 3, lambda rank: {"model": norm(float(rank))})
    for rank in range(2):
        caplog.clear()
        live = norm(9.0)
        with caplog.at_level(logging.WARNING, "ckptd"):
            restore_from(found, {"model": live}, VERSION, ranks=Ranks(rank, 2))
        assert live.running_mean is not None
        assert live.running_mean.tolist() == [0.0, 0.0]
        assert [("model.running_mean differed" in said) for said in caplog.messages] == [True] * (rank == 0)


def test_a_buffer_that_is_sharded_is_not_taken_from_the_first_rank(tmp_path: Path) -> None:
    """Where the ranks' parts differ, nobody knows where they belong: refused by name."""

    def module(layout: str) -> Objects:
        made = nn.Module()
        made.register_buffer("b", spread(torch.arange(12.0).view(6, 2), layout))
        return {"model": made}

    found = captured(tmp_path, 3, lambda _: module("three rows"))

    def refused(rank: int) -> None:
        with pytest.raises(StateError, match=r"model\.b"):
            restore_from(found, module("two rows"), VERSION, ranks=Ranks(rank, 2))

    on_every_rank(refused, 2)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def test_random_numbers_follow_their_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rank r goes on with those of the old rank r; a rank without one begins anew, always alike, and says so."""
    expected = []

    def draw(rank: int) -> Objects:
        seed(10 + rank)
        return {"data": Position(0)}

    found = captured(tmp_path, 2, draw)
    for rank in range(2):
        seed(10 + rank)
        expected.append(draws())
    drawn: list[list[tuple[float, float, float]]] = []
    with caplog.at_level(logging.WARNING, "ckptd"):
        for attempt in range(2):
            drawn.append([])
            for rank in range(4):
                seed(attempt)
                restore_from(found, {"data": Position(0)}, VERSION, ranks=Ranks(rank, 4))
                drawn[-1].append(draws())
    assert drawn[0] == drawn[1]
    assert drawn[0][:2] == expected
    assert len(set(drawn[0])) == 4
    assert [said.split("): ")[1][:6] for said in caplog.messages] == ["rank 2", "rank 3"] * 2


def test_random_numbers_that_all_ranks_share_stay_shared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who seeds all ranks alike, as tensor parallelism does, finds new ranks like the old ones."""

    def draw(_: int) -> Objects:
        seed(5)
        return {"data": Position(0)}

    found = captured(tmp_path, 2, draw)
    seed(5)
    expected = draws()
    for rank in range(3):
        restore_from(found, {"data": Position(0)}, VERSION, ranks=Ranks(rank, 3))
        assert draws() == expected
    assert not caplog.messages


def test_missing_and_surplus_names_are_told(tmp_path: Path) -> None:
    """As with as many ranks: everything that does not fit, at once."""
    found = captured(tmp_path, 2, lambda _: {"model": module_of({"w": torch.ones(2), "x": torch.ones(1)})})
    live = {"model": module_of({"w": torch.ones(3), "y": torch.ones(1)}), "data": Position(0)}
    with pytest.raises(StateError) as caught:
        restore_from(found, live, VERSION, ranks=Ranks(0, 1))
    text = str(caught.value)
    assert "missing in it: model.y, data" in text
    assert "only in it: model.x" in text
    assert "different: model.w (float32 [2] in the snapshot, float32 [3] here)" in text


def written(tmp_path: Path, world: int, objects: Callable[[int], Objects]) -> FakeChannel:
    """A channel that has their images."""
    folder = tmp_path / f"version-{VERSION.epoch}-{VERSION.step}"
    folder.mkdir()
    for image in captured(folder, world, objects):
        image.path.rename(image.path.with_suffix(".safetensors"))
    (tmp_path / "epoch").write_text("1")
    return FakeChannel(tmp_path)


def test_only_what_is_read_is_brought(tmp_path: Path) -> None:
    """Of a matrix in rows a rank has its own rows brought, beside what is small, and asks few questions for it."""
    whole = torch.rand(512, 1024)
    channel = written(tmp_path, 3, lambda _: {"model": module_of({"w": spread(whole, "three rows")})})

    def restore(rank: int) -> None:
        channel.rank, channel.brought = rank, 0
        channel.calls.clear()
        live = module_of({"w": spread(torch.zeros(512, 1024), "two rows")})
        bring = partial(channel.bring, VERSION)
        snapshot = Snapshot(channel.open(VERSION), VERSION, "job", 3, bring)
        Restore(TrainingState({"model": live}, rank), snapshot, Ranks(rank, 2)).apply()
        half = spread(whole, "two rows")._local_tensor
        assert bits(live.get_parameter("w")._local_tensor) == bits(half)  # type: ignore[attr-defined]
        assert half.nbytes < channel.brought < half.nbytes + 3 * 40_000
        assert channel.calls.count("bring") <= 8

    on_every_rank(restore, 2)


def test_a_checkpointer_does_so_when_the_world_has_changed(tmp_path: Path) -> None:
    """It opens the images, has brought what it needs, lets go of them, and goes on under a new epoch."""
    whole = torch.rand(6, 3)
    channel = written(tmp_path, 2, lambda _: {"model": DistributedDataParallel(module_of({"w": whole.clone()}))})
    model = module_of({"w": torch.zeros(6, 3)})
    with Checkpointer(job="job", channel=channel, on_error="raise", model=model) as ck:
        assert ck.restore() == VERSION.step
        assert bits(model.get_parameter("w")) == bits(whole)
        ck.step(6)
    assert (channel.calls.count("open"), channel.calls.count("shut"), channel.calls.count("release")) == (1, 1, 0)
    assert channel.recorded() == [VERSION, Version(2, 6)]
    assert channel.image(Version(2, 6)).stat().st_size < PIECE


def test_what_can_not_be_brought_leaves_the_objects_as_they_are(tmp_path: Path) -> None:
    """Everything is brought before anything is written; the images are let go all the same."""
    channel = written(tmp_path, 2, lambda _: {"model": DistributedDataParallel(module_of({"w": torch.ones(6, 3)}))})
    model = module_of({"w": torch.zeros(6, 3)})
    channel.fail["bring"] = Unrecoverable("nobody has it")
    with Checkpointer(job="job", channel=channel, model=model) as ck:
        with pytest.raises(Unrecoverable, match="nobody has it"):
            ck.restore()
        assert not model.get_parameter("w").any()
    assert channel.calls.count("shut") == 1
