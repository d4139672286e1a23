"""One systematic erasure code over GF(2^8), polynomial 0x11d: any k of k + m symbols give back the k data symbols.

m = 1 is the sum of the data symbols, which in GF(2^8) is XOR: the RAIM5 of REFT (arXiv 2310.12670). m >= 2 is
Reed-Solomon with the generator matrix of zfec (a Vandermonde matrix made systematic: L. Rizzo, "Effective erasure codes
for reliable computer communication protocols", 1997). `Code.rows` tells the matrix, so that another backend that is
given it makes the same bytes.

Buffers are anything that exposes contiguous bytes: bytes, bytearray, memoryview (of an mmap too), numpy arrays. They
are read or written only during the call; an output must not overlap an input. numpy and zfec work without the
interpreter lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zfec
from numpy.typing import NDArray

from ckptd.erasure.layout import check_counts

Bytes = NDArray[np.uint8]
WritableBuffer = bytearray | memoryview | NDArray[Any]
Buffer = bytes | WritableBuffer

STRIDE = 256 * 1024
"""Bytes of each symbol that are worked on at a time. The output then stays in the cache while k inputs are added to it
(measured 1.1 to 1.4 times faster for long symbols and k >= 4), and zfec, which returns new bytes, needs room for the
parts in work only."""


class TooFewSymbols(ValueError):
    """More was lost than the code can give back: fewer than k symbols are present."""

    def __init__(self, *, present: int, needed: int) -> None:
        super().__init__(f"{present} symbols of the stripe are present, {needed} are needed to restore a lost one")
        self.present = present
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Code:
    """Encodes k data symbols into m parities and restores lost data symbols. Raises ValueError as `Layout` does.

    Symbols are numbered: 0..k-1 are the data, k+i is the parity of row i. All symbols of a call are equally long; any
    length will do, zero too.
    """

    k: int
    m: int

    def __post_init__(self) -> None:
        check_counts(self.k, self.m)

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The m generator rows, each k coefficients 0..255: parity i is the sum of rows[i][j] * data[j] over j."""
        return _generator(self.k, self.m)

    def encode(self, data: Sequence[Buffer], rows: Sequence[int], out: Sequence[WritableBuffer]) -> None:
        """Write the parities of these rows (distinct, 0..m-1) of the k data symbols into `out`, in the order of `rows`.

        Raises ValueError where a count, a length or a row is wrong, or an output is read-only or not contiguous.
        """
        _check_count("data", data, self.k)
        _check_numbers("rows", rows, self.m)
        _check_count("out", out, len(rows))
        sources = _views("data symbol", dict(enumerate(data)))
        length = len(sources[0])
        targets = _outputs("out", dict(enumerate(out)), length)
        if not targets:
            return
        numbers = [self.k + int(row) for row in rows]  # zfec takes no numpy integers
        for part in _parts(length):
            blocks = [sources[number][part] for number in range(self.k)]
            if self.m == 1:
                _xor(blocks, targets[0][part])
            else:
                for index, parity in enumerate(_encoder(self.k, self.m).encode(blocks, numbers)):
                    targets[index][part] = np.frombuffer(parity, np.uint8)

    def decode(self, symbols: Mapping[int, Buffer], wanted: Sequence[int], out: Sequence[WritableBuffer]) -> None:
        """Write the wanted data symbols (distinct, 0..k-1) into `out`, in the order of `wanted`, from those present.

        A wanted symbol that is present is copied. For any other, k symbols must be present; where there are more, the
        data symbols are used first, then the parities of the lowest rows.

        Raises TooFewSymbols where a wanted symbol is lost and fewer than k are present; ValueError as `encode` does.
        """
        _check_numbers("symbols", symbols, self.k + self.m)
        _check_numbers("wanted", wanted, self.k)
        _check_count("out", out, len(wanted))
        if len(symbols) < self.k and not symbols.keys() >= set(wanted):
            raise TooFewSymbols(present=len(symbols), needed=self.k)
        if not symbols:
            return
        present = _views("symbol", symbols)
        length = len(next(iter(present.values())))
        lost = _outputs("out for symbol", dict(zip(wanted, out, strict=True)), length)
        for number in present.keys() & lost.keys():
            lost.pop(number)[:] = present[number]
        if lost:
            self._restore(present, lost)

    def _restore(self, present: Mapping[int, Bytes], lost: Mapping[int, Bytes]) -> None:
        """Compute the lost data symbols from at least k present ones."""
        parities = iter(sorted(number for number in present if number >= self.k))
        # Data symbols at their own index: zfec would otherwise exchange items inside the sequences that it is given.
        used = [number if number in present else next(parities) for number in range(self.k)]
        for part in _parts(len(present[used[0]])):
            blocks = [present[number][part] for number in used]
            if self.m == 1:
                for target in lost.values():
                    _xor(blocks, target[part])
            else:
                data = _decoder(self.k, self.m).decode(blocks, used)
                for number, target in lost.items():
                    target[part] = np.frombuffer(data[number], np.uint8)


