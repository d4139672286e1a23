"""The backends side by side: the same bytes from each, the fastest one that is here and can be trusted is used."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ckptd.erasure import Code, backends, isal, isal_here, serving
from ckptd.erasure.isal import CALL_MAX, IsaL, Missing, load
from ckptd.erasure.portable import STRIDE, Bytes, Recipe

FOUND = isal_here()
needs_isal = pytest.mark.skipif(isinstance(FOUND, Missing), reason=f"ISA-L is not here: {FOUND}")
SHAPES = [(k, m) for k in range(1, 17) for m in range(1, 5) if (k, m) != (1, 1)]
KIB = 1024


def names(k: int, m: int) -> list[str]:
    return [backend.name for backend in serving(k, m)]


def random_data(k: int, length: int) -> list[Bytes]:
    return list(np.random.default_rng(k * 1000 + length).integers(0, 256, (k, length), dtype=np.uint8))


def symbols_of(code: Code, length: int, reference: str) -> list[Bytes]:
    """All k+m symbols of a stripe, the parities as the reference makes them."""
    data = random_data(code.k, length)
    parities = [np.empty(length, np.uint8) for _ in range(code.m)]
    code.encode(data, range(code.m), parities, backend=reference)
    return [*data, *parities]


def restores(code: Code, symbols: Sequence[Bytes], lost: Sequence[int], backend: str) -> bool:
    """Whether the lost data come back from what is left."""
    present = {number: symbol for number, symbol in enumerate(symbols) if number not in lost}
    wanted = [number for number in lost if number < code.k]
    out = [np.empty(len(symbols[0]), np.uint8) for _ in wanted]
    code.decode(present, wanted, out, backend=backend)
    return all(np.array_equal(found, symbols[number]) for found, number in zip(out, wanted, strict=True))


# ---- the same bytes -----------------------------------------------------------------------------------------


@needs_isal
@pytest.mark.parametrize(("k", "m"), SHAPES)
def test_isal_makes_the_bytes_of_the_reference(k: int, m: int) -> None:
    """For all k <= 16, m <= 4: the parities are zfec's (m = 1: XOR's), for any chosen rows and every short length."""
    code, reference = Code(k=k, m=m), names(k, m)[1]
    for length in (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1000):
        symbols = symbols_of(code, length, reference)
        for rows in (range(m), [m - 1]):
            out = [np.empty(length, np.uint8) for _ in rows]
            code.encode(symbols[:k], rows, out, backend="isal")
            assert all(np.array_equal(made, symbols[k + row]) for made, row in zip(out, rows, strict=True))


@needs_isal
@pytest.mark.parametrize(("k", "m"), [shape for shape in SHAPES if sum(shape) <= 10])
def test_isal_restores_every_loss_of_a_small_group(k: int, m: int) -> None:
    """Groups of up to ten: whichever m symbols are lost, the data come back."""
    code = Code(k=k, m=m)
    symbols = symbols_of(code, 37, names(k, m)[1])
    assert all(restores(code, symbols, lost, "isal") for lost in combinations(range(k + m), m))


@needs_isal
@pytest.mark.slow
def test_isal_restores_every_loss() -> None:
    """For all k <= 16, m <= 4: whichever m symbols are lost, the data come back."""
    for k, m in SHAPES:
        code = Code(k=k, m=m)
        symbols = symbols_of(code, 5, names(k, m)[1])
        bad = [lost for lost in combinations(range(k + m), m) if not restores(code, symbols, lost, "isal")]
        assert not bad, (k, m)


@needs_isal
@settings(deadline=None, max_examples=60)
@given(k=st.integers(1, 32), m=st.integers(1, 4), length=st.integers(0, 2000), shift=st.integers(0, 70), data=st.data())
def test_isal_works_in_place_at_any_address(k: int, m: int, length: int, shift: int, data: st.DataObject) -> None:
    """Up to k = 32, odd lengths, misaligned views: the same bytes, and none beside the output is touched."""
    assume((k, m) != (1, 1))
    code, reference = Code(k=k, m=m), names(k, m)[1]
    symbols = symbols_of(code, length, reference)
    views = []
    for number, symbol in enumerate(symbols[:k]):
        memory = memoryview(bytearray(shift + number + length + 64))
        views.append(memory[shift + number : shift + number + length])
        views[-1][:] = symbol.tobytes()
    around = bytearray(b"\xa5" * (length + 128))
    row = data.draw(st.integers(0, m - 1))
    code.encode(views, [row], [memoryview(around)[shift : shift + length]], backend="isal")
    assert around[shift : shift + length] == symbols[k + row].tobytes()
    lost = data.draw(st.lists(st.integers(0, k + m - 1), unique=True, min_size=1, max_size=m))
    assert restores(code, symbols, lost, "isal")
    assert set(around[:shift] + around[shift + length :]) == {0xA5}


@needs_isal
def test_symbols_longer_than_a_call_have_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbol longer than one call to the library may be is encoded in several."""
    monkeypatch.setattr(isal, "CALL_MAX", 100)
    code = Code(k=3, m=2)
    for length in (99, 100, 101, 250):
        symbols = symbols_of(code, length, "zfec")
        out = [np.empty(length, np.uint8) for _ in range(2)]
        code.encode(symbols[:3], [0, 1], out, backend="isal")
        assert np.array_equal(out, symbols[3:])
        assert restores(code, symbols, [0, 2], "isal")
    assert CALL_MAX < 1 << 31


