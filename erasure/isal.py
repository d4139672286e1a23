"""ISA-L as a backend: `ec_encode_data` through ctypes, at the speed of the memory, on the caller's own buffers.

The library is the system's `libisal.so.2`, or the copy of it that the wheel of `pyeclib` carries; pyeclib itself is
never imported. It is given zfec's matrix, so it makes zfec's bytes, and is trusted only once it has shown that it does.

The tables that `ec_init_tables` expands a matrix into differ between processors and releases of ISA-L: they are made in
each process and never stored or sent. ctypes releases the interpreter lock during every call.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from ckptd.erasure.portable import Bytes, Recipe, Zfec, generator

log = logging.getLogger(__name__)

SYSTEM = "libisal.so.2"
PACKAGE = "pyeclib"
CALL_MAX = 1 << 30
"""Bytes of each symbol in one call: ISA-L takes the length as a C int."""
PATTERNS_MAX = 256
"""Expanded matrices that are kept, one for each loss pattern in use: 32 bytes a coefficient, so 1 MiB for RS(32,4)."""

Tables = ctypes.Array[ctypes.c_ubyte]

# Longer and shorter than a vector register, and the tails between: short symbols take other paths through the library.
_CHECKED_LENGTHS = (1, 31, 300)
_CHECKED_K, _CHECKED_M = 5, 4


@dataclass(frozen=True, slots=True)
class Missing:
    """ISA-L can't be used here."""

    reason: str
    """What was looked for, and what was wrong with what was found."""


class IsaL:
    """The backend over an open library. Raises AttributeError when the library lacks a function."""

    name = "isal"

    def __init__(self, library: Any, path: str) -> None:
        self.path, self.origin = path, f"ISA-L, {path}"
        number, bytes_at = ctypes.c_int, ctypes.c_void_p
        self._encode = library.ec_encode_data
        self._encode.argtypes, self._encode.restype = [number, number, number, bytes_at, bytes_at, bytes_at], None
        self._expand = library.ec_init_tables
        self._expand.argtypes, self._expand.restype = [number, number, bytes_at, bytes_at], None
        self._invert = library.gf_invert_matrix
        self._invert.argtypes, self._invert.restype = [bytes_at, bytes_at, number], number
        self.tables: Callable[[Recipe], Tables] = lru_cache(maxsize=PATTERNS_MAX)(self._expanded)
        """The matrix of a recipe as `ec_encode_data` takes it, for this process and this library alone."""

    def serves(self, k: int, m: int) -> bool:
        # The one parity of one symbol is a copy, which numpy makes 1.0 to 2.3 times as fast.
        return m >= 1 and (k, m) != (1, 1)

    def combine(self, recipe: Recipe, sources: Sequence[Bytes], out: Sequence[Bytes]) -> None:
        """Write the wanted symbols into `out`, in the order of `want`; the sources are in the order of `have`."""
        tables, length = self.tables(recipe), len(out[0])
        for start in range(0, length, CALL_MAX):
            count = min(CALL_MAX, length - start)
            self._encode(count, recipe.k, len(out), tables, _pointers(sources, start), _pointers(out, start))

    def _expanded(self, recipe: Recipe) -> Tables:
        matrix = self._matrix(recipe)
        tables: Tables = (ctypes.c_ubyte * (32 * matrix.size))()
        self._expand(recipe.k, len(matrix), matrix.ctypes.data, tables)
        return tables

    def _matrix(self, recipe: Recipe) -> Bytes:
        """The coefficients that make the wanted symbols out of those that are had: one row for each, k columns."""
        k, rows = recipe.k, np.array(generator(recipe.k, recipe.m), np.uint8)
        if recipe.want[0] >= k:
            return rows[[number - k for number in recipe.want]]
        whole = np.concatenate([np.eye(k, dtype=np.uint8), rows])
        had, inverse = whole[list(recipe.have)], np.zeros((k, k), np.uint8)
        if self._invert(had.ctypes.data, inverse.ctypes.data, k):
            raise ArithmeticError(f"{self.origin}: found no inverse for {recipe}; any k symbols have one")
        return inverse[list(recipe.want)]


def candidates() -> Iterator[str]:
    """What to open, best first: the system's library, then the one in the installed pyeclib wheel."""
    yield SYSTEM
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libisal") and ".so" in file.name:
            yield str(file.locate())


def load(names: Iterable[str], opening: Callable[[str], Any] = ctypes.CDLL) -> IsaL | Missing:
    """The first library that makes zfec's bytes. One that opens and does not is refused, and the log says why."""
    tried = []
    for name in names:
        try:
            backend = IsaL(opening(name), name)
            wrong = _differences(backend)
        except OSError as error:
            tried.append(str(error))
            continue
        except (AttributeError, ArithmeticError) as error:
            wrong = str(error)
        if not wrong:
            return backend
        log.warning("%s is not used for parity: %s", name, wrong)
        tried.append(f"{name}: {wrong}")
    return Missing("; ".join(tried) or "no library was found")


def _differences(backend: IsaL) -> str:
    """How the backend's parities and restored data differ from zfec's; empty where they are the same."""
    k, m = _CHECKED_K, _CHECKED_M
    for length in _CHECKED_LENGTHS:
        data = list(np.arange(1, k * length + 1).astype(np.uint8).reshape(k, length) * np.uint8(167))
        # One to four rows at once: each count has a loop of its own in the library.
        for count in range(1, m + 1):
            parities, expected = np.zeros((2, count, length), np.uint8)
            recipe = Recipe(k, m, tuple(range(k)), tuple(range(k, k + count)))
            backend.combine(recipe, data, list(parities))
            Zfec().combine(recipe, data, list(expected))
            if not np.array_equal(parities, expected):
                return f"its parities of RS({k},{m}) are not zfec's for {count} rows of {length} bytes"
            lost, restored = tuple(range(count)), np.zeros((count, length), np.uint8)
            recipe = Recipe(k, m, (*range(k, k + count), *range(count, k)), lost)
            backend.combine(recipe, [*expected, *data[count:]], list(restored))
            if not np.array_equal(restored, data[:count]):
                return f"it does not restore {count} lost symbols of RS({k},{m}) and {length} bytes"
    return ""


def _pointers(views: Sequence[Bytes], start: int) -> ctypes.Array[ctypes.c_void_p]:
    """What C calls `unsigned char **`: where each view's byte `start` is. The views must outlive its use."""
    return (ctypes.c_void_p * len(views))(*[view.ctypes.data + start for view in views])
