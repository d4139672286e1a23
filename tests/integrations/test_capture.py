"""Plans, slots, trip wires and the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.fakes import bits
from torch import nn

from ckptd.ckpt.client import Found, Slot
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.integrations.capture import Capture, Slots, Worker
from ckptd.integrations.copying import Copying
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.roles import Roles
from ckptd.integrations.session import Ticket
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.sources import Plan, Source, signature_of
from ckptd.integrations.state import Leaf
from ckptd.integrations.tensors import plain
from ckptd.integrations.wires import Wires

VERSION = Version(1, 5)


def plan_of(
    tensors: dict[str, torch.Tensor], ranks: Ranks, eager: dict[str, torch.Tensor] | None = None, room: int = 10
) -> Plan:
    leaves = [Leaf(name, tensor, tuple(range(ranks.world))) for name, tensor in tensors.items()]
    return Plan(leaves, eager or {}, room, job="job", ranks=ranks)


def fill(slots: Slots, path: Path, plan: Plan, version: Version = VERSION, document: bytes = b"{}") -> Found:
    size = plan.layout.size
    if not path.exists():
        path.write_bytes(b"\xaa" * size)
    capture = Capture(version, plan, Roles(lazy=tuple(plan.sources)), [], [], document)
    slots.fill(Slot(0, path, size), capture, Copying())
    return Found(parse(path.read_bytes()).rank, path, size, "own")


def replicated() -> dict[str, torch.Tensor]:
    return {
        "m.weight": torch.rand(40, 8),
        "m.scalar": torch.tensor(3.0),
        "m.empty": torch.empty(0, 2),
        "m.turned": torch.rand(6, 10).t(),
        "m.spread": torch.rand(1, 3).expand(50, 3),
        "m.double": torch.rand(5, dtype=torch.complex128),
    }


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_replicas_capture_the_state_together(tmp_path: Path, world: int) -> None:
    """Each replica captures about its part of the bytes, and the parts make up every tensor again."""
    tensors = replicated()
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    found = []
    for rank in range(world):
        plan = plan_of(tensors, Ranks(rank, world))
        copied = sum(source.rows.numel() * source.rows.element_size() for source in plan.sources)
        assert copied <= total / world + 32
        found.append(fill(Slots(), tmp_path / f"image{rank}", plan))
    snapshot = Snapshot(found, VERSION, "job", world)
    for name, tensor in tensors.items():
        assert bits(snapshot.tensor(name)) == bits(tensor), name


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """Ranks that split differently leave rows out or write them twice: a CorruptionError, never a mixed tensor."""
    tensors = replicated()
    first = fill(Slots(), tmp_path / "a", plan_of(tensors, Ranks(0, 2)))
    del tensors["m.spread"]
    second = fill(Slots(), tmp_path / "b", plan_of(tensors, Ranks(1, 2)))
    with pytest.raises(CorruptionError, match="leave elements out, overlap or do not fit together"):
        Snapshot([first, second], VERSION, "job", 2)


def test_a_slot_is_mapped_once_and_made_anew_when_it_changed(tmp_path: Path) -> None:
    """Slots are used again without mapping them again; another file under the same name is noticed."""
    slots, path, tensor = Slots(), tmp_path / "slot", torch.zeros(4)
    plan = plan_of({"t": tensor}, Ranks())
    slot = Slot(0, path, plan.layout.size)
    fill(slots, path, plan)
    mapping = slots.mapped(slot, plan)
    tensor.fill_(7.0)
    found = fill(slots, path, plan, Version(1, 6))
    assert slots.mapped(slot, plan) is mapping
    assert torch.equal(Snapshot([found], Version(1, 6), "job", 1).tensor("t"), tensor)
    path.unlink()
    found = fill(slots, path, plan)
    assert slots.mapped(slot, plan) is not mapping
    assert torch.equal(Snapshot([found], VERSION, "job", 1).tensor("t"), tensor)


def test_a_slot_of_another_size_is_refused(tmp_path: Path) -> None:
    """A file that is not as large as announced is never mapped: touching the missing pages would kill the process."""
    path, plan = tmp_path / "slot", plan_of({"t": torch.zeros(4)}, Ranks())
    path.write_bytes(b"\0" * (plan.layout.size - 1))
    with pytest.raises(CorruptionError, match=f"found {plan.layout.size - 1} bytes, expected {plan.layout.size}"):
        fill(Slots(), path, plan)


def test_small_growth_keeps_the_layout() -> None:
    """The document has room up to a page's end; other shapes of eager tensors are another layout."""
    eager = {"m.mean": torch.zeros(3)}
    plan = plan_of({}, Ranks(), eager, room=4000)
    assert plan.fits(eager, b"x" * 4096)
    assert not plan.fits(eager, b"x" * 4097)
    assert not plan.fits({"m.mean": torch.zeros(4)}, b"")
    assert not plan.fits({"m.mean": torch.zeros(3), "m.var": torch.zeros(3)}, b"")


