"""Images of which only what is asked for is brought: pieces from who holds them, wholes where nobody does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon_edges.nodes import NodesHere, forget_sums, nodes_here
from tests.payload import bytes_of, flip

from ckptd.ckpt.client import Found, Stretch
from ckptd.ckpt.errors import MemoryBudgetError, Unrecoverable, UsageError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import PIECE, Version
from ckptd.daemon.opened import Came, Opened

V = Version(1, 5)
SIZES = [3 * PIECE + 77, 1000, 2 * PIECE, 5 * PIECE - 1]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodesHere]:
    """Four nodes with two parities and one version."""
    with nodes_here(4, 2, tmp_path) as made:
        made.protect(made.capture(V, SIZES))
        yield made


def opened(nodes: NodesHere, ledger: Ledger, node: int = 0) -> Opened:
    return nodes[node].jobs.open(ledger, V)


def bring(images: Opened, rank: int, first: int, last: int) -> Came:
    """Bring these bytes and look at them."""
    came = images.bring([Stretch(rank, first, last)])
    assert images.found[rank].path.read_bytes()[first:last] == bytes_of(V, rank, SIZES[rank])[first:last]
    return came


def memory_of(found: Found) -> int:
    """Bytes that the file takes."""
    return found.path.stat().st_blocks * 512


def test_pieces_come_once_and_no_others(nodes: NodesHere) -> None:
    """Own images stand in their slots; of others the pieces of the bytes that are asked for come, and take their memory."""
    images = opened(nodes, nodes.ledger())
    assert [(found.rank, found.size) for found in images.found] == list(enumerate(SIZES))
    assert [found.source for found in images.found] == ["own", "none", "none", "none"]
    assert [memory_of(found) for found in images.found[1:]] == [0, 0, 0]
    assert bring(images, 0, 5, SIZES[0]) == Came(0, ())
    assert bring(images, 3, PIECE - 1, PIECE + 1) == Came(2 * PIECE, ("peer",))
    assert bring(images, 3, 0, 3 * PIECE) == Came(PIECE, ("peer",))
    assert bring(images, 3, 0, 3 * PIECE) == Came(0, ())
    assert memory_of(images.found[3]) == 3 * PIECE
    assert bring(images, 3, SIZES[3] - 1, SIZES[3]) == Came(PIECE, ("peer",))
    assert bring(images, 1, 0, 1) == Came(PIECE, ("peer",))
    assert images.bring([Stretch(2, 0, 0)]) == Came(0, ())
    nodes[0].segments.opened.release(V)
    assert not list((nodes[0].segments.directory / "restore").rglob("*.safetensors"))


def test_an_image_of_lost_nodes_is_decoded(nodes: NodesHere) -> None:
    """Only the pieces that are wanted: who keeps a parity of it knows their sums."""
    images = opened(nodes, nodes.ledger(2, 3))
    assert bring(images, 3, 0, 1) == Came(PIECE, ("parity",))
    assert bring(images, 3, 0, SIZES[3]) == Came(4 * PIECE, ("parity",))
    assert bring(images, 3, 0, SIZES[3]) == Came(0, ())
    assert bring(images, 2, PIECE, PIECE + 1) == Came(PIECE, ("parity",))


def test_where_nobody_knows_its_sums_all_of_it_is_decoded(nodes: NodesHere) -> None:
    """After the daemons were restarted: only its digest tells then whether it is right. What was brought before stays."""
    for node in nodes.nodes:
        forget_sums(node)
    images = opened(nodes, nodes.ledger(2, 3))
    assert bring(images, 3, 0, 1) == Came(5 * PIECE, ("parity",))
    assert bring(images, 3, 0, SIZES[3]) == Came(0, ())


def test_a_decoded_piece_is_held_against_its_sum(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that check where they are held and make another image all the same, as under a wrong code, are not used."""
    images = opened(nodes, nodes.ledger(2, 3))
    real, wrong = nodes[0].fetcher.decode, [0]

    def decode(*arguments: Any) -> list[int]:
        wrong[0] += 1
        return [number ^ 1 for number in real(*arguments)]

    monkeypatch.setattr(nodes[0].fetcher, "decode", decode)
    with pytest.raises(Unrecoverable, match=r"a decoded piece fails the sum of its capture"):
        images.bring([Stretch(3, 0, 1)])
    assert wrong[0] == 2  # the piece, and then all of it


