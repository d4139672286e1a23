"""When a capture's window opens and closes: accumulation, scalers that skip, several optimizers, frozen tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel, bits
from tests.runs import Run
from torch import nn

from ckptd.ckpt.client import Slot
from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.integrations.checkpointer import Checkpointer


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


def entry_of(channel: FakeChannel, step: int, name: str) -> bytes:
    image = channel.image(Version(1, step)).read_bytes()
    first, last = parse(image).spans[name]
    return image[first:last]


def test_accumulated_gradients_keep_the_window_open(channel: FakeChannel) -> None:
    """Several backwards before one update are one window: the fence is the update, not the backward."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        run.update()
        ck.step(1)
        expected = bits(run.model.get_parameter("0.weight"))
        for _ in range(3):
            torch.autograd.backward(run.model(run.data.batch()).square().mean())
            assert ck._window.is_open
        run.optimizer.step()
        assert not ck._window.is_open
        ck.wait()
    assert entry_of(channel, 1, "model.0.weight") == expected


def test_a_scaler_that_skips_an_update(channel: FakeChannel) -> None:
    """Gradients that overflow: the optimizer is not called, the next `step` closes the window, both snapshots are right."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    kept = {}
    with Checkpointer(job="job", channel=channel, model=model, optimizer=optimizer, scaler=scaler) as ck:
        for step, factor in enumerate([1.0, float("inf"), 1.0], 1):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 4)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            kept[step] = bits(model.weight)
            ck.step(step)
        ck.wait()
        assert (ck.stats.captured, ck.stats.aborted) == (3, 0)
    assert kept[1] == kept[2] != kept[3]
    assert [entry_of(channel, step, "model.weight") for step in (1, 2, 3)] == list(kept.values())


def test_the_first_of_several_optimizers_closes_the_window(channel: FakeChannel) -> None:
    """Generator and discriminator: whichever is updated first, the snapshot holds both as they were at its step."""
    g, d = nn.Linear(3, 3), nn.Linear(3, 3)
    first, second = torch.optim.AdamW(d.parameters(), lr=0.1), torch.optim.AdamW(g.parameters(), lr=0.1)
    with Checkpointer(job="job", channel=channel, g=g, d=d, od=first, og=second) as ck:
        for step in (1, 2, 3):
            expected = {name: bits(module.weight) for name, module in (("g", g), ("d", d))}
            ck.step(step)
            for optimizer in (first, second):
                optimizer.zero_grad()
                torch.autograd.backward(g(d(torch.ones(2, 3))).square().sum())
                optimizer.step()
            ck.wait()
            assert {name: entry_of(channel, step, f"{name}.weight") for name in "gd"} == expected
        assert ck.stats.aborted == 0


def test_an_optimizer_in_backward(channel: FakeChannel) -> None:
    """Updates in the middle of backward have a fence of their own: the first one closes the window, nothing is torn."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def update(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]
    named: dict[str, Any] = {f"o{at}": optimizer for at, optimizer in enumerate(optimizers.values())}
    with Checkpointer(job="job", channel=channel, model=model, **named) as ck:
        for step in (1, 2, 3):
            torch.autograd.backward(model(torch.ones(2, 4)).square().sum())
            expected = {name: bits(p) for name, p in model.named_parameters()}
            ck.step(step)
        ck.wait()
        assert (ck.stats.captured, ck.stats.aborted) == (3, 0)
    assert {name: entry_of(channel, 3, f"model.{name}") for name in expected} == expected


class Adapted(nn.Module):
    """A frozen base with a small part that is trained, as LoRA has it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64)
        self.base.requires_grad_(requires_grad=False)
        self.adapter = nn.Linear(64, 64)


class Scribbler(FakeChannel):
    """Overwrites the frozen weights in each slot that it grants a second time, to see whether they are copied again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._granted: set[Path] = set()

    def begin(self, version: Version, size: int, wait_s: float = 0.0, lent: Path | None = None) -> Slot | None:
        slot = super().begin(version, size, wait_s, lent)
        assert slot is not None
        if slot.path in self._granted:
            first, last = parse(slot.path.read_bytes()).spans["model.base.weight"]
            with slot.path.open("r+b") as file:
                file.seek(first)
                file.write(b"\x55" * (last - first))
        self._granted.add(slot.path)
        return slot


def adapted(channel: FakeChannel) -> tuple[Adapted, torch.optim.Optimizer, Checkpointer]:
    model = Adapted()
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=0.1, fused=True)
    return model, optimizer, Checkpointer(job="job", channel=channel, model=model, optimizer=optimizer)


def update(model: Adapted, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(model.adapter(model.base(torch.ones(2, 64))).square().sum())
    optimizer.step()


def test_frozen_tensors_are_copied_once_into_each_slot(tmp_path: Path) -> None:
    """What no optimizer owns is not copied into a slot that holds it; what is trained always is."""
    channel = Scribbler(tmp_path)
    model, optimizer, ck = adapted(channel)
    with ck:
        for step in range(1, 5):
            update(model, optimizer)
            trained = bits(model.adapter.weight)
            ck.step(step)
            ck.wait()
            assert entry_of(channel, step, "model.adapter.weight") == trained
            left_alone = entry_of(channel, step, "model.base.weight") == b"\x55" * (64 * 64 * 4)
            assert left_alone == (step > 2)


@pytest.mark.parametrize("how", ["in place", "by data", "by rebinding"])
def test_frozen_tensors_that_change_are_copied_again(channel: FakeChannel, how: str) -> None:
    """Merged adapters, moving averages: what was written between two snapshots is in the next one, in every slot."""
    model, optimizer, ck = adapted(channel)
    expected = {}
    with ck:
        for step in range(1, 9):
            update(model, optimizer)
            weight = model.base.weight
            if step in (3, 4, 7):
                if how == "in place":
                    weight.add_(1.0)
                elif how == "by data":
                    weight.data.mul_(1.5)
                else:
                    weight.data = weight.data + 1.0
            ck.step(step)
            expected[step] = bits(weight)
        ck.wait()
        assert ck.stats.aborted == (
            how == "by rebinding"
        )  # the worker notices other memory once, then the trainer looks
    assert len(channel.recorded()) == 8 - ck.stats.aborted
    for version in channel.recorded():
        assert entry_of(channel, version.step, "model.base.weight") == expected[version.step], version


def test_a_frozen_tensor_that_changes_in_forward_is_copied_at_once(channel: FakeChannel) -> None:
    """Written between the capture and the update: one snapshot is lost, later ones hold what was there at their step."""
    model, optimizer, ck = adapted(channel)
    with ck:
        for step in (1, 2, 3):
            expected = bits(model.base.weight)
            with channel.held_up():
                ck.step(step)
                model.base.weight.data.add_(1.0)
            update(model, optimizer)
            if step > 1:
                ck.wait()
                assert entry_of(channel, step, "model.base.weight") == expected
        assert (ck.stats.captured, ck.stats.aborted) == (2, 1)


def test_a_restore_makes_the_slots_unknown(tmp_path: Path) -> None:
    """The daemon may write into slots to restore: what a slot held before is not believed afterwards."""
    channel = Scribbler(tmp_path)
    model, optimizer, ck = adapted(channel)
    with ck:
        for step in (1, 2, 3):
            update(model, optimizer)
            ck.step(step)
        ck.wait()
        channel._begun = Version(-1, -1)
        ck.restore()
        expected = bits(model.base.weight)
        ck.step(4)
        ck.wait()
    image = channel.image(Version(2, 4)).read_bytes()
    first, last = parse(image).spans["model.base.weight"]
    assert image[first:last] == expected
