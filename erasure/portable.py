"""The matrix that every backend shares, and the backends that work everywhere: numpy's XOR for m = 1, zfec for m >= 2.

A backend computes some symbols of a stripe from k others, as a `Recipe` says. It may lean on its caller, `Code`, for
all checks: numbers, counts and lengths fit, and no buffer overlaps an output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zfec
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

STRIDE = 256 * 1024
"""Bytes of each symbol that are worked on at a time. The output then stays in the cache while k inputs are added to it
(measured 1.1 to 1.4 times faster for long symbols and k >= 4), and zfec, which returns new bytes, needs room for the
parts in work only."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which symbols of a stripe are computed from which: lost data from any k symbols, or parities from the data.

    Symbols are numbered as `Code` does: 0..k-1 are the data, k+i is the parity of row i.
    """

    k: int
    m: int
    have: tuple[int, ...]
    """The k numbers that are known. A data symbol stands at its own index, as zfec would exchange items otherwise."""
    want: tuple[int, ...]
    """The numbers to compute: at least one, all parities (`have` is all the data then) or all data."""


class Xor:
    """numpy's XOR: m = 1, where any symbol is the sum of the k others."""

    name = "xor"
    origin = f"numpy {np.__version__}"

    def serves(self, k: int, m: int) -> bool:
        return m == 1

    def combine(self, recipe: Recipe, sources: Sequence[Bytes], out: Sequence[Bytes]) -> None:
        """Write the one wanted symbol into `out`. The sources are in the order of `have`; all are equally long."""
        for part in _parts(len(out[0])):
            _xor([source[part] for source in sources], out[0][part])


class Zfec:
    """zfec: m >= 2. The reference, byte for byte, for what is faster."""

    name = "zfec"
    origin = f"zfec {zfec.__version__}"

    def serves(self, k: int, m: int) -> bool:
        return m >= 2

    def combine(self, recipe: Recipe, sources: Sequence[Bytes], out: Sequence[Bytes]) -> None:
        """Write the wanted symbols into `out`, in the order of `want`; the sources are in the order of `have`."""
        encoding = recipe.want[0] >= recipe.k
        for part in _parts(len(out[0])):
            blocks = [source[part] for source in sources]
            if encoding:
                made = _encoder(recipe.k, recipe.m).encode(blocks, list(recipe.want))
            else:
                data = _decoder(recipe.k, recipe.m).decode(blocks, list(recipe.have))
                made = [data[number] for number in recipe.want]
            for target, symbol in zip(out, made, strict=True):
                target[part] = np.frombuffer(symbol, np.uint8)


@lru_cache(maxsize=64)
def generator(k: int, m: int) -> tuple[tuple[int, ...], ...]:
    """The m rows of k coefficients 0..255: all ones for m = 1, zfec's for more."""
    if m < 2:
        return ((1,) * k,) * m
    # The parities of the unit matrix are the generator rows themselves.
    unit = [bytes(i == j for j in range(k)) for i in range(k)]
    return tuple(tuple(row) for row in _encoder(k, m).encode(unit, list(range(k, k + m))))


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


@lru_cache(maxsize=64)
def _encoder(k: int, m: int) -> Any:
    return zfec.Encoder(k, k + m)


@lru_cache(maxsize=64)
def _decoder(k: int, m: int) -> Any:
    return zfec.Decoder(k, k + m)
