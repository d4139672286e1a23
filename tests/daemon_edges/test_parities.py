"""Parities of what has changed since the older ones: the bytes that encoding everything gives, with the least reading."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.daemon_edges.nodes import NodesHere, forget_sums, nodes_here
from tests.payload import bytes_of, flip

from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.groups import groups_in, parities_of
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Payload, Table, Version, pieces_of
from ckptd.ckpt.pieces import sums_of
from ckptd.daemon import comparison, fetch, parities, windows
from ckptd.daemon import events as ev
from ckptd.daemon.channel import Channel
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import Asked
from ckptd.daemon.segments import Stretch
from ckptd.daemon.transport import Endpoint, Range

U = Version(1, 1)
SIZES = [7 * PIECE + 99, 9 * PIECE, 5 * PIECE - 1, 8 * PIECE + 1, 6 * PIECE]
K, M = 3, 2


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of two pieces, so that parities of a few pieces take several."""
    for module in (comparison, fetch, parities, windows):
        monkeypatch.setattr(module, "WINDOW", 2)


@dataclass(slots=True)
class Asking:
    """What a node asked the others for since it was last looked at."""

    pieces: int = 0
    listings: int = 0
    older: int = 0
    """Pieces of versions before the newest that anybody captured."""

    def take(self) -> Asking:
        taken = replace(self)
        self.pieces = self.listings = self.older = 0
        return taken


@dataclass(slots=True)
class Training:
    """Nodes, and a state that changes from version to version where a test says so. Two slots a rank, in turns."""

    nodes: NodesHere
    asked: Asking = field(default_factory=Asking)
    state: list[bytearray] = field(default_factory=list)
    version: Version = U

    def capture(self, changed: Mapping[int, tuple[int, ...]] | None = None) -> Table:
        """The next version, in which these pieces of these ranks differ; all of a new state where none is given."""
        self.version = Version(1, self.version.step + 1)
        if changed is None:
            self.state = [bytearray(bytes_of(self.version, rank, size)) for rank, size in enumerate(SIZES)]
        for rank, pieces in (changed or {}).items():
            for piece in pieces:
                at = min(piece * PIECE + 1000 * piece, len(self.state[rank]) - 1)
                self.state[rank][at] ^= 1 + self.version.step % 255
        images = []
        for node, data in zip(self.nodes.nodes, self.state, strict=True):
            slot = ev.SlotId(node.config.node, self.version.step % 2)
            node.segments.drop(slot)
            images.append(node.hold(self.version, bytes(data), slot))
        payloads = tuple(Payload(image.rank, (image,)) for image in images)
        return Table(self.version, len(images), payloads, self.nodes[0].config.whole_map)

    def forget(self, version: Version) -> None:
        """No slot holds this version any more."""
        for node in self.nodes.nodes:
            for found, _ in node.segments.slot_entries():
                if found.version == version:
                    node.segments.drop(found.slot)

    def protect(self, table: Table, node: int) -> ev.ParityMade:
        """Make a node's parities under a table, and hold every byte and sum against what encoding all of it gives."""
        owed = parities_of(table, node)
        made = self.nodes[node].jobs.make_parity(ev.MakeParity(table, owed, self.nodes.ledger()))
        assert made.made == owed, made.reason
        for parity in owed:
            kept = self.nodes[node].segments.parity(parity)
            assert kept is not None
            expected = self.encoded(table, parity)
            assert bytes(kept.view) == expected, f"stripe {parity.stripe}, row {parity.row}"
            assert kept.sums == sums_of(expected)
        return made

    def encoded(self, table: Table, parity: Parity) -> bytes:
        """A parity as it follows from the state alone."""
        group = groups_in(table.map)[parity.group]
        size = group.units(table) * PIECE
        data = []
        for position in group.layout.data_positions(parity.stripe):
            payload = table.payload(group.nodes[position])
            parts = [bytes(self.state[image.rank]).ljust(image.pieces * PIECE, b"\0") for image in payload.images]
            whole = b"".join(parts).ljust(size * group.layout.k, b"\0")
            segment = group.layout.segment_of(position, parity.stripe)
            assert segment is not None
            data.append(whole[segment * size : (segment + 1) * size])
        out = bytearray(size)
        group.code.encode(data, [parity.row], [out])
        return bytes(out)


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    """Five nodes with two parities; what they ask each other for is counted."""
    with nodes_here(K + M, M, tmp_path) as nodes:
        made = Training(nodes)
        read, sums = RangeReader.read, RangeReader.sums

        def counted(self: RangeReader, holder: Endpoint, wanted: Range, into: memoryview) -> int:
            made.asked.pieces += wanted.count
            made.asked.older += wanted.count if wanted.version < made.version else 0
            return read(self, holder, wanted, into)

        def listed(self: RangeReader, holder: Endpoint, version: Version, image: Image) -> list[int]:
            made.asked.listings += 1
            return sums(self, holder, version, image)

        monkeypatch.setattr(RangeReader, "read", counted)
        monkeypatch.setattr(RangeReader, "sums", listed)
        yield made


