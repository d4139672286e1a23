"""Captures from a GPU, with a stand-in for torch.cuda that executes at once and writes down in which order."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel, bits
from tests.runs import Run
from torch import nn

from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.integrations import checkpointer as module
from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.copying import Load, batches_of
from ckptd.integrations.device import Lane, Launching, Pack, Probes, pin
from ckptd.integrations.sources import Plan, Source
from ckptd.integrations.tensors import Mapping
from ckptd.integrations.watch import Watched

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a CUDA build of torch")


class Cuda:
    """Streams and events by name."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.registered: dict[int, int] = {}
        self.refuse = 0
        self._events = 0
        self.training = self.Stream(CPU, "training")

    def Stream(self, where: torch.device, name: str = "side") -> Any:  # noqa: N802 - named as torch names it
        cuda = self

        class Stream:
            def wait_event(self, event: Any) -> None:
                cuda.log.append(f"{name} waits for {event.name}")

            def __str__(self) -> str:
                return name

        return Stream()

    def Event(self) -> Any:  # noqa: N802
        cuda = self
        self._events += 1

        class Event:
            name = f"event {self._events}"

            def record(self, stream: Any) -> None:
                cuda.log.append(f"{self.name} in {stream}")

            def synchronize(self) -> None:
                cuda.log.append(f"host waits for {self.name}")

        return Event()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        yield

    def current_stream(self, where: torch.device) -> Any:
        return self.training

    def cudart(self) -> Any:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if not self.refuse:
            self.registered[address] = size
        return self.refuse

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.registered[address]
        return 0


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


def load_of(count: int) -> tuple[Load, list[torch.Tensor], list[torch.Tensor]]:
    """So many batches of one tensor each; their targets and sources."""
    sources, targets = [torch.rand(4) for _ in range(count)], [torch.zeros(4) for _ in range(count)]
    return Load(device=batches_of(targets, sources, 16)), targets, sources


def after(cuda: Cuda) -> Any:
    event = cuda.Event()
    event.record(cuda.training)
    return event


def test_launches_follow_the_training_and_are_paced(cuda: Cuda) -> None:
    """Copies wait for the event of `step`; only two batches more than have arrived are ever under way."""
    load, targets, sources = load_of(5)
    launching = Launching(Lane(CPU, cuda), after(cuda))
    launching.offer(load)
    launching.work()
    assert all(map(torch.equal, targets, sources))
    assert cuda.log == [
        *("event 1 in training", "side waits for event 1"),
        *("event 2 in side", "event 3 in side", "event 4 in side", "host waits for event 2"),
        *("event 5 in side", "host waits for event 3", "event 6 in side", "host waits for event 4"),
    ]


def test_the_fence_launches_the_rest_and_waits_on_the_device(cuda: Cuda) -> None:
    """The trainer waits for no event: its stream does. The worker then waits for the last byte."""
    load, targets, sources = load_of(4)
    spread = torch.zeros(4)
    launching = Launching(Lane(CPU, cuda), after(cuda))
    launching.offer(Load(device=load.device, afterwards=[([spread], [targets[0]])]))
    launching.help()
    assert all(map(torch.equal, targets, sources))
    assert cuda.log[-2:] == ["event 6 in side", "training waits for event 6"]
    assert not any(line.startswith("host waits") for line in cuda.log)
    assert not launching.waits
    assert not spread.any()
    launching.work()  # finds nothing
    launching.settle()
    assert cuda.log[-1] == "host waits for event 6"
    assert torch.equal(spread, sources[0])


def test_what_is_on_the_cpu_is_copied_beside(cuda: Cuda) -> None:
    """Offloaded state is copied as without a GPU, and the fence waits for it."""
    source, target = torch.rand(3), torch.zeros(3)
    launching = Launching(Lane(CPU, cuda), after(cuda))
    launching.offer(Load(host=[([target], [source])]))
    assert launching.waits
    launching.help()
    assert torch.equal(source, target)


def test_small_tensors_travel_as_one() -> None:
    """Hundreds of small tensors of any dtype are three calls, however they lie; large and odd ones go by themselves."""
    small = [torch.rand(7), torch.tensor(3.0), torch.randint(0, 2, (5,)) > 0, torch.rand(3, dtype=torch.bfloat16)] * 50
    others = [torch.empty(0), torch.rand(4, 6).t(), torch.rand(100_000)]
    sources = [*small, *others]
    targets = [torch.zeros(source.shape, dtype=source.dtype) for source in sources]
    load = Pack(sources, CPU).load(targets)
    assert len(load.device) == 3
    assert len(load.afterwards) == 1
    for batch in [*load.device, *load.afterwards]:
        torch._foreach_copy_(*batch)
    assert [bits(target) for target in targets] == [bits(source) for source in sources]


