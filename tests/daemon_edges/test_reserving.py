"""Slots are made beside the training: whoever asks for one waits for that one, and a daemon that ends leaves none behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cluster import until
from tests.daemon_edges.segment_life import SIZE

from ckptd.ckpt import shm
from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.daemon.events import SlotId
from ckptd.daemon.reserving import Reserving
from ckptd.daemon.segments import Segments

RANK, WAIT_S = 3, 20.0


class Kernel:
    """Makes files one by one, each as soon as it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may, self.begun, self.make = threading.Semaphore(0), 0, shm.make_file
        monkeypatch.setattr("ckptd.daemon.files.Files.make.__defaults__", (self,))

    def __call__(self, path: Path, size: int) -> None:
        self.begun += 1
        assert self.may.acquire(timeout=WAIT_S)
        self.make(path, size)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def segments(tmp_path: Path) -> Iterator[Segments]:
    made = Segments(tmp_path / "segments")
    yield made
    made.close(clean=True)


def count(segments: Segments) -> int:
    return len(list(segments.directory.glob("*.safetensors")))


def test_nobody_waits_for_all_slots(kernel: Kernel, segments: Segments) -> None:
    """`reserve` returns at once; whoever asks for a slot goes on when the first one stands, and takes it."""
    reserving = Reserving(segments, 3)
    with ThreadPoolExecutor() as pool:
        assert reserving.reserve(RANK, SIZE, 0.0) == []
        settled = pool.submit(reserving.settle, RANK, SIZE, WAIT_S)
        until(lambda: kernel.begun == 1, "the first one is being made")
        assert not settled.done()
        kernel.may.release()
        settled.result(WAIT_S)
        assert count(segments) == 1
        path = segments.file_for(SlotId(RANK, 0), SIZE)
        assert path.stat().st_size == SIZE
        kernel.may.release(2)
        until(lambda: count(segments) == 3, "all of them stand")
        reserving.close()


def test_whoever_needs_all_slots_waits_for_them(segments: Segments) -> None:
    """With a time to wait the files are returned, and what went wrong is raised."""
    reserving = Reserving(segments, 3)
    files = reserving.reserve(RANK, SIZE, WAIT_S)
    assert sorted(files) == sorted(segments.directory.glob("*.safetensors"))
    assert len(files) == 3
    with pytest.raises(MemoryBudgetError, match="enlarge the tmpfs"):
        reserving.reserve(RANK, 2**50, WAIT_S)
    reserving.settle(RANK, 2**50, WAIT_S)  # nothing is being made: the slot's own making will say why
    reserving.close()


def test_a_new_layout_ends_the_making_of_the_old_one(kernel: Kernel, segments: Segments) -> None:
    """Of a size that nobody wants any more no further file is made, and the spare ones go."""
    reserving = Reserving(segments, 3)
    reserving.reserve(RANK, SIZE, 0.0)
    until(lambda: kernel.begun == 1, "the first one is being made")
    reserving.reserve(RANK, SIZE + 1, 0.0)
    kernel.may.release(4)
    reserving.settle(RANK, SIZE + 1, WAIT_S)
    until(lambda: count(segments) == 3, "all slots of the new size stand")
    assert {path.stat().st_size for path in segments.directory.glob("*.safetensors")} == {SIZE + 1}
    reserving.close()


def test_a_daemon_that_ends_waits_for_what_it_has_begun(kernel: Kernel, segments: Segments) -> None:
    """After `close` no file comes into being: the directory may be cleared."""
    reserving = Reserving(segments, 3)
    reserving.reserve(RANK, SIZE, 0.0)
    until(lambda: kernel.begun == 1, "the first one is being made")
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(reserving.close)
        kernel.may.release(3)
        closing.result(WAIT_S)
        assert count(segments) <= 2
    assert reserving.reserve(RANK + 1, SIZE, 0.0) == []
    assert kernel.begun <= 2
