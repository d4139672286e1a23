"""The Checkpointer with a fake daemon: bit-identical resumes, discarded snapshots, changes of layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.fakes import FakeChannel, bits
from tests.runs import OPTIMIZERS, Run
from torch import nn

from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.integrations.checkpointer import Checkpointer


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


def after(channel: FakeChannel) -> FakeChannel:
    """The channel of a process that is started later."""
    return FakeChannel(channel.directory)


def entry_of(channel: FakeChannel, step: int, name: str) -> bytes:
    """The bytes of one entry in the recorded image of a step."""
    image = channel.image(Version(1, step)).read_bytes()
    first, last = parse(image).spans[name]
    return image[first:last]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_run_is_bit_identical(channel: FakeChannel, kind: str) -> None:
    """Losses, weights, statistics, optimizer state and random numbers go on as if nothing had happened."""
    run = Run.new(kind)
    losses = []
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        assert ck.restore() == 0
        for step in range(1, 7):
            losses.append(run.update())
            ck.step(step)
            if step == 3:
                assert ck.wait("captured") == "captured"
                kept = channel.image(Version(1, 3)).read_bytes()
        expected = run.fingerprint()
        ck.wait()
        assert ck.stats.captured == 6
    assert channel.image(Version(1, 3)).read_bytes() == kept
    for step in (4, 5, 6):
        channel.image(Version(1, step)).unlink()
    again = Run.new(kind, seed=99)
    with Checkpointer(job="job", channel=after(channel), **again.objects) as ck:
        assert ck.restore() == 3
        assert [again.update() for _ in range(3)] == losses[3:]
    assert again.fingerprint() == expected


def test_a_snapshot_holds_the_state_of_its_step(channel: FakeChannel) -> None:
    """What is captured is the state at `step`, though statistics and random numbers change before the fence."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.restore()
        run.update()
        ck.step(1)
        expected = {name: bits(tensor) for name, tensor in run.model.state_dict().items()}
        run.model(torch.rand(8, 4))  # moves the running statistics
        run.data.batch()
        run.update()
        ck.wait()
    image = channel.image(Version(1, 1)).read_bytes()
    header = parse(image)
    for name, content in expected.items():
        first, last = header.spans[f"model.{name}"]
        assert image[first:last] == content, name


def test_every_call_of_the_channel_is_made_on_the_worker(channel: FakeChannel) -> None:
    """A Channel is used from one thread: restore, captures, waiting and closing all go through it in order."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, every=2, **run.objects) as ck:
        ck.restore()
        for step in range(1, 5):
            run.update()
            ck.step(step)
        ck.wait()
    assert channel.threads == {"ckptd-capture"}
    assert channel.calls == [
        *("attach", "decide", "join", "reserve"),
        *("begin", "commit", "begin", "commit"),
        *("wait", "close"),
    ]
    assert channel.recorded() == [Version(1, 2), Version(1, 4)]


@torch.no_grad()
def in_place(p: nn.Parameter) -> None:
    p.add_(1.0)


def by_data(p: nn.Parameter) -> None:
    p.data.add_(1.0)


@pytest.mark.parametrize("write", [in_place, by_data])
def test_a_write_behind_the_optimizer_costs_one_snapshot(
    channel: FakeChannel, caplog: pytest.LogCaptureFixture, write: Callable[[nn.Parameter], None]
) -> None:
    """That snapshot is dropped and the log says why; from then on the tensor is copied at once, and writes do no harm."""
    run = Run.new()
    weight = run.model.get_parameter("0.weight")
    expected = {}
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.restore()
        for step in (1, 2, 3):
            run.update()
            expected[step] = bits(weight)
            with channel.held_up():
                ck.step(step)
                write(weight)
        ck.wait()
        assert (ck.stats.aborted, ck.stats.captured, ck.stats.failed) == (1, 2, 0)
        assert "model.0.weight" in str(ck.stats.last_error)
    assert channel.recorded() == [Version(1, 2), Version(1, 3)]
    warnings = [record.getMessage() for record in caplog.records if "model.0.weight" in record.getMessage()]
    assert len(warnings) == 1
    assert "they are copied at once from now on" in warnings[0]
    assert "model.0.weight" in channel.aborts[0]
    for step in (2, 3):
        assert entry_of(channel, step, "model.0.weight") == expected[step]


def test_writes_that_no_sample_sees_are_found_by_the_counters(channel: FakeChannel) -> None:
    """With watch="counters" no bytes are read: what torch counts is found, and `.data` is not."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, watch="counters", **run.objects) as ck:
        for step, write in enumerate([by_data, in_place, in_place], 1):
            run.update()
            with channel.held_up():
                ck.step(step)
                write(run.model.get_parameter("0.weight"))
        ck.wait()
    assert channel.recorded() == [Version(1, 1), Version(1, 3)]


def test_a_state_that_keeps_changing_is_copied_at_once(channel: FakeChannel) -> None:
    """Where other tensors trip again and again, everything is copied at once after the third lost snapshot."""
    run = Run.new()
    parameters = list(run.model.parameters())
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        for step in range(1, 7):
            run.update()
            with channel.held_up():
                ck.step(step)
                in_place(parameters[step % len(parameters)])
                in_place(parameters[(step + 1) % len(parameters)]) if step > 3 else None
        ck.wait()
        assert ck.stats.aborted == 3
        assert "everything is copied at once" in str(ck.stats.last_error)
    assert channel.recorded() == [Version(1, 4), Version(1, 5), Version(1, 6)]


