"""The code alone: parities are what the mathematics says, and any k symbols give everything back."""

import mmap
from itertools import accumulate, combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.erasure import Code, TooFewSymbols, serving
from ckptd.erasure.code import WritableBuffer
from ckptd.erasure.portable import STRIDE

SHAPES = [*((k, m) for m in range(1, 5) for k in range(1, 7 - m)), (8, 1), (8, 3), (16, 4), (100, 2)]
Matrix = list[list[int]]


# The reference: GF(256) as schoolbooks have it, one byte at a time.
def times(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


TIMES = [[times(a, b) for b in range(256)] for a in range(256)]
POWERS = list(accumulate(range(254), lambda power, _: times(power, 2), initial=1))


def matmul(a: Matrix, b: Matrix) -> Matrix:
    result = [[0] * len(b[0]) for _ in a]
    for i, row in enumerate(a):
        for j, x in enumerate(row):
            for column, y in enumerate(b[j]):
                result[i][column] ^= TIMES[x][y]
    return result


def inverse(matrix: Matrix) -> Matrix:
    size = len(matrix)
    rows = [row + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = TIMES[rows[column][column]].index(1)
        rows[column] = [TIMES[scale][x] for x in rows[column]]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [x ^ TIMES[factor][y] for x, y in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


def generator(k: int, m: int) -> Matrix:
    """m = 1: all ones. m >= 2: the Vandermonde matrix over 0, 1, 2, 4, .. made systematic (Rizzo 1997)."""
    if m == 1:
        return [[1] * k]
    points = [[1] + [0] * (k - 1)] + [[POWERS[row * column % 255] for column in range(k)] for row in range(k + m - 1)]
    return matmul(points[k:], inverse(points[:k]))


@pytest.mark.parametrize(("k", "m"), SHAPES)
def test_rows_are_the_generator_of_the_reference(k: int, m: int) -> None:
    """The recorded rows are the matrix of the literature, so another backend can make the same bytes."""
    assert [list(row) for row in Code(k=k, m=m).rows] == generator(k, m)


def test_rows_never_change() -> None:
    """Parities of one release are decoded by the next: the matrix is pinned."""
    assert Code(k=4, m=2).rows == ((119, 64, 56, 14), (199, 167, 13, 108))
    assert Code(k=3, m=1).rows == ((1, 1, 1),)
    assert Code(k=3, m=0).rows == ()


@settings(deadline=None, max_examples=60)
@given(k=st.integers(1, 16), m=st.integers(1, 4), length=st.integers(0, 40), data=st.data())
def test_encode_is_the_matrix_product(k: int, m: int, length: int, data: st.DataObject) -> None:
    """Any chosen rows of any data, in any order, equal the dumb product of rows and data, whoever computes them."""
    symbols = [data.draw(st.binary(min_size=length, max_size=length)) for _ in range(k)]
    rows = data.draw(st.lists(st.integers(0, m - 1), unique=True))
    code = Code(k=k, m=m)
    out = [bytearray(b"\xff" * length) for _ in rows]
    backend = data.draw(st.sampled_from([backend.name for backend in serving(k, m)]))
    code.encode(symbols, rows, out, backend=backend)
    expected = matmul([list(code.rows[row]) for row in rows], [list(symbol) for symbol in symbols])
    assert [list(parity) for parity in out] == expected


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 1), (5, 1), (1, 2), (4, 2)])
@pytest.mark.parametrize("length", [STRIDE - 1, STRIDE, 2 * STRIDE + 13])
def test_long_symbols_are_worked_on_in_parts_without_a_seam(k: int, m: int, length: int) -> None:
    """The first and last bytes of each part are encoded and decoded like all others."""
    rng = np.random.default_rng(length)
    data = [rng.integers(0, 256, length, dtype=np.uint8) for _ in range(k)]
    code = Code(k=k, m=m)
    sample = [i for i in (0, STRIDE - 1, STRIDE, 2 * STRIDE - 1, 2 * STRIDE, length - 1) if i < length]
    expected = matmul([list(row) for row in code.rows], [[int(symbol[i]) for i in sample] for symbol in data])
    for backend in serving(k, m):
        parities = [np.empty(length, np.uint8) for _ in range(m)]
        code.encode(data, range(m), parities, backend=backend.name)
        assert [[int(parity[i]) for i in sample] for parity in parities] == expected
        out = np.empty(length, np.uint8)
        code.decode({**dict(enumerate(data[1:], 1)), k + m - 1: parities[-1]}, [0], [out], backend=backend.name)
        assert np.array_equal(out, data[0])


