"""Bringing bytes to a node: from its own slot, a peer, parity or storage, verified, and the next source when one fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from tests.daemon_edges.nodes import NodesHere, nodes_here
from tests.payload import bytes_of, flip

from ckptd.ckpt.errors import PeerError, Unrecoverable
from ckptd.ckpt.groups import parities_of
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import PIECE, Version
from ckptd.daemon import events as ev
from ckptd.daemon.transport import NotHeld, Range
from ckptd.daemon.windows import WINDOW

V = Version(1, 5)
SIZES = [3 * PIECE + 77, 1000, 2 * PIECE, 5 * PIECE - 1]
"""Payloads of unequal lengths, so that every kind of padding occurs."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodesHere]:
    """Four nodes with two parities."""
    with nodes_here(4, 2, tmp_path) as made:
        yield made


def gather(nodes: NodesHere, node: int, ledger: Ledger) -> list[str]:
    """Gather on a node, check every byte, and return the sources."""
    found = nodes[node].jobs.gather(ledger, V)
    assert [item.rank for item in found] == [0, 1, 2, 3]
    for item in found:
        assert item.path.read_bytes() == bytes_of(V, item.rank, SIZES[item.rank]), f"rank {item.rank}"
    nodes[node].segments.restored.release(V)
    return [item.source for item in found]


def test_every_loss_of_two_nodes(nodes: NodesHere) -> None:
    """Whichever two nodes are lost, the others decode all images bit-exact."""
    nodes.protect(nodes.capture(V, SIZES))
    for lost in combinations(range(4), 2):
        for node in set(range(4)) - set(lost):
            expected = ["parity" if rank in lost else "own" if rank == node else "peer" for rank in range(4)]
            assert gather(nodes, node, nodes.ledger(*lost)) == expected


def test_too_many_losses_are_said(nodes: NodesHere) -> None:
    """With three nodes lost the error says which stripe lacks what; an incomplete or unknown version says that."""
    nodes.protect(nodes.capture(V, SIZES))
    with pytest.raises(Unrecoverable, match=r"stripe \d of step 5 .* can't be decoded: 1 of 2 needed symbols live"):
        nodes[0].jobs.gather(nodes.ledger(1, 2, 3), V)
    with pytest.raises(Unrecoverable, match="no node knows of step 6"):
        nodes[0].jobs.gather(nodes.ledger(), Version(1, 6))


def test_without_parity_an_incomplete_version_is_said(nodes: NodesHere) -> None:
    """When nobody knows all images of a version it can't be restored, and that is the reason."""
    nodes.capture(V, SIZES)
    with pytest.raises(Unrecoverable, match="not every rank's image is known; storage does not have it"):
        nodes[0].jobs.gather(nodes.ledger(2), V)


def test_damage_anywhere_is_gone_around(nodes: NodesHere) -> None:
    """A damaged own slot, peer slot or parity is told to its node and replaced by another source."""
    nodes.protect(nodes.capture(V, SIZES))
    flip(nodes[1].segments.file_for(nodes[1].slot, SIZES[1]), 999)
    assert gather(nodes, 1, nodes.ledger()) == ["peer", "parity", "peer", "peer"]
    assert set(nodes[1].damage) == {ev.Damaged(nodes[1].slot, V, (0,))}
    nodes[1].damage.clear()
    assert gather(nodes, 0, nodes.ledger()) == ["own", "parity", "peer", "peer"]
    assert nodes[1].damage

    nodes[1].segments.drop(nodes[1].slot)
    owned = [kept.parity for kept, _ in nodes[3].segments.parity_entries()]
    for path in nodes[3].segments.directory.glob("parity.*.bin"):
        flip(path, 5)
    assert gather(nodes, 0, nodes.ledger(1)) == ["own", "parity", "peer", "peer"]
    assert {event.parity for event in nodes[3].damage if isinstance(event, ev.ParityDamaged)} <= set(owned)


def test_an_own_damaged_piece_spoils_no_parity(nodes: NodesHere) -> None:
    """A parity is never made of bytes that fail their check; nothing is recorded, the file is used again."""
    table = nodes.capture(V, SIZES)
    flip(nodes[0].segments.file_for(nodes[0].slot, SIZES[0]), PIECE + 1)
    failed = []
    for node in nodes.nodes:
        owed = parities_of(table, node.config.node)
        made = node.jobs.make_parity(ev.MakeParity(table, owed, nodes.ledger()))
        failed += [made.reason] if made.reason else []
        assert set(made.made) == {kept.parity for kept, _ in node.segments.parity_entries()}
    assert failed
    assert all("1 pieces are damaged where they are held" in reason for reason in failed)
    assert set(nodes[0].damage) == {ev.Damaged(nodes[0].slot, V, (1,))}


