"""Bringing images to this node: from whoever holds them, or decoded.

Work goes through windows of a few MiB of each symbol: while one is encoded or decoded the next one is on its way from all
its sources at once, so memory stays small and every link is busy. A source that fails is left out and another one taken;
a damaged piece is one more erasure of its stripe, and no reason to give up the rest of its image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ckptd.ckpt import shm
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, CorruptionError, Unrecoverable
from ckptd.ckpt.groups import group_of
from ckptd.ckpt.inventory import Held, Ledger, Report
from ckptd.ckpt.model import PIECE, Image, Table, Version
from ckptd.ckpt.pieces import digest_of, piece_sum, runs, sums_of
from ckptd.ckpt.recovery import Rung, holders, is_complete, tables_of
from ckptd.daemon.parities import ParityMaker
from ckptd.daemon.segments import Segments
from ckptd.daemon.symbols import Pieces, Stripe, Symbols
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transport import NotHeld, Range, Transport
from ckptd.daemon.windows import WINDOW, Buffers

READERS = 32
"""Threads that wait for bytes: two windows of a group of sixteen."""


@dataclass(frozen=True, slots=True)
class Brought:
    """An image that was brought here and verified: what served it, and the sums of its pieces."""

    rung: Rung
    sums: list[int]


@dataclass(frozen=True, slots=True)
class _Window:
    """`len(out)` bytes to decode: the lost symbol of a stripe from piece `offset` on."""

    stripe: Stripe
    lost: int
    offset: int
    out: memoryview


class Fetcher:
    """Reads what this node lacks. Used from the driver's job threads."""

    def __init__(self, config: Config, segments: Segments, reader: Transport, throttle: Throttle | None = None) -> None:
        self._config, self._segments = config, segments
        self._symbols, self._throttle = Symbols(config, segments, reader), throttle or Throttle()
        self._pool = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="fetch")
        self._buffers = Buffers()
        self.parities = ParityMaker(segments, self._symbols, self._pool, self._buffers, self._throttle)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- images ---------------------------------------------------------------------------------------

    def image(self, ledger: Ledger, table: Table, rank: int, into: memoryview) -> Brought:
        """Bring one rank's image of the table into `into` (of its size), verified.

        Raises Unrecoverable with the reason of every rung that was tried.
        """
        _, image = table.holder(rank)
        tried: list[str] = []
        for report, held in holders(ledger, table.version, image):
            try:
                shm.touch(into)
                damaged = self._symbols.range(ledger, report.node, _all_of(table.version, image), into)
                if damaged:
                    self.decode(ledger, table.version, image, into, sorted(damaged))
                rung: Rung = "parity" if damaged else self._rung(report, held)
                return Brought(rung, _checked(table.version, image, sums_of(into)))
            except CkptdError as error:
                tried.append(str(error))
        try:
            sums = self.decode(ledger, table.version, image, into, range(image.pieces))
            return Brought("parity", _checked(table.version, image, sums))
        except CkptdError as error:
            raise Unrecoverable(f"rank {rank} of {table.version}: {'; '.join([*tried, str(error)])}") from error

    def pieces(self, ledger: Ledger, version: Version, image: Image, wanted: Sequence[int], into: memoryview) -> Rung:
        """Bring some pieces (ascending) of an image from a node that holds it, or decoded; a damaged one is decoded, too.

        `into` has room for the whole image. Each piece is checked against the sums that the image's digest is of; where
        nobody holds it, who keeps a parity of it lists them. Raises Unrecoverable when no live node can give them.
        """
        tried: list[str] = []
        for report, held in holders(ledger, version, image):
            try:
                sums = self._symbols.sums(ledger, report.node, version, image)
                damaged = set[int]()
                for first, count in runs(wanted):
                    part = into[first * PIECE : (first + count) * PIECE]
                    shm.touch(part)
                    bad = self._symbols.range(ledger, report.node, Range(version, image, first, count), part)
                    damaged |= {first + piece for piece in bad}
                if damaged:
                    self.decode(ledger, version, image, into, sorted(damaged))
                if any(piece_sum(into[piece * PIECE : (piece + 1) * PIECE]) != sums[piece] for piece in wanted):
                    raise CorruptionError(f"rank {image.rank} of {version}: a piece fails the sum of its capture")
                return "parity" if damaged else self._rung(report, held)
            except CkptdError as error:
                tried.append(str(error))
        for node in _protecting(ledger, version, image):
            try:
                sums = self._symbols.sums(ledger, node, version, image)
                if self.decode(ledger, version, image, into, wanted) == [sums[piece] for piece in wanted]:
                    return "parity"
                raise CorruptionError(f"rank {image.rank} of {version}: a decoded piece fails the sum of its capture")
            except NotHeld:  # its parities are of other stripes, or it was restarted since
                continue
            except CkptdError as error:
                tried.append(str(error))
                break
        raise Unrecoverable(f"rank {image.rank} of {version}: {'; '.join(tried) or 'no live node holds it'}")

    def _rung(self, report: Report, held: Held) -> Rung:
        own = report.node == self._config.node
        return held.origin if held.origin != "captured" else ("own" if own else "peer")

    def decode(
        self, ledger: Ledger, version: Version, image: Image, into: memoryview, pieces: Sequence[int]
    ) -> list[int]:
        """Decode some pieces (ascending) of an image from any k symbols of each stripe that they lie in; return their sums.

        `into` has room for the whole image. Raises Unrecoverable when too few symbols can be read under every table.
        """
        reasons = []
        for table in tables_of(ledger).get(version, ()):
            if not is_complete(table) or table.holder(image.rank)[1] != image:
                continue
            try:
                return self._decode_windows(self._windows(ledger, table, image, into, pieces))
            except CkptdError as error:
                reasons.append(str(error))
        raise Unrecoverable("; ".join(reasons) or f"no parity of {version} is known")

    def _windows(
        self, ledger: Ledger, table: Table, image: Image, into: memoryview, pieces: Sequence[int]
    ) -> Iterator[_Window]:
        node = table.holder(image.rank)[0].node
        group = group_of(table.map, node)
        if group is None or group.layout.m == 0:
            raise Unrecoverable(f"node {node} has no parity")
        position, units = group.nodes.index(node), group.units(table)
        start = table.payload(node).start_of(image.rank)
        for first, count in runs(pieces):
            done = 0
            while done < count:
                segment, offset = divmod(start + first + done, units)
                part = min(WINDOW, units - offset, count - done)
                if (first + done + part) * PIECE > image.size and part > 1:
                    part -= 1  # the last piece is short and goes through a buffer, alone
                number = group.layout.stripe_of(position, segment)
                stripe = Stripe(ledger, table, group, number)
                out = into[(first + done) * PIECE : (first + done + part) * PIECE]
                yield _Window(stripe, group.layout.symbol_of(position, number), offset, out)
                done += part

    def _decode_windows(self, windows: Iterable[_Window]) -> list[int]:
        """Decode and sum one window while the symbols of the next one come. Returns the sums of all pieces."""
        unwilling, sums = set[int](), list[int]()
        before: tuple[_Window, _Batch] | None = None
        try:
            for window in windows:
                symbols = self._candidates(window, unwilling)[: window.stripe.group.layout.k]
                after = window, self._begin(window.stripe, symbols, window.offset, _pieces_in(window.out))
                if before:
                    sums += self._finish(*before, unwilling)
                before = after
            if before:
                sums += self._finish(*before, unwilling)
                before = None
        finally:
            if before:
                before[1].release()
        return sums

    def _finish(self, window: _Window, batch: _Batch, unwilling: set[int]) -> list[int]:
        """Decode a window and return the sums of its pieces, while they are in the processor's cache."""
        shm.touch(window.out)  # while the bytes come
        count, size = _pieces_in(window.out), len(window.out)
        if size == count * PIECE:
            self._decode(window, window.out, batch, unwilling, frozenset())
            return sums_of(window.out)
        (buffer,) = self._buffers.take(1)
        try:
            target = memoryview(buffer)[: count * PIECE]
            self._decode(window, target, batch, unwilling, frozenset())
            window.out[:] = target[:size]
        finally:
            self._buffers.give([buffer])
        return sums_of(window.out)

    def _decode(
        self, window: _Window, out: memoryview, batch: _Batch, unwilling: set[int], damaged: frozenset[int]
    ) -> None:
        """Decode into `out` (whole pieces) with what `batch` brings, and whatever else it takes. Ends the batch.

        `damaged` are symbols that are of no use here, as they fail their checks.
        """
        stripe, count, reasons = window.stripe, len(out) // PIECE, list[str]()
        needed = stripe.group.layout.k
        have: dict[int, tuple[memoryview, Pieces]] = {}
        batches = [batch]
        try:
            while True:
                for symbol, part in batches[-1].results():
                    if isinstance(part, CkptdError):
                        reasons.append(str(part))
                        unwilling.add(stripe.node_of(symbol))
                    else:
                        have[symbol] = part
                if len(have) >= needed:
                    break
                tried = {symbol for b in batches for symbol in b.symbols}
                others = [s for s in self._candidates(window, unwilling) if s not in tried | damaged]
                others = others[: needed - len(have)]
                if not others:
                    reasons += (
                        [f"piece {window.offset} fails its checksum at {_nodes(stripe, damaged)}"] if damaged else []
                    )
                    why = "; ".join([f"{len(have)} of {needed} needed symbols live", *reasons])
                    raise Unrecoverable(f"stripe {stripe.number} of {stripe.table.version} can't be decoded: {why}")
                batches.append(self._begin(stripe, others, window.offset, count))
            with self._throttle.work():
                stripe.group.code.decode({s: view for s, (view, _) in have.items()}, [window.lost], [out])
            bad = sorted(frozenset[int]().union(*(pieces for _, pieces in have.values())))
            worse = {piece: damaged | {s for s, (_, pieces) in have.items() if piece in pieces} for piece in bad}
        finally:
            for each in batches:
                each.release()
        for piece in bad:  # what was just decoded from a damaged piece is wrong: once more, from others
            single = _Window(stripe, window.lost, window.offset + piece, out[piece * PIECE : (piece + 1) * PIECE])
            symbols = [s for s in self._candidates(single, unwilling) if s not in worse[piece]][:needed]
            self._decode(single, single.out, self._begin(stripe, symbols, single.offset, 1), unwilling, worse[piece])

    def _candidates(self, window: _Window, unwilling: set[int]) -> list[int]:
        """The symbols to decode from: this node's own ones first, those of nodes that have failed last."""
        stripe, me = window.stripe, self._config.node
        symbols = [symbol for symbol in stripe.surviving() if symbol != window.lost]
        return sorted(symbols, key=lambda s: (stripe.node_of(s) in unwilling, stripe.node_of(s) != me))

    def _begin(self, stripe: Stripe, symbols: Sequence[int], offset: int, count: int) -> _Batch:
        """Start to read the same window of several symbols side by side."""
        buffers = self._buffers.take(len(symbols))
        views = [memoryview(buffer)[: count * PIECE] for buffer in buffers]
        reads = [
            self._pool.submit(self._symbols.read, stripe, s, offset, v) for s, v in zip(symbols, views, strict=True)
        ]
        return _Batch(self._buffers, buffers, views, list(symbols), reads, count)