def test_any_k_of_all_symbols_suffice_and_more_do_no_harm() -> None:
    """Decoding takes any k or more symbols in any order, and writes what is wanted in the order asked."""
    rng = Random(7)
    code = Code(k=3, m=2)
    data = [rng.randbytes(9) for _ in range(3)]
    parities = [bytearray(9), bytearray(9)]
    code.encode(data, [0, 1], parities)
    symbols: dict[int, bytes | bytearray] = dict(enumerate([*data, *parities]))
    for size in (3, 4, 5):
        for present in combinations(rng.sample(range(5), 5), size):
            out = [bytearray(9) for _ in range(3)]
            code.decode({number: symbols[number] for number in present}, [2, 0, 1], out)
            assert out == [data[2], data[0], data[1]]


def test_symbols_are_used_in_the_promised_order() -> None:
    """Of more than k symbols the data come first, then the lowest rows: what is not needed isn't looked at."""
    code = Code(k=2, m=2)
    parity, out = bytearray(2), bytearray(2)
    code.encode([b"ab", b"cd"], [0], [parity])
    code.decode({3: b"??", 2: b"??", 1: b"cd", 0: b"ab"}, [1], [out])
    assert out == b"cd"
    code.decode({3: b"??", 2: parity, 1: b"cd"}, [0], [out])
    assert out == b"ab"


def test_a_present_symbol_is_copied_though_others_are_lost() -> None:
    """What is there is given back even where too little is left to decode the rest."""
    out = bytearray(2)
    Code(k=3, m=1).decode({1: b"cd"}, [1], [out])
    assert out == b"cd"
    with pytest.raises(TooFewSymbols, match="1 symbols of the stripe are present, 3 are needed"):
        Code(k=3, m=1).decode({1: b"cd"}, [1, 2], [out, bytearray(2)])


@pytest.mark.parametrize("m", [1, 2])
def test_every_kind_of_buffer_is_taken(m: int) -> None:
    """bytes, memoryview, mmap and read-only numpy arrays of any type in; mmap slices and any writable buffer out."""
    code = Code(k=4, m=m)
    floats = np.arange(4, dtype=np.float32).reshape(2, 2)
    floats.flags.writeable = False
    back = np.empty((2, 2), np.float32)
    with mmap.mmap(-1, 64) as shared, memoryview(shared) as view, view[:16] as first, view[17:33] as odd:
        first[:] = bytes(range(16))
        # `odd` begins at no multiple of a word.
        code.encode([bytes(first), first, floats, bytearray(16)], [m - 1], [odd])
        code.decode({0: first, 1: bytearray(first), 3: bytes(16), 3 + m: odd}, [2], [back])
    assert np.array_equal(back, floats)


@pytest.mark.parametrize("m", [1, 2])
def test_numpy_numbers_are_taken(m: int) -> None:
    """Row and symbol numbers that come out of numpy arithmetic work as Python's do."""
    code = Code(k=2, m=m)
    zero, two = np.arange(0, 3, 2)
    parity, back = bytearray(2), bytearray(2)
    code.encode([b"ab", b"cd"], np.array([zero]), [parity])  # type: ignore[arg-type]
    code.decode({np.int64(1): b"cd", two: parity}, np.array([zero]), [back])  # type: ignore[arg-type, dict-item]
    assert back == b"ab"