def test_nothing_has_changed(training: Training) -> None:
    """Not a piece is read: the parities are copied."""
    first = training.protect(training.capture(), 0)
    assert (first.copied_bytes, first.updated_bytes) == (0, 0)
    training.asked.take()
    table = training.capture({})
    made = training.protect(table, 0)
    assert training.asked.take() == Asking()  # the digests say so
    size = 3 * PIECE * M
    assert (made.read_bytes, made.copied_bytes, made.updated_bytes) == (0, size, 0)


def test_one_of_three_has_changed(training: Training) -> None:
    """Of a piece that changed alone at its place both versions are read; where two of three changed, all three are."""
    training.protect(training.capture(), 0)
    training.asked.take()
    # Node 0 keeps parities of stripe 0, of the first three pieces of nodes 2, 3 and 4, and of stripe 4, of the last three.
    made = training.protect(training.capture({2: (0, 1), 3: (1,)}), 0)
    assert (made.updated_bytes, made.copied_bytes) == (PIECE, (1 + 3) * PIECE)
    assert training.asked.take() == Asking(pieces=2 + 3, listings=2, older=1)


def test_sums_are_listed_once(training: Training) -> None:
    """The older ones are known; of the new ones each is asked for once, also if it lies in both of this node's stripes."""
    for step, listings in enumerate((4, 4, 4, 4)):
        table = training.capture(dict.fromkeys(range(5), (step,)) if step else None)
        training.protect(table, 0)
        assert training.asked.take().listings == listings


def test_a_new_daemon_compares_too(training: Training) -> None:
    """Who has made none of the parities that it holds asks for the older sums, as long as the older images are held."""
    training.protect(training.capture(), 0)
    node = training.nodes[0]
    forget_sums(node)
    training.asked.take()
    made = training.protect(training.capture({1: (0,), 2: (0,)}), 0)
    assert made.copied_bytes + made.updated_bytes > 0
    assert training.asked.take().pieces < 3 * 2 * M

    forget_sums(node)
    table = training.capture(dict.fromkeys(range(5), (0,)))
    training.forget(Version(1, table.version.step - 1))
    made = training.protect(table, 0)
    assert (made.copied_bytes, made.updated_bytes) == (0, 0)


def test_the_older_version_is_held_no_more(training: Training) -> None:
    """What was to be updated is encoded from the new version alone; what has not changed is copied all the same."""
    training.protect(training.capture(), 0)
    training.protect(training.capture(dict.fromkeys(range(5), (0,))), 0)  # the sums are known now
    older = training.version
    table = training.capture({2: (0, 1, 2)})
    training.forget(older)
    training.asked.take()
    made = training.protect(table, 0)
    assert (made.updated_bytes, made.copied_bytes) == (0, 3 * PIECE)
    assert made.read_bytes >= 3 * 3 * PIECE


@pytest.mark.parametrize("place", ["stripe", "payload"])
def test_other_sizes_are_made_anew(training: Training, place: str) -> None:
    """When segments, or one image alone, have another size, nothing of the older parity is used."""
    training.protect(training.capture(), 0)
    training.state[1 if place == "stripe" else 4] += bytes(PIECE)
    table = training.capture({})
    training.asked.take()
    made = training.protect(table, 0)
    assert (made.copied_bytes, made.updated_bytes, training.asked.take().listings) == (0, 0, 1)


def test_a_damaged_older_parity(training: Training) -> None:
    """Its pieces are checked before they are used: what fails is encoded from the data, and the damage is told."""
    table = training.capture()
    training.protect(table, 0)
    node = training.nodes[0]
    (first, _) = parities_of(table, 0)
    flip(node.segments.directory / node.segments._parities[first].file, PIECE + 5)
    made = training.protect(training.capture({2: (1,)}), 0)
    assert node.damage == [ev.ParityDamaged(first)]
    assert made.updated_bytes == 0
    assert training.nodes[0].segments.parity(first) is not None


