"""Making the parities that this node keeps for others: of what has changed since an older one, or of everything.

An older parity of the same stripe is worth its bytes: where none of the data has changed it is copied, where little has, the
differences are added. What can't be made so after all is made of all data, as if nothing stood here.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from ckptd.ckpt import shm
from ckptd.ckpt.errors import CkptdError, CorruptionError
from ckptd.ckpt.groups import groups_in
from ckptd.ckpt.inventory import Ledger, Parity
from ckptd.ckpt.model import PIECE, Table
from ckptd.ckpt.pieces import piece_sum, sums_of
from ckptd.daemon.comparison import Comparer, Older
from ckptd.daemon.segments import Segments
from ckptd.daemon.symbols import Pieces, Stripe, Symbols
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transport import NotHeld
from ckptd.daemon.unchanged import Run, batches
from ckptd.daemon.windows import WINDOW, Buffers

_ZEROS = bytes(PIECE)


@dataclass(frozen=True, slots=True)
class Spent:
    """What making parities took, and what it was spared."""

    waited_s: float = 0.0
    """For bytes of the others; `coded_s` went into copying, encoding and sums."""
    coded_s: float = 0.0
    read_bytes: int = 0
    """Of the others' images."""
    copied_bytes: int = 0
    """Of the parities: taken from older ones as they are. For `updated_bytes` the differences were added."""
    updated_bytes: int = 0

    def __add__(self, more: Spent) -> Spent:
        return Spent(
            self.waited_s + more.waited_s,
            self.coded_s + more.coded_s,
            self.read_bytes + more.read_bytes,
            self.copied_bytes + more.copied_bytes,
            self.updated_bytes + more.updated_bytes,
        )


class ParityMaker:
    """Makes one parity at a time. Used from one thread."""

    def __init__(
        self, segments: Segments, symbols: Symbols, pool: Executor, buffers: Buffers, throttle: Throttle
    ) -> None:
        self._segments, self._symbols, self._pool = segments, symbols, pool
        self._buffers, self._throttle = buffers, throttle
        self._comparer = Comparer(segments, symbols, pool)

    def make(self, ledger: Ledger, table: Table, parity: Parity) -> Spent:
        """Make one parity of a stripe, place it and write its record; return what it took.

        Raises CkptdError when a data segment can't be read; nothing is recorded then.
        """
        group = groups_in(table.map)[parity.group]
        stripe, size = Stripe(ledger, table, group, parity.stripe), group.units(table) * PIECE
        older = self._comparer.older(stripe, parity)
        listed = self._comparer.listed(stripe, {})
        planned = self._comparer.plan(stripe, older, listed)
        name, view = self._segments.new_parity(size)
        try:
            making = _Making(
                self._segments, self._symbols, self._buffers, self._throttle, stripe, parity.row, older, view
            )
            with closing(self._ahead(making, planned)) as ahead:
                for batch in ahead:
                    making.finish(batch)
            self._segments.record_parity(name, parity, table, group.code.rows, making.sums.tolist(), listed)
            return making.spent
        except (CkptdError, OSError):
            self._segments.abandon_parity(name, size)
            raise

    def _ahead(self, making: _Making, planned: Sequence[Run]) -> Generator[_Batch, None, None]:
        """The runs in batches, the next one's bytes already on their way. A batch is good until the next one is taken."""
        before: _Batch | None = None
        after: _Batch | None = None
        try:
            for batch in batches(planned, WINDOW):
                after = _Batch(making, batch, self._pool, self._buffers, self._symbols)
                if before:
                    yield before
                    before.release()
                before, after = after, None
            if before:
                yield before
        finally:
            for item in (before, after):
                if item:
                    item.release()


@dataclass(frozen=True, slots=True)
class _Read:
    """`into` is to be filled with what a symbol has from piece `first` on."""

    stripe: Stripe
    symbol: int
    first: int
    into: memoryview