def _xor(blocks: Sequence[Bytes], out: Bytes) -> None:
    # As bytes, not as 64-bit words: measured equally fast, and twice as fast where a buffer isn't aligned to a word.
    if len(blocks) == 1:
        out[:] = blocks[0]
        return
    np.bitwise_xor(blocks[0], blocks[1], out=out)
    for block in blocks[2:]:
        np.bitwise_xor(out, block, out=out)


def _parts(length: int) -> Iterable[slice]:
    return (slice(start, start + STRIDE) for start in range(0, length, STRIDE))


def _views(kind: str, buffers: Mapping[int, Buffer], length: int | None = None) -> dict[int, Bytes]:
    """The buffers as arrays of `length` bytes, or of the length of the first, without a copy."""
    views = {}
    for number, buffer in buffers.items():
        try:
            view = np.frombuffer(buffer, np.uint8)
        except (BufferError, ValueError) as error:
            raise ValueError(f"{kind} {number}: found {type(buffer).__name__}, expected contiguous bytes") from error
        length = len(view) if length is None else length
        # zfec compares no lengths where the first is zero, and would read past the end.
        if len(view) != length:
            raise ValueError(f"{kind} {number}: found {len(view)} bytes, expected {length} as in the first symbol")
        views[int(number)] = view
    return views


def _outputs(kind: str, buffers: Mapping[int, WritableBuffer], length: int) -> dict[int, Bytes]:
    """As `_views`, and writable. All are checked before any is written: a refused call leaves nothing half written."""
    views = _views(kind, buffers, length)
    for number, view in views.items():
        if not view.flags.writeable:
            raise ValueError(f"{kind} {number}: found a read-only buffer, expected a writable one")
    return views


def _check_count(name: str, buffers: Sequence[Buffer], count: int) -> None:
    if len(buffers) != count:
        raise ValueError(f"{name}: found {len(buffers)} buffers, expected {count}")


def _check_numbers(name: str, numbers: Collection[int], limit: int) -> None:
    # zfec would write past its own arrays for a repeated or negative number.
    if len(set(numbers)) != len(numbers) or not all(0 <= number < limit for number in numbers):
        raise ValueError(f"{name}: found {list(numbers)}, expected distinct numbers 0 <= number < {limit}")


@lru_cache(maxsize=64)
def _encoder(k: int, m: int) -> Any:
    return zfec.Encoder(k, k + m)


@lru_cache(maxsize=64)
def _decoder(k: int, m: int) -> Any:
    return zfec.Decoder(k, k + m)


@lru_cache(maxsize=64)
def _generator(k: int, m: int) -> tuple[tuple[int, ...], ...]:
    if m < 2:
        return ((1,) * k,) * m
    # The parities of the unit matrix are the generator rows themselves.
    unit = [bytes(i == j for j in range(k)) for i in range(k)]
    return tuple(tuple(row) for row in _encoder(k, m).encode(unit, list(range(k, k + m))))