def test_a_damaged_parity_is_mended_from_itself(training: Training) -> None:
    """When a parity is made anew as it was damaged, only the window with the damaged piece is read."""
    table = training.capture()
    training.protect(table, 0)
    node = training.nodes[0]
    (first, _) = parities_of(table, 0)
    flip(node.segments.directory / node.segments._parities[first].file, 5)
    training.asked.take()
    made = training.protect(table, 0)
    assert made.copied_bytes == PIECE
    assert training.asked.take().pieces == 2 * 3


def test_a_peer_that_lies_about_sums(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that is not the image's is not believed: that all is as it was, in this case."""
    training.protect(training.capture(), 0)
    honest = RangeServer._list

    def lie(self: RangeServer, talk: Channel, stretch: Stretch, asked: Asked, request: bytes) -> None:
        honest(self, talk, replace(stretch, sums=[1] * len(stretch.sums)), asked, request)

    monkeypatch.setattr(RangeServer, "_list", lie)
    made = training.protect(training.capture(dict.fromkeys(range(5), (0, 1, 2, 6, 7, 8))), 0)
    assert training.asked.listings > 0
    assert (made.copied_bytes, made.updated_bytes) == (0, 0)


def test_peers_that_list_nothing(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a daemon that does not answer the question all counts as changed; it is asked once, not for each image."""
    training.protect(training.capture(), 0)

    def hang_up(self: RangeServer, talk: Channel, stretch: Stretch, asked: Asked, request: bytes) -> None:
        raise PeerError("no such verb")

    monkeypatch.setattr(RangeServer, "_list", hang_up)
    training.asked.take()
    made = training.protect(training.capture({2: (0,)}), 0)
    assert training.asked.listings == 1
    assert (made.copied_bytes, made.updated_bytes) == (3 * PIECE, 3 * PIECE), "the others' digests are the same"


def test_damage_at_a_holder_of_new_bytes(training: Training) -> None:
    """A changed piece that is damaged where it is held spoils no parity: nothing is recorded, and the reason is said."""
    training.protect(training.capture(), 0)
    table = training.capture({2: (0,)})
    flip(
        training.nodes[2].segments.directory
        / training.nodes[2].segments._assigned[ev.SlotId(2, table.version.step % 2)][0]
    )
    owed = parities_of(table, 0)
    made = training.nodes[0].jobs.make_parity(ev.MakeParity(table, owed, training.nodes.ledger()))
    assert made.made == owed[1:]
    assert "1 pieces are damaged where they are held, at node 2" in made.reason


def test_damage_at_a_holder_of_old_bytes(training: Training) -> None:
    """An older piece that is damaged can't be told from the new one: all three new ones are read."""
    training.protect(training.capture(), 0)
    before = training.version
    table = training.capture({2: (0,)})
    flip(training.nodes[2].segments.directory / training.nodes[2].segments._assigned[ev.SlotId(2, before.step % 2)][0])
    made = training.protect(table, 0)
    assert (made.updated_bytes, made.copied_bytes) == (0, 5 * PIECE)


def test_another_map(training: Training) -> None:
    """Under a map that leaves the group as it was all is copied; where its members' order is another, nothing is."""
    table = training.capture()
    training.protect(table, 0)
    training.asked.take()
    made = training.protect(replace(table, map=replace(table.map, number=2)), 0)
    assert (made.copied_bytes, training.asked.take()) == (3 * PIECE * M, Asking())
    made = training.protect(replace(table, map=replace(table.map, number=3, groups=((0, 2, 1, 3, 4),))), 0)
    assert (made.copied_bytes, made.updated_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_any_changes(training: Training, seed: int) -> None:
    """Whatever changes, is lost or damaged between versions, parities are those of everything encoded."""
    rng, node = random.Random(seed), training.nodes[seed % 5]
    training.protect(training.capture(), node.config.node)
    for _ in range(3):
        share, before = rng.choice((0.05, 0.2, 0.5)), training.version
        changed = {
            rank: tuple(piece for piece in range(pieces_of(size)) if rng.random() < share)
            for rank, size in enumerate(SIZES)
        }
        table = training.capture(changed)
        trouble = rng.choice(("", "", "forgotten", "damaged"))
        if trouble == "forgotten":
            training.forget(before)
        elif trouble == "damaged":
            for path in node.segments.directory.glob("parity.*.bin"):
                flip(path, rng.randrange(path.stat().st_size))
        training.protect(table, node.config.node)
        for kept, _ in node.segments.parity_entries():
            if kept.parity.version < table.version:
                node.segments.drop_parity(kept.parity)
