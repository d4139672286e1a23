"""One systematic erasure code over GF(2^8), polynomial 0x11d: any k of k + m symbols give back the k data symbols.

m = 1 is the sum of the data symbols, which in GF(2^8) is XOR: the RAIM5 of REFT (arXiv 2310.12670). m >= 2 is
Reed-Solomon with the generator matrix of zfec (a Vandermonde matrix made systematic: L. Rizzo, "Effective erasure codes
for reliable computer communication protocols", 1997). `Code.rows` tells the matrix. The arithmetic is done by a backend
(`backends.py`): ISA-L where it is found, zfec and numpy otherwise. All make the same bytes.

Buffers are anything that exposes contiguous bytes: bytes, bytearray, memoryview (of an mmap too), numpy arrays. They
are read or written in place and only during the call; an output must not overlap an input. The interpreter lock is
released meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptd.erasure.backends import choose
from ckptd.erasure.layout import check_counts
from ckptd.erasure.portable import Bytes, Recipe, generator
from ckptd.erasure.threads import spread

WritableBuffer = bytearray | memoryview | NDArray[Any]
Buffer = bytes | WritableBuffer


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
        return generator(self.k, self.m)

    def encode(
        self,
        data: Sequence[Buffer],
        rows: Sequence[int],
        out: Sequence[WritableBuffer],
        *,
        threads: int = 1,
        backend: str | None = None,
    ) -> None:
        """Write the parities of these rows (distinct, 0..m-1) of the k data symbols into `out`, in the order of `rows`.

        The bytes are shared out over `threads` threads (1 to 64). `backend` is the name of one that `serving` lists;
        None takes the fastest.

        Raises ValueError where a count, a length or a row is wrong, an output is read-only or not contiguous, or the
        backend isn't here.
        """
        _check_count("data", data, self.k)
        _check_numbers("rows", rows, self.m)
        _check_count("out", out, len(rows))
        sources = _views("data symbol", dict(enumerate(data)))
        targets = _outputs("out", dict(enumerate(out)), len(sources[0]))
        if targets:
            wanted = tuple(self.k + int(row) for row in rows)  # zfec takes no numpy integers
            recipe = Recipe(self.k, self.m, tuple(range(self.k)), wanted)
            _combine(recipe, list(sources.values()), list(targets.values()), threads, backend)

    def decode(
        self,
        symbols: Mapping[int, Buffer],
        wanted: Sequence[int],
        out: Sequence[WritableBuffer],
        *,
        threads: int = 1,
        backend: str | None = None,
    ) -> None:
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
            parities = iter(sorted(number for number in present if number >= self.k))
            used = tuple(number if number in present else next(parities) for number in range(self.k))
            recipe = Recipe(self.k, self.m, used, tuple(lost))
            _combine(recipe, [present[number] for number in used], list(lost.values()), threads, backend)


def _combine(recipe: Recipe, sources: Sequence[Bytes], out: Sequence[Bytes], threads: int, backend: str | None) -> None:
    combine = choose(recipe.k, recipe.m, backend).combine

    def part_of(part: slice) -> None:
        combine(recipe, [source[part] for source in sources], [target[part] for target in out])

    spread(len(out[0]), threads, part_of)


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