# ---- what it costs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "m", "backend", "allowed"),
    [
        (4, 1, "xor", 16 * KIB),
        (4, 2, "zfec", 6 * STRIDE),
        pytest.param(4, 1, "isal", 16 * KIB, marks=needs_isal),
        pytest.param(4, 2, "isal", 16 * KIB, marks=needs_isal),
    ],
)
def test_working_memory_does_not_grow_with_the_symbols(k: int, m: int, backend: str, allowed: int) -> None:
    """ISA-L and XOR allocate no buffers; zfec holds the parts in work, however long the symbols are."""
    length = 16 * STRIDE
    data = [bytes(length) for _ in range(k)]
    out = [bytearray(length) for _ in range(m)]
    code = Code(k=k, m=m)
    code.encode(data, range(m), out, backend=backend)
    tracemalloc.start()
    try:
        code.encode(data, range(m), out, backend=backend)
        code.decode({**dict(enumerate(data[1:], 1)), k: out[0]}, [0], [out[-1]], backend=backend)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < allowed


@pytest.mark.parametrize(("m", "backend"), [(1, "xor"), (2, "zfec"), pytest.param(2, "isal", marks=needs_isal)])
def test_others_run_meanwhile(m: int, backend: str) -> None:
    """The interpreter lock is free during the arithmetic: another thread gets on although nobody yields to it."""
    code, data = Code(k=4, m=m), random_data(4, 1 << 20)
    out = [np.empty(1 << 20, np.uint8) for _ in range(m)]
    stop, started, counted = threading.Event(), threading.Event(), [0]

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            started.set()
            time.sleep(0)

    interval = sys.getswitchinterval()
    counter = threading.Thread(target=count)
    counter.start()
    started.wait()
    try:
        sys.setswitchinterval(1000.0)  # from here on only a call that lets go of the lock lets the counter run
        enough, rounds = counted[0] + 10, 0  # a few, as a switch that was asked for before may still come
        while counted[0] < enough and rounds < 2000:
            code.encode(data, range(m), out, backend=backend)
            rounds += 1
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        counter.join()
    assert counted[0] >= enough


@needs_isal
def test_each_loss_pattern_is_prepared_once() -> None:
    """The tables of a loss pattern are made at its first use, and kept."""
    assert isinstance(FOUND, IsaL)
    recipe = Recipe(4, 2, (4, 1, 2, 3), (0,))
    assert FOUND.tables(recipe) is FOUND.tables(Recipe(4, 2, (4, 1, 2, 3), (0,)))
    assert FOUND.tables(recipe) is not FOUND.tables(Recipe(4, 2, (5, 1, 2, 3), (0,)))


# ---- which one is used --------------------------------------------------------------------------------------


@pytest.fixture
def look_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Sequence[str]], None]]:
    """Let ISA-L be looked for anew, among these names."""

    def forget() -> None:
        backends.isal_here.cache_clear()
        backends.choose.cache_clear()

    def among(candidates: Sequence[str]) -> None:
        monkeypatch.setattr(isal, "candidates", lambda: iter(candidates))
        forget()

    yield among
    monkeypatch.undo()
    forget()


def test_without_isal_everything_works(look_again: Callable[[Sequence[str]], None]) -> None:
    """Where ISA-L is missing, zfec and numpy compute; who asks for it by name is told what was looked for."""
    look_again(["libnowhere-3141.so"])
    assert (names(4, 1), names(4, 2), names(4, 0)) == (["xor"], ["zfec"], [])
    for m in (1, 2):
        code = Code(k=4, m=m)
        assert restores(code, symbols_of(code, 100, names(4, m)[0]), [1], names(4, m)[0])
    with pytest.raises(ValueError, match=r"found 'isal' \(libnowhere-3141.so: .*\), expected one of: zfec"):
        Code(k=2, m=2).encode([b"a", b"b"], [0], [bytearray(1)], backend="isal")