class _Batch:
    """Runs, and what they need on its way into windows ("lanes"), each of which is filled in order. Must be released."""

    def __init__(
        self, making: _Making, batch: Sequence[tuple[Run, int]], pool: Executor, buffers: Buffers, symbols: Symbols
    ) -> None:
        self.runs = [(making.as_it_is_now(run), at) for run, at in batch]
        self._making, self._spare = making, buffers
        self._buffers = buffers.take(max(run.lanes(making.k) for run, _ in self.runs))
        reads: list[dict[int, _Read]] = [{} for _ in self._buffers]
        for run, at in self.runs:
            for lane, (stripe, symbol) in enumerate(making.sources(run)):
                reads[lane][at] = _Read(stripe, symbol, run.first, self.view(lane, at, run.count))
        self._fills = [pool.submit(_fill, symbols, lane) for lane in reads]

    def view(self, lane: int, at: int, count: int) -> memoryview:
        """Some pieces of a window."""
        return memoryview(self._buffers[lane])[at * PIECE : (at + count) * PIECE]

    def wait(self) -> None:
        """Until nothing is under way any more."""
        for fill in self._fills:
            fill.result()

    def problem(self, run: Run, at: int) -> CkptdError | None:
        """Why a run, whose place is `at`, can't be made of what has come; None when all of it has."""
        for fill, (stripe, symbol) in zip(self._fills, self._making.sources(run), strict=False):
            part = fill.result()[at]
            if isinstance(part, CkptdError):
                return part
            if part:
                return _damaged(stripe, symbol, part)
        return None

    def release(self) -> None:
        """Give the windows back, once nobody writes to them any more. Doing it twice is harmless."""
        for fill in self._fills:
            if not fill.cancel():
                fill.exception()
        buffers, self._buffers = self._buffers, []
        self._spare.give(buffers)


def _fill(symbols: Symbols, reads: dict[int, _Read]) -> dict[int, Pieces | CkptdError]:
    """Read one after the other; what is damaged of each, or why it can't be read."""
    found: dict[int, Pieces | CkptdError] = {}
    fatal: CkptdError | None = None
    for at, read in reads.items():
        if fatal is None:
            try:
                found[at] = symbols.read(read.stripe, read.symbol, read.first, read.into)
                continue
            except NotHeld as error:  # another version may be held
                found[at] = error
                continue
            except CkptdError as error:
                fatal = error
        found[at] = fatal
    return found


