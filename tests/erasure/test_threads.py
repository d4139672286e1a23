"""Work on several threads: every byte once, as many threads as told, nothing still running when an error comes back."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from ckptd.erasure import Code, serving
from ckptd.erasure.threads import GRAIN, THREADS_MAX, spread


@pytest.mark.parametrize("length", [0, 1, GRAIN, GRAIN + 1, 5 * GRAIN - 1, 8 * GRAIN])
@pytest.mark.parametrize("threads", [1, 2, 3, THREADS_MAX])
def test_every_byte_once(length: int, threads: int) -> None:
    """The parts cover the range without gap or overlap, and are no more than the threads."""
    done: list[slice] = []
    spread(length, threads, done.append)
    parts = sorted((part.start, part.stop) for part in done)
    assert len(parts) <= threads
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert parts[-1][1] == length


def test_as_many_threads_as_told() -> None:
    """Four threads are at work at once: none of them gets past the barrier alone."""
    barrier = threading.Barrier(4, timeout=60.0)
    passed = []

    def work(_: slice) -> None:
        passed.append(barrier.wait())

    spread(4 * GRAIN, 4, work)
    assert sorted(passed) == [0, 1, 2, 3]


def test_an_error_comes_back_when_nobody_works_any_more() -> None:
    """What one thread raises reaches the caller, once the others have let go of the buffers."""
    first, done = threading.Event(), []

    def work(part: slice) -> None:
        if part.start == 0:
            first.set()
            raise ArithmeticError("the first")
        first.wait()
        done.append(part)

    with pytest.raises(ArithmeticError, match="the first"):
        spread(3 * GRAIN, 3, work)
    assert len(done) == 2

    def last(part: slice) -> None:
        if part.start:
            raise ArithmeticError("the last")

    with pytest.raises(ArithmeticError, match="the last"):
        spread(2 * GRAIN, 2, last)


@pytest.mark.parametrize(("k", "m"), [(3, 1), (3, 2)])
def test_threads_make_the_same_bytes(k: int, m: int) -> None:
    """A stripe that is shared out among threads is encoded and decoded as by one, by each backend."""
    length = 3 * GRAIN + 17
    data = list(np.random.default_rng(m).integers(0, 256, (k, length), dtype=np.uint8))
    code = Code(k=k, m=m)
    alone = [np.empty(length, np.uint8) for _ in range(m)]
    code.encode(data, range(m), alone)
    for backend in serving(k, m):
        out = [np.empty(length, np.uint8) for _ in range(m)]
        code.encode(data, range(m), out, threads=3, backend=backend.name)
        assert np.array_equal(out, alone)
        back = np.empty(length, np.uint8)
        code.decode({0: data[0], 2: data[2], k: out[0]}, [1], [back], threads=2, backend=backend.name)
        assert np.array_equal(back, data[1])


@pytest.mark.parametrize("threads", [0, -1, THREADS_MAX + 1])
def test_impossible_numbers_of_threads_are_refused(threads: int) -> None:
    """No thread, and far too many, are a ValueError."""
    with pytest.raises(ValueError, match=f"threads: found {threads}, expected 1 to 64"):
        Code(k=2, m=1).encode([b"a", b"b"], [0], [bytearray(1)], threads=threads)


@pytest.mark.slow
def test_a_fork_has_threads_of_its_own() -> None:
    """The threads of the parent do not live on in a child, which goes on all the same."""
    program = """if True:
        import os, warnings
        from ckptd.erasure.threads import GRAIN, spread
        warnings.simplefilter("ignore")  # Python 3.12 warns of a fork with threads
        spread(2 * GRAIN, 2, print)
        child = os.fork()
        if not child:
            spread(2 * GRAIN, 2, print)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60.0, check=True)
    assert done.stdout.splitlines()[-1] == "7"