def test_probes_see_what_no_counter_counts() -> None:
    """A write by `.data` is seen in 64 bytes of the tensor, whatever its size and dtype; others stay unseen."""
    tensors = [
        torch.rand(1000),
        torch.tensor(1.0),
        torch.rand(3, 5).t(),
        torch.empty(0),
        torch.rand(9) > 0.5,
        torch.rand(20),
    ]
    probes = Probes([Source(str(at), tensor, tensor) for at, tensor in enumerate(tensors)], CPU)
    tensors[5].add_(1.0)
    probes.arm()
    assert probes.indexes(probes.changed()) == []
    for at in (0, 1, 4):
        tensors[at].data.copy_(1 - tensors[at].to(torch.float32))
    assert probes.indexes(probes.changed()) == [0, 1, 4]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> Cuda:
    """Plans believe that the CPU is a GPU."""
    made = Plan.__init__

    def init(self: Plan, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self.device = CPU

    monkeypatch.setattr(Plan, "__init__", init)
    monkeypatch.setattr(Plan, "mark", lambda _: after(cuda))
    monkeypatch.setattr(module, "Watched", functools.partial(Watched, cuda=cuda))
    return cuda


def test_a_run_on_a_device_is_restored(tmp_path: Path, on_device: Cuda) -> None:
    """Snapshots by way of the side stream hold every tensor of their step, and the trainer waited for no event."""
    run = Run.new("adamw fused")
    expected = {}
    channel = FakeChannel(tmp_path)
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        for step in (1, 2, 3):
            run.update()
            expected[step] = {f"model.{name}": bits(tensor) for name, tensor in run.model.state_dict().items()}
            ck.step(step)
        ck.wait()
        assert (ck.stats.captured, ck.stats.failed, ck.stats.aborted) == (3, 0, 0)
    assert sum(line.startswith("training waits for") for line in on_device.log) == 3
    for step, entries in expected.items():
        image = channel.image(Version(1, step)).read_bytes()
        spans = parse(image).spans
        assert {name: image[slice(*spans[name])] for name in entries} == entries


def test_what_a_device_finds_discards_the_snapshot(tmp_path: Path, on_device: Cuda) -> None:
    """The worker learns of a write behind the optimizer after the fence, and still before the commit."""
    run, channel = Run.new(), FakeChannel(tmp_path)
    weight = run.model.get_parameter("0.weight")
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        for step in (1, 2, 3):
            run.update()
            with channel.held_up():
                ck.step(step)
                weight.data.add_(1.0)
            ck.wait()
        assert (ck.stats.captured, ck.stats.aborted) == (2, 1)
        assert "model.0.weight" in str(ck.stats.last_error)
    assert channel.recorded() == [Version(1, 2), Version(1, 3)]


def mapping_of(path: Path) -> Mapping:
    path.write_bytes(bytes(8192))
    return Mapping(path, 8192, write=True)


def test_slots_are_pinned_while_they_are_mapped(tmp_path: Path, cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    """Each is registered with the driver once, and let go before it is unmapped; the log shows the progress."""
    mappings = [mapping_of(tmp_path / f"slot{at}") for at in range(2)]
    with caplog.at_level(logging.INFO, "ckptd"):
        pin(mappings, cuda)
    assert cuda.registered == {mapping.place[0]: 8192 for mapping in mappings}
    assert "pinned slot 2 of 2" in caplog.text
    mappings.clear()
    gc.collect()
    assert not cuda.registered


def test_a_driver_that_refuses_to_pin(tmp_path: Path, cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    """Said once with what to do; the captures go on unpinned."""
    cuda.refuse = 2
    pin([mapping_of(tmp_path / f"slot{at}") for at in range(2)], cuda)
    assert len(caplog.records) == 1
    assert "CUDA error 2" in caplog.text
    assert "ulimit -l" in caplog.text


@needs_gpu
def test_the_host_waits_for_no_copy_on_a_gpu(tmp_path: Path) -> None:
    """A real device: snapshots are right at every step though training never stops, and a thousand launches are short."""
    model = nn.ModuleList([nn.Linear(64, 64) for _ in range(250)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    channel, expected = FakeChannel(tmp_path), {}
    with Checkpointer(job="job", channel=channel, model=model, optimizer=optimizer) as ck:
        for step in range(1, 6):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.01 * step)
            optimizer.step()
            expected[step] = {f"model.{name}": bits(p.cpu()) for name, p in model.named_parameters()}
            ck.step(step)
        ck.wait()
        assert (ck.stats.captured, ck.stats.aborted, ck.stats.failed) == (5, 0, 0)
    for step, entries in expected.items():
        image = channel.image(Version(1, step)).read_bytes()
        spans = parse(image).spans
        assert {name: image[slice(*spans[name])] for name in entries} == entries


@needs_gpu
def test_writes_on_a_gpu_are_found(tmp_path: Path) -> None:
    """`.data` writes on a device cost one snapshot, and none is torn."""
    model = nn.Linear(512, 512).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Checkpointer(job="job", channel=FakeChannel(tmp_path), model=model, optimizer=optimizer) as ck:
        for step in (1, 2, 3):
            ck.step(step)
            model.weight.data.add_(1.0)
            ck.wait()
        assert (ck.stats.captured, ck.stats.aborted) == (2, 1)
