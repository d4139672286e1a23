"""Batches, staging, outlines and what is watched: the parts of a capture that the trainer's thread pays for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.fakes import bits
from torch import nn

from ckptd.integrations.copying import Batch, Copying, Load, batches_of, copy_now, stay_on_one_core
from ckptd.integrations.outline import Outline
from ckptd.integrations.roles import roles_of
from ckptd.integrations.sources import Source
from ckptd.integrations.staging import Staging
from ckptd.integrations.wires import Due, Frozen, Words


def sources_of(**tensors: torch.Tensor) -> list[Source]:
    return [Source(name, tensor, tensor.detach()) for name, tensor in tensors.items()]


def test_batches_are_small_and_cover_everything() -> None:
    """No batch exceeds the limit where tensors can be cut, whatever their layout, and together they copy every byte."""
    sources = [
        torch.rand(1000),
        torch.tensor(2.0),
        torch.rand(30, 40).t(),
        torch.empty(0, 3),
        torch.rand(7, 1).expand(7, 90),
        torch.rand(5, 100, dtype=torch.complex64).conj(),
        torch.rand(3, dtype=torch.bfloat16),
    ]
    targets = [torch.zeros(source.shape, dtype=source.dtype) for source in sources]
    made = batches_of(targets, sources, 800)
    assert max(sum(target.nbytes for target in batch[0]) for batch in made) <= 800
    assert len(made) < 25
    for batch in made:
        copy_now(batch)
    assert [bits(target) for target in targets] == [bits(source.resolve_conj()) for source in sources]


def test_a_row_is_never_cut_where_it_is_not_contiguous() -> None:
    """A single row beyond the limit travels whole."""
    source = torch.rand(50, 2).t()
    assert [target.shape for batch in batches_of([torch.zeros(2, 50)], [source], 100) for target in batch[0]] == [
        (1, 50),
        (1, 50),
    ]


def test_worker_and_trainer_share_the_batches() -> None:
    """At the fence the trainer copies what the worker has not begun, and each batch is copied by one of them."""
    begun, go = threading.Event(), threading.Event()
    by: dict[int, str] = {}

    sources, targets = [torch.full((4,), float(at)) for at in range(6)], [torch.zeros(4) for _ in range(6)]
    copying = Copying()

    def work() -> None:
        copying.offer(Load(batches_of(targets, sources, 16)))
        copying.work()

    def copy(batch: Batch) -> None:
        at = int(batch[1][0][0])
        assert at not in by
        by[at] = threading.current_thread().name
        if at == 0:
            begun.set()
            go.wait(10.0)
        torch._foreach_copy_(*batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckptd.integrations.copying.copy_now", copy)
        worker = threading.Thread(target=work, name="worker")
        worker.start()
        assert begun.wait(10.0)
        copying.help()
        assert [bool(target.any()) for target in targets[1:]] == [True] * 5
        go.set()
        worker.join(10.0)
    assert by == {0: "worker", **dict.fromkeys(range(1, 6), threading.current_thread().name)}
    assert all(map(torch.equal, targets, sources))


def test_a_copy_that_fails_drops_the_rest() -> None:
    """The image is worth nothing any more, so nobody copies the remaining batches."""
    target = torch.zeros(3)
    copying = Copying()
    copying.offer(Load([([torch.zeros(2)], [torch.zeros(3)]), ([target], [torch.ones(3)])]))
    with pytest.raises(RuntimeError):
        copying.work()
    copying.help()
    assert not target.any()


def test_the_worker_stays_on_one_core() -> None:
    """Its copies use one thread of torch's, and nobody else's number changes."""
    before, found = torch.get_num_threads(), list[int]()

    def work() -> None:
        stay_on_one_core()
        torch.rand(200_000).clone()
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10.0)
    assert found == [1]
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join(10.0)
    assert found == [1, before]
    assert torch.get_num_threads() == before


def test_staged_copies_are_used_again_only_when_given_back() -> None:
    """Two captures under way never share memory; a shape that changed gets other memory; copies are dense."""
    staging = Staging()
    tensors = [torch.rand(2, 1).expand(2, 3), torch.rand(4, 2).t()]
    first = staging.copies_of(tensors)
    loan = staging.loan()
    second = staging.copies_of(tensors)
    assert not {copy.data_ptr() for copy in first} & {copy.data_ptr() for copy in second}
    assert [bits(copy) for copy in first] == [bits(tensor) for tensor in tensors]
    assert all(copy.is_contiguous() for copy in first)
    loan.give_back()
    loan.give_back()
    assert staging.copies_of(tensors) is first
    assert staging.copies_of(tensors) is not first
    assert staging.copies_of([torch.rand(3)])[0].shape == (3,)
    assert staging.copies_of([]) == []


def grow(p: nn.Parameter) -> None:
    p.data = torch.cat([p.data, p.data])


def turn(p: nn.Parameter) -> None:
    p.data = p.data.t()


def move(p: nn.Parameter) -> None:
    p.data = p.data.clone()


@pytest.mark.parametrize("change", [grow, turn, move])
def test_an_outline_sees_each_change_of_layout(change: Callable[[nn.Parameter], None]) -> None:
    """Other memory, another shape or other strides under the same object."""
    p, odd = nn.Parameter(torch.rand(3, 3)), torch.rand(3, dtype=torch.complex64).conj()
    outline = Outline([p, odd, 3])
    with torch.no_grad():
        p.add_(1.0)
    assert outline.in_place()
    change(p)
    assert outline.same([p, odd, 3])
    assert not outline.in_place()


def test_an_outline_sees_other_objects() -> None:
    """A tensor that was added, removed or replaced, also by a number; numbers may change."""
    p, q, odd = torch.rand(3), torch.rand(3), torch.rand(3, dtype=torch.complex64).conj()
    outline = Outline([p, 3, odd])
    assert outline.same([p, 4.5, odd])
    assert not outline.same([p, 3, odd, q])
    assert not outline.same([p, odd])
    assert not outline.same([q, 3, odd])
    assert not outline.same([p, q, odd])
    assert not outline.same([3, 3, odd])


def test_sources_are_copied_in_the_order_of_the_update() -> None:
    """Groups as the optimizers go through them, a parameter before its state; frozen apart. Beside a GPU scalars
    are copied at once."""
    a, b, c = (nn.Parameter(torch.rand(3)) for _ in range(3))
    frozen, unknown = torch.rand(3), nn.Parameter(torch.rand(3))
    first, second = torch.optim.AdamW([b, c], foreach=True), torch.optim.SGD([a], lr=0.1)
    for p in (b, c):
        p.grad = torch.ones(3)
    first.step()
    states = {f"{name}.{key}": value for name, p in (("b", b), ("c", c)) for key, value in first.state[p].items()}
    sources = sources_of(frozen=frozen, unknown=unknown, a=a, c=c, b=b, **states)
    roles = roles_of(sources, [first, second])
    of_adam = [f"{name}{key}" for name in "bc" for key in ("", ".step", ".exp_avg", ".exp_avg_sq")]
    assert [source.name for source in roles.lazy] == [*of_adam, "a", "unknown"]
    assert roles.at_once == ()
    assert [source.name for source in roles.frozen] == ["frozen"]
    again = roles_of(sources, [first, second], {"frozen", "a"})
    assert {source.name for source in again.at_once} == {"frozen", "a"}
    assert not again.frozen
    beside = [*sources, Source("on a device", torch.empty(3, device="meta"), torch.empty(3, device="meta"))]
    assert {source.name for source in roles_of(beside, [first, second]).at_once} == {"b.step", "c.step"}


def test_frozen_tensors_that_changed_are_due_in_every_slot() -> None:
    """Whichever slot holds an older copy gets the new one; a change is seen at any of the first captures."""
    for changed_at in range(1, 7):
        p, q = torch.rand(100), torch.rand(100)
        frozen = Frozen(sources_of(p=p, q=q), "samples")
        slots = [np.full(2, -1, dtype=np.int64) for _ in range(2)]
        copied = []
        for capture in range(1, 9):
            if capture == changed_at:
                p.mul_(2.0)
            _, due = frozen.arm()
            held = slots[capture % 2]
            at = due.of(held)
            held[at] = due.count
            copied.append(at.tolist())
        assert all(0 in copied[at - 1] for at in (1, 2, changed_at, changed_at + 1))
        assert [at for at, found in enumerate(copied, 1) if 1 in found] == [1, 2]


def test_frozen_tensors_are_renewed_in_turn() -> None:
    """Within 64 captures every one is copied anew, a few at a time."""
    held = np.zeros(200, dtype=np.int64)
    found = [Due(count, held).of(held) for count in range(1, 65)]
    assert sorted(np.concatenate(found).tolist()) == list(range(200))
    assert max(map(len, found)) <= 4


def test_words_of_any_place_are_read_and_nothing_else() -> None:
    """Elements of any size, stride and alignment, of arrays far apart; memory that is looked at cannot be moved away."""
    raw = np.arange(64, dtype=np.uint8)
    tensor = torch.arange(1000)
    views: list[npt.NDArray[Any]] = [
        raw[1:33].view(np.uint64),
        raw[3:7].view(np.uint32),
        raw[::5],
        tensor.numpy()[::99].view(np.uint64),
    ]
    words = Words(list(enumerate(views)))
    before = words.read()
    for at, view in enumerate(views):
        found = [some[owners == at] for owners, some in zip(words.owners, before, strict=True)]
        assert [int(word) for some in found for word in some] == view.tolist()
    tensor[990] = -1
    changed = [owners[one != other] for owners, one, other in zip(words.owners, before, words.read(), strict=True)]
    assert np.concatenate(changed).tolist() == [3]
    with pytest.raises(RuntimeError, match="not resizable"):
        tensor.untyped_storage().resize_(0)
    assert Words([]).read() == []