@pytest.mark.parametrize("m", [0, 1, 2])
def test_empty_symbols_work(m: int) -> None:
    """A stripe of no bytes, and a call that asks for nothing, are not special to the caller."""
    code = Code(k=2, m=m)
    code.encode([b"", b""], range(m), [bytearray() for _ in range(m)])
    code.encode([b"ab", b"cd"], [], [])
    code.decode({0: b"", 1: b""}, [1], [bytearray()])
    code.decode({}, [], [])
    if m:
        code.decode({1: np.empty((0, 3)), 2: b""}, [0], [bytearray()])


@pytest.mark.parametrize("m", [1, 2])
def test_wrong_calls_to_encode_are_refused_and_write_nothing(m: int) -> None:
    """A wrong count, length, row or buffer is a ValueError with what was found and what was expected."""
    data: list[bytes | memoryview] = [b"abc", b"def"]
    out = bytearray(b"...")
    calls: list[tuple[list[bytes | memoryview], list[int], list[WritableBuffer], str]] = [
        (data[:1], [0], [out], "data: found 1 buffers, expected 2"),
        (data, [0], [out, out], "out: found 2 buffers, expected 1"),
        ([b"abc", b"de"], [0], [out], "data symbol 1: found 2 bytes, expected 3 as in the first symbol"),
        ([b"", b"def"], [0], [bytearray()], "data symbol 1: found 3 bytes, expected 0"),
        (data, [0], [bytearray(4)], "out 0: found 4 bytes, expected 3"),
        (data, [m], [out], rf"rows: found \[{m}\], expected distinct numbers 0 <= number < {m}"),
        (data, [-1], [out], r"rows: found \[-1\]"),
        (data, [0, 0], [out, out], r"rows: found \[0, 0\]"),
        (data, [0], [memoryview(b"...")], "out 0: found a read-only buffer"),
        (data, [0], [np.zeros(6, np.uint8)[::2]], "out 0: found ndarray, expected contiguous bytes"),
        ([memoryview(b"a.b.c.")[::2], b"def"], [0], [out], "data symbol 0: found memoryview, expected contiguous"),
    ]
    for sources, rows, targets, message in calls:
        with pytest.raises(ValueError, match=message):
            Code(k=2, m=m).encode(sources, rows, targets)
    assert out == b"..."


@pytest.mark.parametrize("m", [1, 2])
def test_wrong_calls_to_decode_are_refused_and_write_nothing(m: int) -> None:
    """A wrong count, length, number or buffer is a ValueError with what was found and what was expected."""
    symbols = {1: b"def", 2: b"ghi"}
    out = bytearray(b"...")
    calls: list[tuple[dict[int, bytes], list[int], list[WritableBuffer], str]] = [
        (symbols, [0], [], "out: found 0 buffers, expected 1"),
        ({1: b"def", 2: b"ghij"}, [0], [out], "symbol 2: found 4 bytes, expected 3"),
        (symbols, [0], [bytearray(2)], "out for symbol 0: found 2 bytes, expected 3"),
        (symbols, [2], [out], r"wanted: found \[2\], expected distinct numbers 0 <= number < 2"),
        (symbols, [-1], [out], r"wanted: found \[-1\]"),
        (symbols, [0, 0], [out, out], r"wanted: found \[0, 0\]"),
        ({0: b"abc", 9: b"def"}, [1], [out], rf"symbols: found \[0, 9\], .* 0 <= number < {2 + m}"),
        (symbols, [0], [memoryview(b"...")], "out for symbol 0: found a read-only buffer"),
    ]
    for present, wanted, targets, message in calls:
        with pytest.raises(ValueError, match=message):
            Code(k=2, m=m).decode(present, wanted, targets)
    assert out == b"..."


def test_impossible_codes_are_refused() -> None:
    """The code refuses the counts that the layout refuses."""
    for k, m in ((0, 1), (1, -1), (254, 3)):
        with pytest.raises(ValueError, match=rf"k={k} and m={m}: expected k >= 1"):
            Code(k=k, m=m)