def test_a_full_tmpfs_fails_one_parity(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the record of a parity can't be written, the reason comes back and the file is used for the next try."""
    table = nodes.capture(V, SIZES)
    owed = parities_of(table, 0)
    with monkeypatch.context() as patch:

        def full(path: Path, text: str) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_text", full)
        made = nodes[0].jobs.make_parity(ev.MakeParity(table, owed[:1], nodes.ledger()))
    assert (made.made, made.reason) == ((), "[Errno 28] No space left on device")
    before = nodes[0].segments.usage()
    made = nodes[0].jobs.make_parity(ev.MakeParity(table, owed[:1], nodes.ledger()))
    assert made.made == owed[:1]
    assert nodes[0].segments.usage() == before


def test_a_lost_image_is_rebuilt_into_a_slot(nodes: NodesHere) -> None:
    """A rebuild gives the image of before, recorded with where it came from; what can't be rebuilt leaves no record."""
    table = nodes.capture(V, SIZES)
    nodes.protect(table)
    image = table.payloads[2].images[0]
    nodes[2].segments.drop(nodes[2].slot)
    target = ev.SlotId(2, 1)
    event = nodes[2].jobs.rebuild(ev.Rebuild(table, ((image, target),), nodes.ledger()))
    assert event.slots == (ev.FoundSlot(target, V, 4, image, "parity"),)
    assert nodes[2].segments.file_for(target, image.size).read_bytes() == bytes_of(V, 2, SIZES[2])
    assert gather(nodes, 0, nodes.ledger())[2] == "parity"

    nodes[2].segments.drop(target)
    event = nodes[2].jobs.rebuild(ev.Rebuild(table, ((image, target),), nodes.ledger(0, 1)))
    assert event.slots == ()
    assert "can't be decoded" in event.reason
    assert nodes[2].report().held == ()


def test_a_copy_is_checked_as_a_whole(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that each check but are not those of the image are refused: every byte was sent, and the right ones."""
    nodes.protect(nodes.capture(V, SIZES))

    def nothing(*_: object) -> int:
        return 0

    monkeypatch.setattr(nodes[0].fetcher._symbols._reader, "read", nothing)
    with pytest.raises(Unrecoverable, match=r"rank 1 of step 5 .*: what was brought fails the image's digest"):
        nodes[0].jobs.gather(nodes.ledger(), V)


def test_images_longer_than_a_window(tmp_path: Path) -> None:
    """Payloads of several windows and odd ends are decoded window by window, bit-exact."""
    sizes = [(2 * WINDOW + 3) * PIECE + 5, WINDOW * PIECE, PIECE - 1]
    with nodes_here(3, 1, tmp_path) as nodes:
        nodes.protect(nodes.capture(V, sizes))
        for lost in range(3):
            asked = (lost + 1) % 3
            found = nodes[asked].jobs.gather(nodes.ledger(lost), V)
            assert found[lost].source == "parity"
            for item in found:
                assert item.path.read_bytes() == bytes_of(V, item.rank, sizes[item.rank])


def test_several_images_on_one_node(nodes: NodesHere) -> None:
    """Segments run over the ends of images: a payload of several images is decoded image by image."""
    extra = ev.SlotId(4, 0)
    path = nodes[1].segments.file_for(extra, SIZES[3])
    path.write_bytes(bytes_of(V, 4, SIZES[3]))
    second = nodes[1].segments.record(extra, V, 5)
    table = nodes.capture(V, SIZES)
    payloads = list(table.payloads)
    payloads[1] = replace(payloads[1], images=(*payloads[1].images, second))
    table = replace(table, world=5, payloads=tuple(payloads))
    nodes.protect(table)
    for image in payloads[1].images:
        into = memoryview(bytearray(image.size))
        nodes[2].fetcher.decode(nodes.ledger(1), V, image, into, range(image.pieces))
        assert into == bytes_of(V, image.rank, image.size)


def test_a_lost_source_is_named(nodes: NodesHere) -> None:
    """A node that is lost, or that no longer holds what its report says, is the reason of the failure."""
    table = nodes.capture(V, SIZES)
    ledger = nodes.ledger()
    nodes[3].segments.drop(nodes[3].slot)
    image = table.payloads[3].images[0]
    wanted, into = Range(V, image, 0, image.pieces), memoryview(bytearray(image.size))
    with pytest.raises(NotHeld, match="does not hold pieces"):
        nodes[0].fetcher._symbols.range(ledger, 3, wanted, into)
    with pytest.raises(NotHeld, match=r"node 3 \(this one\) no longer holds"):
        nodes[3].fetcher._symbols.range(ledger, 3, wanted, into)
    with pytest.raises(PeerError, match="node 3 is lost"):
        nodes[0].fetcher._symbols.range(nodes.ledger(3), 3, wanted, into)
    with pytest.raises(
        Unrecoverable, match=r"rank 3 of step 5 .*: .*does not hold pieces.*; stripe 0 .* 1 of 2 needed"
    ):
        nodes[0].fetcher.image(ledger, table, 3, into)


def test_own_damage_is_told(nodes: NodesHere) -> None:
    """What this node reads of its own memory is checked like what others send: the damaged pieces, and the daemon's word."""
    table = nodes.capture(V, SIZES)
    flip(nodes[2].segments.file_for(nodes[2].slot, SIZES[2]), PIECE)
    image = table.payloads[2].images[0]
    into = memoryview(bytearray(image.size))
    assert nodes[2].fetcher._symbols.range(nodes.ledger(), 2, Range(V, image, 0, image.pieces), into) == {1}
    assert nodes[2].damage == [ev.Damaged(nodes[2].slot, V, (1,))]