def test_the_signature_sees_changes_of_layout() -> None:
    """Another object, other memory, another shape or other strides are noticed; other values are not a layout."""
    tensor = torch.zeros(2, 2)
    before = signature_of([tensor])
    tensor.add_(1.0)
    assert signature_of([tensor]) == before
    tensor.data = tensor.data.t()
    assert signature_of([tensor]) != before
    tensor.data = torch.zeros(2, 2)
    assert signature_of([tensor]) != before
    assert signature_of([]) != before


@torch.no_grad()
def by_numpy(p: nn.Parameter) -> None:
    p.numpy()[...] = 3.0


@torch.no_grad()
def in_place(p: nn.Parameter) -> None:
    p.add_(1.0)


def by_data(p: nn.Parameter) -> None:
    p.data.add_(1.0)


def by_storage(p: nn.Parameter) -> None:
    p.untyped_storage().fill_(1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("write", [by_data, in_place, by_numpy, by_storage])
@pytest.mark.parametrize("shape", ["plain", "turned", "scalar"])
def test_writes_behind_the_optimizer_trip_a_wire(write: Callable[[nn.Parameter], None], shape: str) -> None:
    """`p.data.add_`, in-place writes, numpy and storage aliases are seen at the fence, and only those."""
    value = {"plain": torch.rand(300, 7), "turned": torch.rand(30, 7).t(), "scalar": torch.rand(1)[0]}[shape]
    touched, other = nn.Parameter(value), nn.Parameter(torch.rand(5))
    sources = [Source(name, p, plain(name, p)) for name, p in (("touched", touched), ("other", other))]
    armed = Wires(sources, "samples").arm()
    torch.autograd.backward(touched.sum() + other.sum())
    assert (armed.by_counters(), armed.by_words()) == ([], [])
    write(touched)
    assert {*armed.by_counters(), *armed.by_words()} == {"touched"}


def test_odd_tensors_carry_wires_too() -> None:
    """Empty, inference, boolean and complex tensors, whatever their strides, can be watched."""
    with torch.inference_mode():
        inference = torch.rand(3)
    tensors = [inference, torch.empty(0, 3), torch.rand(3, dtype=torch.complex128), torch.rand(3, 4) > 0.5]
    tensors += [torch.rand(2, 3, dtype=torch.complex128).t(), torch.rand(2, dtype=torch.complex64).conj()]
    tensors += [torch.rand(1).expand(4), torch.rand(5, dtype=torch.bfloat16)[::2]]
    wires = Wires([Source(str(at), tensor, tensor.detach()) for at, tensor in enumerate(tensors)], "samples")
    armed = wires.arm()
    with torch.inference_mode():
        inference.add_(1.0)
    tensors[2].add_(1.0)
    tensors[7].add_(1.0)
    assert armed.by_words() == ["0", "2", "7"]
    assert armed.by_counters() == ["2", "7"]


def test_the_worker_does_jobs_in_order() -> None:
    """Jobs run one after the other on one thread; an exception belongs to its future, and the next job runs."""
    worker, done = Worker(), list[str]()
    jobs = [worker.submit(lambda at=at: done.append(f"{at} {threading.current_thread().name}")) for at in range(3)]  # type: ignore[misc]
    broken = worker.submit(lambda: 1 // 0)
    last = worker.submit(lambda: "last")
    worker.close(10.0)
    assert [job.result() for job in jobs] == [None] * 3
    assert done == [f"{at} ckptd-capture" for at in range(3)]
    assert isinstance(broken.exception(), ZeroDivisionError)
    assert last.result() == "last"


def test_an_answer_after_the_fence_copies_nothing() -> None:
    """Once the trainer has given up waiting, the worker may not touch the state; once it copies, the trainer waits."""
    late, early = Ticket(), Ticket()
    assert late.give_up(0.0)
    assert not late.answered()
    assert early.answered()
    assert not early.give_up(0.0)