@needs_isal
def test_the_fastest_is_used_and_any_can_be_named() -> None:
    """ISA-L comes first unless all there is to do is to copy; a name that can't serve is refused."""
    assert (names(4, 1), names(4, 2)) == (["isal", "xor"], ["isal", "zfec"])
    assert (names(1, 1), names(1, 2), names(4, 0)) == (["xor"], ["isal", "zfec"], [])
    for m, name in ((1, "zfec"), (2, "xor"), (2, "nothing")):
        with pytest.raises(ValueError, match=rf"backend for k=2, m={m}: found '{name}', expected one of: isal, "):
            Code(k=2, m=m).encode([b"a", b"b"], [0], [bytearray(1)], backend=name)


def test_backends_say_what_they_stand_on() -> None:
    """Each names the library underneath."""
    for backend in (*serving(4, 1), *serving(4, 2)):
        assert any(word in backend.origin for word in ("numpy ", "zfec ", "libisal"))


# ---- what is not trusted ------------------------------------------------------------------------------------


def refused(library: Any, caplog: pytest.LogCaptureFixture) -> str:
    """Why a library is not used; the log must say the same."""
    found = load(["libbroken.so"], lambda _: library)
    assert isinstance(found, Missing)
    assert caplog.messages == [f"libbroken.so is not used for parity: {found.reason.removeprefix('libbroken.so: ')}"]
    return found.reason


def function(result: int = 0) -> Callable[..., int]:
    return lambda *_: result


def test_a_library_that_computes_nothing_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The right names are not enough."""
    library = SimpleNamespace(ec_encode_data=function(), ec_init_tables=function(), gf_invert_matrix=function())
    assert "its parities of RS(5,4) are not zfec's for 1 rows of 1 bytes" in refused(library, caplog)


def test_a_library_without_a_function_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Another library of that name."""
    assert "no attribute 'ec_init_tables'" in refused(SimpleNamespace(ec_encode_data=function()), caplog)


@needs_isal
def test_a_library_with_one_wrong_byte_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """An error in the tail of long symbols alone is found."""
    assert isinstance(FOUND, IsaL)
    real = ctypes.CDLL(FOUND.path)
    real.ec_encode_data.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3

    def encode(length: int, k: int, rows: int, *buffers: Any) -> None:
        real.ec_encode_data(length, k, rows, *buffers)
        if length == 300 and rows == 3:
            ctypes.c_ubyte.from_address(buffers[-1][2] + length - 1).value ^= 1

    library = SimpleNamespace(
        ec_encode_data=encode, ec_init_tables=real.ec_init_tables, gf_invert_matrix=real.gf_invert_matrix
    )
    assert "its parities of RS(5,4) are not zfec's for 3 rows of 300 bytes" in refused(library, caplog)


@needs_isal
@pytest.mark.parametrize(
    ("answer", "reason"), [(1, "found no inverse for Recipe"), (0, "it does not restore 1 lost symbols of RS(5,4)")]
)
def test_a_library_that_cannot_invert_is_refused(answer: int, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Right parities are not enough: what was lost must come back."""
    assert isinstance(FOUND, IsaL)
    real = ctypes.CDLL(FOUND.path)
    library = SimpleNamespace(
        ec_encode_data=real.ec_encode_data, ec_init_tables=real.ec_init_tables, gf_invert_matrix=function(answer)
    )
    assert reason in refused(library, caplog)


@needs_isal
def test_the_next_library_is_tried(tmp_path: Path) -> None:
    """A file that is no library, and a name that is not found, do not keep the good one from being used."""
    assert isinstance(FOUND, IsaL)
    (tmp_path / "libisal.so.2").write_bytes(b"text")
    found = load(["libnowhere-3141.so", str(tmp_path / "libisal.so.2"), FOUND.path])
    assert isinstance(found, IsaL)
    assert found.path == FOUND.path
    missing = load(["libnowhere-3141.so", str(tmp_path / "libisal.so.2")])
    assert isinstance(missing, Missing)
    assert "libnowhere-3141.so: cannot open" in missing.reason
    assert "libisal.so.2: " in missing.reason


def test_where_it_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system's library first, then the file inside the installed wheel, whose code is never imported."""
    wheel = {
        "pyeclib/ec_iface.py": tmp_path,
        "pyeclib.libs/libisal-pyeclib.so.2": tmp_path / "libisal-pyeclib.so.2",
        "pyeclib-1.8.0.dist-info/licenses/LICENSE-isal": tmp_path,
    }
    files = [SimpleNamespace(name=Path(name).name, locate=lambda at=at: at) for name, at in wheel.items()]
    monkeypatch.setattr(metadata, "files", lambda _: files)
    assert list(isal.candidates()) == ["libisal.so.2", str(tmp_path / "libisal-pyeclib.so.2")]
    monkeypatch.setattr(metadata, "files", lambda _: None)
    assert list(isal.candidates()) == ["libisal.so.2"]

    def absent(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "files", absent)
    assert list(isal.candidates()) == ["libisal.so.2"]
    assert not any(name.startswith("pyeclib") for name in sys.modules)