def test_an_update_without_optimizer_costs_one_snapshot(channel: FakeChannel) -> None:
    """A hand-written update has no fence: the snapshot that it falls into is lost, then everything is copied at once."""
    model = nn.Linear(3, 3)
    bystander = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    kept = {}
    with Checkpointer(job="job", channel=channel, model=model, optimizer=bystander) as ck:
        for step in (1, 2, 3):
            kept[step] = bits(model.weight)
            with channel.held_up():
                ck.step(step)
                model.bias.data.sub_(0.1)
                model.weight.data.sub_(0.1)
            ck.wait()
        assert ck.stats.aborted == 1
    assert channel.recorded() == [Version(1, 2), Version(1, 3)]
    assert entry_of(channel, 2, "model.weight") == kept[2]


def test_a_tensor_that_is_replaced_does_no_harm(channel: FakeChannel) -> None:
    """`p.data = x` between capture and update leaves the bytes alone that are copied. At most one snapshot is lost, to
    notice; each of the others holds what was there at its step."""
    run = Run.new()
    weight = run.model.get_parameter("0.weight")
    expected = {}
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        for step in range(1, 5):
            run.update()
            expected[step] = bits(weight)
            ck.step(step)
            weight.data = weight.data + 1.0
        ck.wait()
        assert ck.stats.captured >= 3
        assert ck.stats.aborted == 4 - ck.stats.captured
    for version in channel.recorded():
        assert entry_of(channel, version.step, "model.0.weight") == expected[version.step]


@pytest.mark.parametrize("shape", ["moved", "turned"])
def test_a_tensor_that_gets_other_memory_costs_one_snapshot(channel: FakeChannel, shape: str) -> None:
    """An optimizer that replaces `p.data`, even with the same bytes in another order: noticed once by the worker, then by
    the trainer at each step."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    weight = model.get_parameter("0.weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    with Checkpointer(job="job", channel=channel, model=model, optimizer=optimizer) as ck:
        for step in range(1, 6):
            weight.data = weight.data.t() if shape == "turned" else weight.data + 1.0
            expected[step] = bits(weight)
            ck.step(step)
            ck.wait()
        assert (ck.stats.aborted, ck.stats.captured, ck.stats.failed) == (1, 4, 0)
        assert "tensors got other memory" in str(ck.stats.last_error)
    assert channel.recorded() == [Version(1, step) for step in (1, 3, 4, 5)]
    for version in channel.recorded():
        assert entry_of(channel, version.step, "model.0.weight") == expected[version.step]


@pytest.mark.parametrize("write", [in_place, by_data])
def test_a_write_after_the_copy_does_no_harm(channel: FakeChannel, write: Callable[[nn.Parameter], None]) -> None:
    """What is written when everything has been copied, even behind the optimizer, is no reason to discard anything."""
    run = Run.new()
    weight = run.model.get_parameter("0.weight")
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        run.update()
        expected = bits(weight)
        ck.step(1)
        assert ck._window._open is not None
        assert ck._window._open.slot.result(10.0) is not None
        write(weight)
        ck.wait()
        assert (ck.stats.aborted, ck.stats.captured) == (0, 1)
    assert entry_of(channel, 1, "model.0.weight") == expected


def test_without_an_optimizer_captures_are_synchronous(channel: FakeChannel) -> None:
    """Nobody closes the window, so `step` copies and commits before it returns: later writes do no harm."""
    model = nn.Linear(2, 2)
    with Checkpointer(job="job", channel=channel, model=model) as ck:
        ck.step(1)
        before = bits(model.weight)
        in_place(model.get_parameter("weight"))
        ck.wait()
        assert ck.stats.captured == 1
    image = channel.image(Version(1, 1)).read_bytes()
    first, last = parse(image).spans["model.weight"]
    assert image[first:last] == before


def test_any_optimizer_of_the_process_closes_the_window(channel: FakeChannel) -> None:
    """The fence is in torch's global hook: an optimizer that the Checkpointer does not know commits the snapshot too."""
    run, other = Run.new(), nn.Parameter(torch.ones(1))
    stranger = torch.optim.SGD([other], lr=0.1)
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        run.update()
        ck.step(1)
        assert ck._window.is_open
        stranger.step()
        assert not ck._window.is_open
        assert ck.wait() == "sealed"


def test_a_change_of_layout_is_planned_anew(channel: FakeChannel) -> None:
    """New optimizer state, a grown model, and a growing document change the layout between snapshots."""
    run = Run.new()
    grown = nn.Linear(3, 3)
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.step(0)  # before the first update: no optimizer state yet
        run.update()
        ck.step(1)
        assert isinstance(run.model, nn.Sequential)
        run.optimizer.add_param_group({"params": list(grown.parameters())})
        run.scheduler.base_lrs.append(0.01)
        run.model.append(nn.Identity())
        run.model.register_module("grown", grown)
        ck.step(2)
        run.data.position = 10**3000
        ck.step(3)
        ck.wait()
        assert ck.stats.captured == 4, ck.stats
    sizes = [channel.image(Version(1, step)).stat().st_size for step in range(4)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]
    assert channel.reserved == sorted(set(sizes))
    header = parse(channel.image(Version(1, 2)).read_bytes())
    assert "model.grown.weight" in header.spans


def test_slots_are_made_before_the_first_snapshot_is_due(channel: FakeChannel) -> None:
    """With a snapshot every third step the first step has the slots made: the snapshot need not wait for their pages."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, every=3, **run.objects) as ck:
        ck.restore()
        run.update()
        ck.step(1)
        reserved = list(channel.reserved)
        for step in (2, 3):
            run.update()
            ck.step(step)
        ck.wait()
    assert reserved == channel.reserved == [channel.image(Version(1, 3)).stat().st_size]


def test_a_missed_fence_is_made_up_for(channel: FakeChannel) -> None:
    """Where no update comes (a scaler that skips it), the next step commits the snapshot."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        run.update()
        ck.step(1)
        ck.step(2)
        ck.wait()
        assert ck.stats.captured == 2