def test_a_node_that_is_lost_meanwhile_is_gone_around(nodes: NodesHere) -> None:
    """Who held an image when it was opened may be gone when its pieces are asked for."""
    images = opened(nodes, nodes.ledger())
    assert bring(images, 3, 0, 1).sources == ("peer",)
    nodes[3].server.close()
    assert bring(images, 3, 2 * PIECE, 2 * PIECE + 1) == Came(PIECE, ("parity",))


def test_a_damaged_piece_is_decoded_alone(nodes: NodesHere) -> None:
    """Others of its image come from their holder; one that is damaged here does not stand in for itself."""
    flip(nodes[3].segments.file_for(nodes[3].slot, SIZES[3]), PIECE + 9)
    images = opened(nodes, nodes.ledger())
    assert bring(images, 3, 0, 1) == Came(PIECE, ("peer",))
    assert bring(images, 3, PIECE, 3 * PIECE) == Came(2 * PIECE, ("parity",))
    assert nodes[3].damage
    mine = opened(nodes, nodes.ledger(), node=3)
    assert mine.found[3].source == "none"
    assert bring(mine, 3, PIECE, PIECE + 1) == Came(PIECE, ("parity",))


def test_other_sums_than_those_of_the_capture_are_found_out(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that check on their way but are not those of the image come from elsewhere."""

    def other(*_: object) -> list[int]:
        return [1] * 5

    images = opened(nodes, nodes.ledger())
    monkeypatch.setattr(nodes[0].fetcher._symbols, "sums", other)
    assert bring(images, 3, 0, 1) == Came(5 * PIECE, ("peer",))


def test_storage_is_the_last_way(nodes: NodesHere) -> None:
    """What too few nodes can give is read from the persisted step, by pieces; one that nobody knows at all, too; else it is
    said. While memory can give all of it, memory does."""
    lost = nodes.ledger(1, 2, 3)
    images = opened(nodes, lost)
    with pytest.raises(Unrecoverable, match=r"can't be decoded: 1 of 2"):
        images.bring([Stretch(3, 0, 1)])
    with pytest.raises(Unrecoverable, match="not every rank's image is known; storage does not have it"):
        nodes[0].jobs.open(lost, Version(1, 6))
    storage = nodes[0].jobs._storage
    assert storage is not None
    for rank, size in enumerate(SIZES):
        image = nodes[rank].segments.slot_entries()[0][0].image
        storage.write(V, image, memoryview(bytes_of(V, rank, size)))
    storage.publish(V, [nodes[rank].segments.slot_entries()[0][0].image for rank in range(4)])
    assert bring(opened(nodes, lost), 3, 0, 1) == Came(PIECE, ("storage",))
    empty = Ledger(collector=0, boot="b", seq=1, nodes=4, map=lost.map, reports=(), lost=(1, 2, 3))
    images = opened(nodes, empty)
    assert bring(images, 0, 2 * PIECE, 2 * PIECE + 1) == Came(PIECE, ("storage",))
    assert bring(images, 0, 0, SIZES[0]) == Came(3 * PIECE, ("storage",))
    assert [memory_of(found) for found in images.found[1:]] == [0, 0, 0]
    assert bring(opened(nodes, nodes.ledger(3)), 3, 0, 1) == Came(PIECE, ("parity",))


@pytest.mark.parametrize("stretch", [Stretch(4, 0, 1), Stretch(1, 0, 1001), Stretch(1, 5, 4)])
def test_bytes_that_no_image_has_are_refused(nodes: NodesHere, stretch: Stretch) -> None:
    """A wrong request brings nothing."""
    images = opened(nodes, nodes.ledger())
    with pytest.raises(UsageError, match="expected some of an image of"):
        images.bring([Stretch(3, 0, 1), stretch])
    assert memory_of(images.found[3]) == 0


def test_a_full_tmpfs_is_said(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is reserved before anything is written to it."""

    def full(path: Path, first: int, size: int) -> None:
        raise MemoryBudgetError(f"{path.parent} has 0 bytes free")

    images = opened(nodes, nodes.ledger())
    monkeypatch.setattr("ckptd.ckpt.shm.reserve_part", full)
    with pytest.raises(MemoryBudgetError, match="0 bytes free"):
        images.bring([Stretch(3, 0, 1)])
