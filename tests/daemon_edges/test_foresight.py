"""What only parity can give is decoded before the trainers ask for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster import until
from tests.daemon_edges.nodes import NodesHere, nodes_here
from tests.payload import bytes_of

from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import CorruptionError, MemoryBudgetError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.rounds import Place
from ckptd.daemon.foresight import needed

V = Version(1, 5)
SIZES = [2 * PIECE + 5, 3 * PIECE, PIECE + 1, 77]
SEAT = Place(2, "b", 1, 4)
"""The lost node's, in the round after its loss."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodesHere]:
    """Four nodes with two parities and one version."""
    with nodes_here(4, 2, tmp_path) as made:
        made.protect(made.capture(V, SIZES))
        yield made
        for node in made.nodes:
            node.jobs.foresight.close()


def ranks(ledger: Ledger, place: Place) -> list[int]:
    found = needed(ledger, place)
    return [image.rank for image in found[1]] if found else []


def files(nodes: NodesHere) -> list[Path]:
    """What stands on node 0 beside its slots."""
    return sorted((nodes[0].segments.directory / "restore").rglob("*.safetensors"))


def opened(nodes: NodesHere, ledger: Ledger) -> list[Found]:
    return nodes[0].jobs.open(ledger, V).found


def test_only_what_nobody_holds_and_the_seat_needs_is_brought(nodes: NodesHere) -> None:
    assert ranks(nodes.ledger(1), SEAT) == [1]
    assert ranks(nodes.ledger(1, 3), replace(SEAT, rank=3)) == [3]
    assert ranks(nodes.ledger(1, 3), replace(SEAT, rank=2)) == []
    assert ranks(nodes.ledger(1, 3), Place(2, "b", 1, 2)) == [3]  # two ranks a node
    assert ranks(nodes.ledger(1, 3), Place(2, "b", 0, 3)) == [1]  # four ranks on three nodes: 2, 1 and 1
    assert ranks(nodes.ledger(1, 2, 3), SEAT) == []  # too much is lost: another version, or storage
    assert ranks(nodes.ledger(), SEAT) == []


def test_the_image_stands_there_when_it_is_asked_for(nodes: NodesHere) -> None:
    """Whole, verified, and once: nothing is left behind when the trainers have read it."""
    lost, foresight = nodes.ledger(1), nodes[0].jobs.foresight
    for _ in range(3):  # an agent calls again and again
        foresight.seated(SEAT, lambda: lost)
    found = opened(nodes, lost)
    assert [image.source for image in found] == ["own", "parity", "none", "none"]
    assert found[1].path.read_bytes() == bytes_of(V, 1, SIZES[1])
    assert foresight.take(V, nodes[1].report().held[0].image, found[1].path) is None
    nodes[0].segments.opened.release(V)
    assert files(nodes) == []


def test_what_another_round_does_not_need_is_let_go(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was on its way when the other round began."""
    lost, foresight = nodes.ledger(1), nodes[0].jobs.foresight
    goes_on, began, real = threading.Event(), threading.Event(), nodes[0].fetcher.image

    def slow(*arguments: object) -> object:
        began.set()
        assert goes_on.wait(20.0)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(nodes[0].fetcher, "image", slow)
    foresight.seated(SEAT, lambda: lost)
    assert began.wait(20.0)
    foresight.seated(replace(SEAT, number=3), nodes.ledger)
    goes_on.set()
    foresight._pool.submit(bool).result(20.0)  # after what was on its way
    assert files(nodes) == []
    assert [image.source for image in opened(nodes, lost)] == ["own", "none", "none", "none"]


def test_where_it_cannot_be_brought_the_trainers_ask_as_ever(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = nodes.ledger(1)

    def full(path: Path, size: int) -> memoryview:
        raise MemoryBudgetError(f"{size} bytes are more than there are")

    monkeypatch.setattr(nodes[0].segments.foreseen, "make", full)
    nodes[0].jobs.foresight.seated(SEAT, lambda: lost)
    assert [image.source for image in opened(nodes, lost)] == ["own", "none", "none", "none"]


def foreseen(nodes: NodesHere) -> list[Path]:
    return [path for path in files(nodes) if "foreseen" in path.parts]


def test_what_the_life_does_not_begin_from_is_let_go(nodes: NodesHere) -> None:
    """Another version was decided on: memory is full of images soon enough."""
    lost = nodes.ledger(1)
    nodes[0].jobs.foresight.seated(SEAT, lambda: lost)
    nodes[0].jobs.foresight._pool.submit(bool).result(20.0)  # it has come: the slots that it is made of are filled anew
    assert len(foreseen(nodes)) == 1
    newer = Version(1, 6)
    nodes.capture(newer, SIZES)
    nodes[0].jobs.open(nodes.ledger(), newer)
    assert foreseen(nodes) == []


def test_what_could_not_be_brought_takes_no_memory(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file stood already."""

    def fails(*_: object) -> object:
        assert len(foreseen(nodes)) == 1
        raise CorruptionError("a stripe that does not fit together")

    monkeypatch.setattr(nodes[0].fetcher, "image", fails)
    lost = nodes.ledger(1)
    nodes[0].jobs.foresight.seated(SEAT, lambda: lost)
    assert [image.source for image in opened(nodes, lost)] == ["own", "none", "none", "none"]
    assert foreseen(nodes) == []


def test_an_image_of_another_version_is_not_taken_for_it(nodes: NodesHere) -> None:
    lost, foresight = nodes.ledger(1), nodes[0].jobs.foresight
    foresight.seated(SEAT, lambda: lost)
    until(lambda: len(files(nodes)) == 1, "it has come")
    image: Image = nodes[1].report().held[0].image
    assert foresight.take(Version(1, 6), image, Path("never")) is None
    assert foresight.take(V, replace(image, digest="0" * 32), Path("never")) is None