class _Making:
    """One parity in the making: its bytes, their sums, and what it took."""

    def __init__(
        self, segments: Segments, symbols: Symbols, buffers: Buffers, throttle: Throttle,
        stripe: Stripe, row: int, older: Older | None, view: memoryview,
    ) -> None:  # fmt: skip
        self._segments, self._symbols, self._buffers, self._throttle = segments, symbols, buffers, throttle
        self._stripe, self._row, self._older, self._view = stripe, row, older, view
        self.k = stripe.group.layout.k
        self.sums = np.zeros(len(view) // PIECE, np.uint64)
        self.spent = Spent()
        self._older_is_read = True
        """Whether the older version's images can still be read, as far as is known."""

    def as_it_is_now(self, run: Run) -> Run:
        """The run, or how else to make it when there are no differences to be had any more."""
        return run if run.is_copy or self._older_is_read else replace(run, changed=None)

    def sources(self, run: Run) -> list[tuple[Stripe, int]]:
        """What to read for a run: stripes and symbols. Of those that have changed, what they are and what they were."""
        if run.changed is None:
            return [(self._stripe, symbol) for symbol in range(self.k)]
        older = [self._older.stripe] if self._older else []
        return [(stripe, symbol) for symbol in run.changed for stripe in (self._stripe, *older)]

    def finish(self, batch: _Batch) -> None:
        """Make the runs of a batch. Raises CkptdError when a data segment can't be read."""
        started, failed = time.monotonic(), list[Run]()
        with self._throttle.work():  # while the bytes come
            for run, _ in batch.runs:
                shm.touch(self._target(run.first, run.count))
                if run.is_copy and not all(self._copy(run.first + index) for index in range(run.count)):
                    failed.append(run)
        asked = time.monotonic()
        batch.wait()
        came = time.monotonic()
        with self._throttle.work():
            for run, at in batch.runs:
                if run.changed is None:
                    problem = batch.problem(run, at)
                    if problem:
                        raise problem
                    self._encode(run, [batch.view(lane, at, run.count) for lane in range(self.k)])
                elif not run.is_copy and not self._update(run, at, batch):
                    failed.append(run)
        coded = asked - started + time.monotonic() - came
        self.spent += Spent(came - asked, coded, sum(run.count * run.reads(self.k) for run, _ in batch.runs) * PIECE)
        for run, _ in batch.runs:
            if run not in failed and run.changed is not None:
                size = run.count * PIECE
                self.spent += Spent(copied_bytes=size) if run.is_copy else Spent(updated_bytes=size)
        for run in failed:
            self._make_anew(run)

    def _copy(self, piece: int) -> bool:
        """Take the older parity's piece; False when it fails its check. Then its owner, who is here, is told so."""
        assert self._older, "a run that is copied has something to be copied from"
        old, target = self._older.stretch, self._target(piece, 1)
        target[:] = old.view[piece * PIECE : (piece + 1) * PIECE]
        self.sums[piece] = found = piece_sum(target)
        if found != old.sums[piece]:
            self._segments.check(old, piece, 1)
            return False
        return True

    def _update(self, run: Run, at: int, batch: _Batch) -> bool:
        """Add the differences of what has changed to the older parity; False when that can't be done."""
        assert run.changed, "something has changed"
        if batch.problem(run, at):
            self._older_is_read = False
            return False
        code = self._stripe.group.code
        for index in range(run.count):
            if not self._copy(run.first + index):
                return False
            data: list[bytes | memoryview] = [_ZEROS] * self.k
            for lane, symbol in enumerate(run.changed):
                now, then = (batch.view(2 * lane + which, at + index, 1) for which in (0, 1))
                _add(then, now)
                data[symbol] = now
            difference = batch.view(2 * len(run.changed), at + index, 1)  # a lane that nothing is read into
            code.encode(data, [self._row], [difference])
            target = self._target(run.first + index, 1)
            _add(difference, target)
            self.sums[run.first + index] = piece_sum(target)
        return True

    def _make_anew(self, run: Run) -> None:
        """Make a run of all k data symbols, as the older parity or version was of no use. Raises CkptdError."""
        started = time.monotonic()
        buffers = self._buffers.take(self.k)
        try:
            data = [memoryview(buffer)[: run.count * PIECE] for buffer in buffers]
            for symbol, view in enumerate(data):
                damaged = self._symbols.read(self._stripe, symbol, run.first, view)
                if damaged:
                    raise _damaged(self._stripe, symbol, damaged)
            came = time.monotonic()
            with self._throttle.work():
                self._encode(run, data)
            self.spent += Spent(came - started, time.monotonic() - came, self.k * run.count * PIECE)
        finally:
            self._buffers.give(buffers)

    def _encode(self, run: Run, data: Sequence[memoryview]) -> None:
        target = self._target(run.first, run.count)
        self._stripe.group.code.encode(data, [self._row], [target])
        self.sums[run.first : run.first + run.count] = sums_of(target)

    def _target(self, first: int, count: int) -> memoryview:
        return self._view[first * PIECE : (first + count) * PIECE]


def _add(what: memoryview, into: memoryview) -> None:
    """Sums in GF(2^8) are XOR."""
    target = np.frombuffer(into, np.uint8)
    np.bitwise_xor(target, np.frombuffer(what, np.uint8), out=target)


def _damaged(stripe: Stripe, symbol: int, pieces: Pieces) -> CorruptionError:
    return CorruptionError(
        f"symbol {symbol} of stripe {stripe.number}: {len(pieces)} pieces are damaged where they are held, at node "
        f"{stripe.node_of(symbol)}"
    )
