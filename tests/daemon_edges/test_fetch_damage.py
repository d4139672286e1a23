"""Damaged pieces are one more erasure of their stripe, each version may be protected twice, and memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.daemon_edges.nodes import NodesHere, nodes_here
from tests.payload import bytes_of, flip

from ckptd.ckpt.errors import Unrecoverable
from ckptd.ckpt.groups import group_of, map_of
from ckptd.ckpt.model import PIECE, Payload, Table, Version
from ckptd.ckpt.pieces import sums_of
from ckptd.ckpt.recovery import moved
from ckptd.daemon import comparison, fetch, parities, windows
from ckptd.daemon import events as ev
from ckptd.daemon.fetch import Brought
from ckptd.daemon.symbols import Pieces, Stripe, Symbols

V = Version(1, 5)
SIZES = [11 * PIECE + 77, 12 * PIECE, 11 * PIECE + 1, 12 * PIECE - 1, 12 * PIECE]
"""Twelve pieces each: segments of four."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodesHere]:
    """Five nodes with two parities: three symbols of each stripe are needed."""
    with nodes_here(5, 2, tmp_path) as made:
        yield made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """(stripe, symbol, offset, pieces) of each symbol that is read to decode or encode."""
    seen: list[tuple[int, int, int, int]] = []
    real = Symbols.read

    def read(symbols: Symbols, stripe: Stripe, symbol: int, offset: int, into: memoryview) -> Pieces:
        seen.append((stripe.number, symbol, offset, len(into) // PIECE))
        return real(symbols, stripe, symbol, offset, into)

    monkeypatch.setattr(Symbols, "read", read)
    return seen


def spoil(nodes: NodesHere, node: int, *pieces: int) -> None:
    """Flip a bit in each of these pieces of the node's image."""
    for piece in pieces:
        flip(nodes[node].segments.file_for(nodes[node].slot, SIZES[node]), piece * PIECE + 3)


def piece_at(table: Table, node: int, stripe: int, offset: int) -> int:
    """Which piece of the node's payload lies there."""
    group = group_of(table.map, node)
    assert group is not None
    segment = group.layout.segment_of(group.nodes.index(node), stripe)
    assert segment is not None, "the node has a parity of this stripe"
    return segment * group.units(table) + offset


def bring(nodes: NodesHere, to: int, table: Table, rank: int, *lost: int) -> Brought:
    """Bring an image to a node and check every byte and sum."""
    into = memoryview(bytearray(SIZES[rank]))
    brought = nodes[to].fetcher.image(nodes.ledger(*lost), table, rank, into)
    assert into == bytes_of(V, rank, SIZES[rank])
    assert brought.sums == sums_of(into)
    return brought


def test_only_the_damaged_pieces_are_decoded(nodes: NodesHere, reads: list[tuple[int, int, int, int]]) -> None:
    """The other pieces come from their holder, who learns of the damage; three symbols are read for each damaged piece."""
    table = nodes.capture(V, SIZES)
    nodes.protect(table)
    reads.clear()
    spoil(nodes, 1, 1, 4, 5)
    assert bring(nodes, 0, table, 1).rung == "parity"
    assert sum(count for *_, count in reads) == 3 * 3
    assert set(nodes[1].damage) == {ev.Damaged(nodes[1].slot, V, (1,)), ev.Damaged(nodes[1].slot, V, (4, 5))}


def test_the_last_piece_is_short(nodes: NodesHere) -> None:
    """A damaged last piece is decoded to the byte, beyond which nothing is written."""
    table = nodes.capture(V, SIZES)
    nodes.protect(table)
    for node in range(5):
        spoil(nodes, node, 0)
        flip(nodes[node].segments.file_for(nodes[node].slot, SIZES[node]), SIZES[node] - 1)
        assert bring(nodes, (node + 1) % 5, table, node).rung == "parity"
        nodes[node].capture(V, SIZES[node])


def test_damage_at_two_survivors_is_gone_around(nodes: NodesHere) -> None:
    """A node is lost, and two others have a damaged piece of the same stripe each, at different offsets.

    Three images as a whole are more than two parities give back; piece by piece nothing is lost.
    """
    table = nodes.capture(V, SIZES)
    nodes.protect(table)
    spoil(nodes, 2, piece_at(table, 2, stripe=4, offset=0))
    spoil(nodes, 3, piece_at(table, 3, stripe=4, offset=2))
    for node in (0, 4):
        for rank in (1, 2, 3):
            assert bring(nodes, node, table, rank, 1).rung == "parity"
    with pytest.raises(Unrecoverable):
        bring(nodes, 0, table, 1, 1, 2, 3)


def test_damage_in_two_stripes_and_a_parity_is_gone_around(nodes: NodesHere) -> None:
    """Everybody who is left has a damaged piece, images as well as parities, at most one at each offset of a stripe."""
    table = nodes.capture(V, SIZES)
    nodes.protect(table)
    spoil(nodes, 2, *(piece_at(table, 2, stripe, offset=0) for stripe in (3, 4)))
    spoil(nodes, 3, *(piece_at(table, 3, stripe, offset=1) for stripe in (0, 4)))
    for kept, _ in nodes[4].segments.parity_entries():
        flip(nodes[4].segments.directory / nodes[4].segments._parities[kept.parity].file, 2 * PIECE)
    for node in (0, 2, 3, 4):
        assert bring(nodes, node, table, 1, 1).rung == "parity"
    assert any(isinstance(event, ev.ParityDamaged) for event in nodes[4].damage)


def test_too_much_damage_at_one_offset_is_said(nodes: NodesHere) -> None:
    """With a node lost and two pieces damaged at the same place of a stripe, the error names the stripe and what is left."""
    table = nodes.capture(V, SIZES)
    nodes.protect(table)
    spoil(nodes, 2, piece_at(table, 2, stripe=4, offset=1))
    spoil(nodes, 3, piece_at(table, 3, stripe=4, offset=1))
    said = r"rank 1 of step 5 .*: stripe 4 of step 5 .*: 2 of 3 .*; piece 1 fails its checksum at node 2 and node 3"
    with pytest.raises(Unrecoverable, match=said):
        bring(nodes, 0, table, 1, 1)
    assert bring(nodes, 0, table, 2).rung == "parity"  # with the node there two are not too many


def test_an_image_that_only_its_damaged_holder_has(nodes: NodesHere) -> None:
    """Without parities a damaged piece is lost, and the error says what is missing."""
    table = nodes.capture(V, SIZES)
    spoil(nodes, 1, 0)
    with pytest.raises(
        Unrecoverable, match=r"rank 1 of step 5 .*: stripe \d of step 5 .* can't be decoded: 2 of 3 needed"
    ):
        bring(nodes, 0, table, 1)


@pytest.mark.parametrize("node", [0, 1, 2])
def test_both_maps_of_a_version_serve(tmp_path: Path, node: int) -> None:
    """While a version is protected under the older and the newer map, whichever can decode an image does."""
    with nodes_here(4, 1, tmp_path) as nodes:
        old = nodes.capture(V, SIZES[:4])
        nodes.protect(old)
        without = replace(nodes.ledger(3), map=map_of(2, range(3), parity=1, size=8))
        new = moved(old, without)
        taker = new.holder(3)[0].node
        assert taker == 2  # who has the fewest bytes
        target = ev.SlotId(3, 0)
        event = nodes[taker].jobs.rebuild(ev.Rebuild(new, ((new.holder(3)[1], target),), without))
        assert event.reason == ""
        nodes.protect(new)
        for lost in {0, 1, 2} - {node}:  # together with node 3 more than the older map's parity gives back
            bring(nodes, node, new, lost, lost, 3)
            bring(nodes, node, old, lost, lost, 3)
        for kept, _ in nodes[node].segments.parity_entries():
            if kept.parity.table == new.name:
                nodes[node].segments.drop_parity(kept.parity)
        for lost in {0, 1} - {node}:  # with a parity of the newer map gone, the older one serves
            assert bring(nodes, node, new, lost, lost).rung == "parity"


@pytest.mark.parametrize("pieces", [7, 64])
def test_two_windows_of_memory_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """However long the images are, no more is held than two windows of the needed symbols, and they are used again."""
    for module in (comparison, fetch, parities, windows):
        monkeypatch.setattr(module, "WINDOW", 2)
    sizes = [pieces * PIECE - 5, pieces * PIECE, PIECE]
    with nodes_here(3, 1, tmp_path) as nodes:
        table = nodes.capture(V, sizes)
        nodes.protect(table)
        for rank in (0, 1, 2):
            into = memoryview(bytearray(sizes[rank]))
            asked = nodes[(rank + 1) % 3]
            asked.fetcher.image(nodes.ledger(rank), table, rank, into)
            assert into == bytes_of(V, rank, sizes[rank])
        made = [list(node.fetcher._buffers._free.queue) for node in nodes.nodes]
        assert all(len(buffers) == 2 * 2 for buffers in made)
        assert {len(buffer) for buffers in made for buffer in buffers} == {2 * PIECE}


def test_a_padded_payload_needs_no_bytes(nodes: NodesHere) -> None:
    """A node that captured nothing is zeros in every stripe, and is no erasure when it is lost."""
    table = nodes.capture(V, SIZES)
    fewer = replace(table, world=4, payloads=(*table.payloads[:4], Payload(4, ())))
    nodes.protect(fewer)
    assert bring(nodes, 0, fewer, 1, 1).rung == "parity"
