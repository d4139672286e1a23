"""Bringing bytes to this node: reading symbols of stripes, encoding parities, decoding what was lost.

A source that fails or sends bytes that do not check is left out and the next one is tried: own slot, a node that holds
the image, parity. Work goes through windows of a few MiB, so that memory stays small and every link is busy at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ckptd.ckpt.config import Config, split_address
from ckptd.ckpt.errors import CkptdError, CorruptionError, PeerError, Unrecoverable
from ckptd.ckpt.groups import Group
from ckptd.ckpt.inventory import Ledger, Parity
from ckptd.ckpt.model import PIECE, Image, Table
from ckptd.ckpt.pieces import digest_of, piece_sum, sums_of
from ckptd.ckpt.recovery import Rung, group_of, holders, surviving
from ckptd.daemon.segments import Segments, Stretch
from ckptd.daemon.transport import Endpoint, Range, Transport

WINDOW = 16
"""Pieces of one segment that are read and coded at a time: 4 MiB."""
Progress = Callable[[int], None]
"""Told how many bytes have been brought."""


class Fetcher:
    """Reads what this node lacks. Used from the driver's job threads."""

    def __init__(self, config: Config, segments: Segments, reader: Transport) -> None:
        self._config, self._segments, self._reader = config, segments, reader
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="fetch")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- whole images -----------------------------------------------------------------------------

    def image(self, ledger: Ledger, table: Table, rank: int, into: memoryview) -> Rung:
        """Bring one rank's image of the table into `into` (of its size), verified; return the rung that served it.

        Raises Unrecoverable with the reason of every rung that was tried.
        """
        payload, image = table.holder(rank)
        tried: list[str] = []
        for report, held in holders(ledger, table.version, image):
            try:
                self._copy(ledger, report.node, table, image, into)
            except CkptdError as error:
                tried.append(str(error))
            else:
                own = report.node == self._config.node
                return held.origin if held.origin != "captured" else ("own" if own else "peer")
        try:
            self.decode(ledger, table, payload.node, image, into)
        except CkptdError as error:
            raise Unrecoverable(f"rank {rank} of {table.version}: {'; '.join([*tried, str(error)])}") from error
        return "parity"

    def _copy(self, ledger: Ledger, node: int, table: Table, image: Image, into: memoryview) -> None:
        for first in range(0, image.pieces, WINDOW):
            count = min(WINDOW, image.pieces - first)
            wanted = Range(table.version, image, first, count)
            self._read(ledger, node, wanted, into[first * PIECE : min(image.size, (first + count) * PIECE)])
        if digest_of(sums_of(into), image.size) != image.digest:
            raise CorruptionError(f"rank {image.rank} of {table.version} from node {node} fails the image's digest")

    def decode(self, ledger: Ledger, table: Table, node: int, image: Image, into: memoryview) -> None:
        """Decode an image of the lost node's payload from any k symbols of each stripe that it spans.

        Raises Unrecoverable when too few symbols can be read, CorruptionError when the result fails its digest.
        """
        group = group_of(self._config.groups, node)
        if group is None or group.layout.m == 0:
            raise Unrecoverable(f"node {node} has no parity")
        units = group.units(table)
        start = table.payload(node).start_of(image.rank)
        done = 0
        while done < image.pieces:
            segment, offset = divmod(start + done, units)
            count = min(WINDOW, units - offset, image.pieces - done)
            decoded = self._decode_window(ledger, table, group, node, segment, offset, count)
            target = into[done * PIECE : min(image.size, (done + count) * PIECE)]
            target[:] = decoded[: len(target)]
            done += count
        if digest_of(sums_of(into), image.size) != image.digest:
            raise CorruptionError(f"rank {image.rank} of {table.version}: the decoded bytes fail the image's digest")

    def _decode_window(
        self, ledger: Ledger, table: Table, group: Group, node: int, segment: int, offset: int, count: int
    ) -> memoryview:
        position = group.nodes.index(node)
        stripe = group.layout.stripe_of(position, segment)
        lost_symbol = group.layout.symbol_of(position, stripe)
        candidates = [symbol for symbol in surviving(ledger, table, group, stripe) if symbol != lost_symbol]
        have: dict[int, memoryview] = {}
        tried: list[str] = []
        while len(have) < group.layout.k:
            batch = candidates[: group.layout.k - len(have)]
            if not batch:
                reasons = "; ".join(tried) or f"{len(have)} of {group.layout.k} needed symbols live"
                raise Unrecoverable(f"stripe {stripe} of {table.version} can't be decoded: {reasons}")
            candidates = candidates[len(batch) :]
            for symbol, result in zip(
                batch, self._symbols(ledger, table, group, stripe, batch, offset, count), strict=True
            ):
                if isinstance(result, CkptdError):
                    tried.append(str(result))
                else:
                    have[symbol] = result
        out = memoryview(bytearray(count * PIECE))
        group.code.decode(have, [lost_symbol], [out])
        return out

    # ---- parities ---------------------------------------------------------------------------------

    def make_parity(self, ledger: Ledger, table: Table, group: Group, parity: Parity) -> None:
        """Read the stripe's k data segments, encode one parity row, place it and write its record.

        Raises CkptdError when a data segment can't be read; nothing is recorded then.
        """
        units = group.units(table)
        name, view = self._segments.new_parity(units * PIECE)
        try:
            for offset in range(0, units, WINDOW):
                count = min(WINDOW, units - offset)
                symbols = list(range(group.layout.k))
                data = self._symbols(ledger, table, group, parity.stripe, symbols, offset, count)
                for result in data:
                    if isinstance(result, CkptdError):
                        raise result
                target = view[offset * PIECE : (offset + count) * PIECE]
                group.code.encode([d for d in data if not isinstance(d, CkptdError)], [parity.row], [target])
            self._segments.record_parity(name, parity, table, group.code.rows)
        except (CkptdError, OSError):
            self._segments.abandon_parity(name, units * PIECE)
            raise

    # ---- symbols ----------------------------------------------------------------------------------

    def _symbols(
        self, ledger: Ledger, table: Table, group: Group, stripe: int, symbols: list[int], offset: int, count: int
    ) -> list[memoryview | CkptdError]:
        """Read the same window of several symbols of a stripe side by side."""

        def read(symbol: int) -> memoryview | CkptdError:
            try:
                return self._symbol(ledger, table, group, stripe, symbol, offset, count)
            except CkptdError as error:
                return error

        return list(self._pool.map(read, symbols))

    def _symbol(
        self, ledger: Ledger, table: Table, group: Group, stripe: int, symbol: int, offset: int, count: int
    ) -> memoryview:
        """`count` pieces of one symbol, from piece `offset` of its segment, padded with zeros."""
        layout, units = group.layout, group.units(table)
        out = memoryview(bytearray(count * PIECE))
        if symbol >= layout.k:
            row = symbol - layout.k
            node = group.nodes[layout.parity_positions(stripe)[row]]
            parity = Parity(table.version, group.index, stripe, row)
            self._read(ledger, node, Range(table.version, parity, offset, count), out)
            return out
        position = layout.data_positions(stripe)[symbol]
        segment = layout.segment_of(position, stripe)
        assert segment is not None, "a data position has a segment"
        payload = table.payload(group.nodes[position])
        begin, end = segment * units + offset, segment * units + offset + count
        start = 0
        for image in payload.images:
            first, last = max(begin, start), min(end, start + image.pieces)
            if first < last:
                wanted = Range(table.version, image, first - start, last - first)
                self._read(ledger, payload.node, wanted, out[(first - begin) * PIECE : (last - begin) * PIECE])
            start += image.pieces
        return out

    def _read(self, ledger: Ledger, node: int, wanted: Range, into: memoryview) -> None:
        if node == self._config.node:
            self._read_own(wanted, into)
            return
        report = ledger.report(node)
        if report is None:
            raise PeerError(f"node {node} is lost")
        host, _ = split_address(self._config.nodes[node])
        self._reader.read(Endpoint(node, host, report.data_port), wanted, into)

    def _read_own(self, wanted: Range, into: memoryview) -> None:
        what = wanted.what
        stretch: Stretch | None
        if isinstance(what, Image):
            stretch = self._segments.image(wanted.version, what.rank, what.digest)
        else:
            stretch = self._segments.parity(what)
        if stretch is None:
            raise PeerError(f"node {self._config.node} (this one) no longer holds {wanted}")
        begin = wanted.first * PIECE
        source = stretch.view[begin : begin + min(len(into), wanted.count * PIECE)]
        into[: len(source)] = source
        for index in range(wanted.count):
            piece = into[index * PIECE : min(len(source), (index + 1) * PIECE)]
            if piece_sum(piece) != stretch.sums[wanted.first + index]:
                self._segments.check(stretch, wanted.first, wanted.count)
                raise CorruptionError(f"piece {wanted.first + index} of {wanted} fails its checksum on this node")
