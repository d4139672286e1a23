"""Reading symbols of stripes: which pieces of which images and parities they are, and from whose memory they come."""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.ckpt.config import Config, split_address
from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.groups import Group
from ckptd.ckpt.inventory import Ledger, Parity
from ckptd.ckpt.model import PIECE, Image, Table, Version
from ckptd.ckpt.pieces import piece_sum
from ckptd.ckpt.recovery import surviving
from ckptd.daemon.segments import Segments
from ckptd.daemon.transport import DamagedThere, Endpoint, NotHeld, Range, Transport

Pieces = frozenset[int]
"""Numbers of pieces, counted from the start of what was read."""
WHOLE: Pieces = frozenset()


@dataclass(frozen=True, slots=True)
class Stripe:
    """One stripe of a version as it was protected under a table. Symbols are numbered as in `Code`: data, then parities."""

    ledger: Ledger
    table: Table
    group: Group
    number: int

    def node_of(self, symbol: int) -> int:
        """The node that holds a symbol."""
        layout = self.group.layout
        data, parities = layout.data_positions(self.number), layout.parity_positions(self.number)
        return self.group.nodes[data[symbol] if symbol < layout.k else parities[symbol - layout.k]]

    def surviving(self) -> list[int]:
        """The symbols that live nodes can serve."""
        return surviving(self.ledger, self.table, self.group, self.number)

    def ranges(self, symbol: int, offset: int, count: int) -> list[tuple[int, Range]]:
        """What to read for `count` pieces of a symbol from piece `offset` on: ranges and where each begins among them.

        What no range covers is padding: zeros.
        """
        layout, version = self.group.layout, self.table.version
        if symbol >= layout.k:
            parity = Parity(version, self.table.name, self.group.index, self.number, symbol - layout.k)
            return [(0, Range(version, parity, offset, count))]
        position = layout.data_positions(self.number)[symbol]
        segment = layout.segment_of(position, self.number)
        assert segment is not None, "a data position has a segment"
        begin = segment * self.group.units(self.table) + offset
        found, start = [], 0
        for image in self.table.payload(self.group.nodes[position]).images:
            first, last = max(begin, start), min(begin + count, start + image.pieces)
            if first < last:
                found.append((first - begin, Range(version, image, first - start, last - first)))
            start += image.pieces
        return found


class Symbols:
    """Reads symbols and images, from this node's own memory or from others. Called from many threads at a time."""

    def __init__(self, config: Config, segments: Segments, reader: Transport) -> None:
        self._config, self._segments, self._reader = config, segments, reader

    def read(self, stripe: Stripe, symbol: int, offset: int, into: memoryview) -> Pieces:
        """Fill `into` (whole pieces) from piece `offset` of the symbol, padded with zeros; return which pieces are damaged.

        Raises CkptdError when it can't be read.
        """
        count, node = len(into) // PIECE, stripe.node_of(symbol)
        done, damaged = 0, set[int]()
        for at, wanted in stripe.ranges(symbol, offset, count):
            _clear(into[done : at * PIECE])
            done = at * PIECE + wanted.size
            damaged |= {at + piece for piece in self.range(stripe.ledger, node, wanted, into[at * PIECE : done])}
        _clear(into[done:])
        return frozenset(damaged)

    def range(self, ledger: Ledger, node: int, wanted: Range, into: memoryview) -> Pieces:
        """Read a range from a node, checked; return which of its pieces are damaged where they are held.

        Raises CkptdError when it can't be read.
        """
        try:
            if node == self._config.node:
                return self._own(wanted, into)
            self._reader.read(self._endpoint(ledger, node), wanted, into)
        except DamagedThere as error:
            return frozenset(piece - wanted.first for piece in error.pieces)
        return WHOLE

    def sums(self, ledger: Ledger, node: int, version: Version, image: Image) -> list[int]:
        """The sums of an image that a node holds or protects, exactly those that its digest is of. Raises CkptdError."""
        if node == self._config.node:
            held = self._segments.image(version, image.rank, image.digest)
            if held is not None:
                return held.sums
            listed = self._segments.listed(image.digest)
            if listed is None:
                raise NotHeld(f"node {node} (this one) no longer holds rank {image.rank} of {version}")
            return list(listed.tolist())
        return self._reader.sums(self._endpoint(ledger, node), version, image)

    def _endpoint(self, ledger: Ledger, node: int) -> Endpoint:
        report = ledger.report(node)
        if report is None:
            raise PeerError(f"node {node} is lost")
        host, _ = split_address(self._config.nodes[node])
        return Endpoint(node, host, report.data_port)

    def _own(self, wanted: Range, into: memoryview) -> Pieces:
        what = wanted.what
        held = (
            self._segments.image(wanted.version, what.rank, what.digest)
            if isinstance(what, Image)
            else self._segments.parity(what)
        )
        if held is None:
            raise NotHeld(f"node {self._config.node} (this one) no longer holds {wanted}")
        begin = wanted.first * PIECE
        source = held.view[begin : begin + len(into)]
        into[: len(source)] = source
        pieces = (into[at * PIECE : min(len(source), (at + 1) * PIECE)] for at in range(wanted.count))
        damaged = [at for at, piece in enumerate(pieces) if piece_sum(piece) != held.sums[wanted.first + at]]
        if damaged and self._segments.check(held, wanted.first, wanted.count) is None:
            raise NotHeld(f"node {self._config.node} (this one) no longer holds {wanted}")
        return frozenset(damaged)


_ZEROS = bytes(PIECE)


def _clear(view: memoryview) -> None:
    for start in range(0, len(view), PIECE):
        part = view[start : start + PIECE]
        part[:] = _ZEROS[: len(part)]