class _Batch:
    """Windows of several symbols on their way into buffers, which must be released."""

    def __init__(
        self,
        pool: Buffers,
        buffers: list[bytearray],
        views: list[memoryview],
        symbols: list[int],
        reads: list[Future[Pieces]],
        count: int,
    ) -> None:
        self._pool, self._buffers, self._views, self._reads = pool, buffers, views, reads
        self.symbols, self.count = symbols, count

    def results(self) -> Iterator[tuple[int, tuple[memoryview, Pieces] | CkptdError]]:
        """Each symbol with its bytes and which pieces of them are damaged, or why it can't be read."""
        for symbol, view, read in zip(self.symbols, self._views, self._reads, strict=True):
            try:
                yield symbol, (view, read.result())
            except CkptdError as error:
                yield symbol, error

    def release(self) -> None:
        """Give the buffers back, once nobody writes to them any more. Doing it twice is harmless."""
        for read in self._reads:
            if not read.cancel():
                read.exception()
        buffers, self._buffers = self._buffers, []
        self._pool.give(buffers)


def _all_of(version: Version, image: Image) -> Range:
    return Range(version, image, 0, image.pieces)


def _checked(version: Version, image: Image, sums: list[int]) -> list[int]:
    if digest_of(sums, image.size) != image.digest:
        raise CorruptionError(f"rank {image.rank} of {version}: what was brought fails the image's digest")
    return sums


def _nodes(stripe: Stripe, symbols: Iterable[int]) -> str:
    return " and ".join(f"node {node}" for node in sorted(map(stripe.node_of, symbols)))


def _pieces_in(view: memoryview) -> int:
    return -(-len(view) // PIECE)


def _protecting(ledger: Ledger, version: Version, image: Image) -> list[int]:
    """The nodes that keep a parity of the image's group: few, however many the job has."""
    found: list[int] = []
    for table in tables_of(ledger).get(version, ()):
        if is_complete(table) and table.holder(image.rank)[1] == image:
            group = group_of(table.map, table.holder(image.rank)[0].node)
            of = (version, table.name, group.index) if group else None
            found += [r.node for r in ledger.reports if any((p.version, p.table, p.group) == of for p in r.parities)]
    return list(dict.fromkeys(found))
