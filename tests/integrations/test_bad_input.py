"""What a capture may meet: slots that vanish, strange tensors, objects that are freed, forks, a second Checkpointer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel, bits
from tests.runs import Run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import Self

from ckptd.ckpt.client import Slot
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.integrations.checkpointer import Checkpointer


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


class Loses(FakeChannel):
    """Grants slots whose files are gone, or too small, when the trainer comes to them."""

    harm: Callable[[Path], object] | None = None

    def begin(self, version: Version, size: int, wait_s: float = 0.0, lent: Path | None = None) -> Slot | None:
        slot = super().begin(version, size, wait_s, lent)
        if slot is not None and self.harm is not None:
            self.harm(slot.path)
        return slot


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "No such file or directory, expected"),
        (lambda path: os.truncate(path, 4096), "found 4096 bytes, expected"),
    ],
)
def test_a_slot_that_vanished(tmp_path: Path, harm: Callable[[Path], object], said: str) -> None:
    """A slot's file that is missing or cut, mapped before or not, costs that snapshot; the error says what was found."""
    channel, run = Loses(tmp_path), Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        for step in range(1, 8):
            channel.harm = harm if step in (1, 4, 5) else None
            run.update()
            ck.step(step)
            ck.wait()
        assert (ck.stats.captured, ck.stats.failed) == (4, 3)
        assert ck.stats.last_error is not None
    assert [said in reason for reason in channel.aborts] == [True] * 3
    assert channel.recorded() == [Version(1, step) for step in (2, 3, 6, 7)]


class Wrapped(torch.Tensor):
    """A subclass that holds another tensor, whose bytes are not its own."""

    kept: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype)
        made.kept = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["kept"], None

    __tensor_unflatten__: Any = staticmethod(lambda inner, *_: Wrapped(inner["kept"]))
    __torch_dispatch__: Any = classmethod(lambda cls, func, types, args=(), kwargs=None: cls(args[0].kept))


def test_an_unsupported_subclass_that_comes_later(channel: FakeChannel) -> None:
    """A parameter that turns into one that cannot be captured is named, training goes on, and so do snapshots after."""
    run = Run.new()
    layer = run.model.get_submodule("0")
    usual = run.model.get_parameter("0.weight")
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        run.update()
        ck.step(1)
        layer.register_parameter("weight", nn.Parameter(Wrapped(torch.ones(2)), requires_grad=False))
        ck.step(2)
        assert "model.0.weight: found a" in str(ck.stats.last_error)
        assert "convert it in the object's state_dict()" in str(ck.stats.last_error)
        layer.register_parameter("weight", usual)
        run.update()
        ck.step(3)
        ck.wait()
    assert channel.recorded() == [Version(1, 1), Version(1, 3)]


def test_objects_that_are_freed_during_the_copy(channel: FakeChannel) -> None:
    """Parameters that are replaced or deleted while they wait to be copied live on until they were."""
    layers = [nn.Linear(256, 256), nn.Linear(256, 256)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Checkpointer(job="job", channel=channel, model=model, optimizer=optimizer) as ck:
        ck.restore()
        expected = [bits(layer.weight) for layer in layers]
        channel.hang = threading.Event()
        ck.step(1)
        layers.pop(0).weight = nn.Parameter(torch.zeros(256, 256))
        del model[1], layers[0]
        optimizer.param_groups[0]["params"].clear()
        rubbish = [torch.full((256, 256), -1.0) for _ in range(8)]  # takes the place of memory that was freed
        channel.hang.set()
        optimizer.step()
        ck.wait()
        assert ck.stats.captured == 1
    del rubbish
    image = channel.image(Version(1, 1)).read_bytes()
    spans = parse(image).spans
    assert [image[slice(*spans[f"model.{at}.weight"])] for at in (0, 1)] == expected


def in_child(work: Callable[[], object]) -> int:
    """Fork in the middle of everything, do `work` in the child, which then ends; its exit code, 99 for one that hangs."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child ends here, whatever happened
            os._exit(1)
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 99


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_in_the_middle_of_a_capture(channel: FakeChannel) -> None:
    """The child says that the Checkpointer is its parent's, writes nothing and ends; the parent's snapshot is whole."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.restore()
        run.update()
        expected = bits(run.model.get_parameter("0.weight"))
        channel.hang = threading.Event()
        ck.step(1)

        def work() -> None:
            stranger = nn.Parameter(torch.ones(1))
            stranger.grad = torch.ones(1)
            torch.optim.SGD([stranger], lr=0.1).step()  # the hook is gone: nobody waits for a copy that never ends
            ck.step(2)
            assert f"belongs to process {os.getppid()}" in str(ck.stats.last_error)
            assert ck.wait() == "none"
            with pytest.raises(UsageError, match="which was forked"):
                ck.restore()
            ck.close()
            Checkpointer(job="job", channel=FakeChannel(channel.directory / "child"), model=run.model).close()

        assert in_child(work) == 0
        channel.hang.set()
        channel.hang = None
        run.update()
        ck.step(2)
        ck.wait()
        assert (ck.stats.captured, ck.stats.failed) == (2, 0)
    image = channel.image(Version(1, 1)).read_bytes()
    assert image[slice(*parse(image).spans["model.0.weight"])] == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_data_loader_workers_start_during_a_capture(channel: FakeChannel) -> None:
    """Forked loader workers come and go in every window, and the snapshots are those of a run without them."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        for step in (1, 2, 3):
            run.update()
            expected = bits(run.model.get_parameter("0.weight"))
            ck.step(step)
            assert (
                len(list(DataLoader(TensorDataset(torch.rand(4)), num_workers=2, multiprocessing_context="fork"))) == 4
            )
        ck.wait()
        assert (ck.stats.captured, ck.stats.failed, ck.stats.aborted) == (3, 0, 0)
    image = channel.image(Version(1, 3)).read_bytes()
    assert image[slice(*parse(image).spans["model.0.weight"])] == expected


def test_a_second_checkpointer_of_the_same_job(channel: FakeChannel) -> None:
    """Two of one job in one process would capture into each other's slots: refused until the first is closed."""
    first = Checkpointer(job="job", channel=channel, model=nn.Linear(1, 1))
    threads = threading.active_count()
    with pytest.raises(UsageError, match=r"a Checkpointer of job job is open in this process.*close\(\) it first"):
        Checkpointer(job="job", channel=channel, model=nn.Linear(1, 1))
    assert threading.active_count() == threads
    Checkpointer(job="other", channel=channel, model=nn.Linear(1, 1)).close()
    first.close()
    Checkpointer(job="job", channel=channel, model=nn.Linear(1, 1)).close()
