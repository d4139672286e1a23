"""The end of a trainer process is noticed, whoever its parent is, and never mistaken for another one's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import until

from ckptd.daemon.events import RankGone
from ckptd.daemon.trainers import TrainerWatch

Trainer = subprocess.Popen[bytes]


@pytest.fixture
def trainers() -> Iterator[list[Trainer]]:
    """Two processes that live until they are killed."""
    made = [subprocess.Popen([sys.executable, "-S", "-E", "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield made
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def watch() -> Iterator[TrainerWatch]:
    made = TrainerWatch()
    yield made
    made.close()


def test_the_end_of_a_trainer(watch: TrainerWatch, trainers: list[Trainer]) -> None:
    """Each end is told once, with its rank and process id, also while nobody has waited for the process."""
    assert watch.gone() == []
    for rank, process in enumerate(trainers):
        watch.add(rank, process.pid)
        watch.add(rank, process.pid)
    assert watch.gone() == []
    trainers[1].kill()
    assert until(watch.gone, "the end of rank 1") == [RankGone(1, trainers[1].pid)]
    assert watch.gone() == []
    trainers[0].kill()
    assert until(watch.gone, "the end of rank 0") == [RankGone(0, trainers[0].pid)]


def test_a_newer_process_of_a_rank(watch: TrainerWatch, trainers: list[Trainer]) -> None:
    """When another process is the rank now, the end of the older one is nobody's."""
    watch.add(0, trainers[0].pid)
    watch.add(0, trainers[1].pid)
    trainers[0].kill()
    trainers[0].wait()
    assert watch.gone() == []
    trainers[1].kill()
    assert until(watch.gone, "the end of the newer one") == [RankGone(0, trainers[1].pid)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_processes_that_cannot_be_watched(watch: TrainerWatch, trainers: list[Trainer]) -> None:
    """A process id of another namespace, or that is gone already, is no error; nothing stays open."""
    trainers[0].kill()
    trainers[0].wait()
    before = open_files()
    for pid in (trainers[0].pid, 0, 2**31 - 1):
        watch.add(0, pid)
    assert watch.gone() == []
    watch.add(1, trainers[1].pid)
    watch.close()
    assert open_files() == before
