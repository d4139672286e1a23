"""The page of memory between a trainer and its daemon: what is stored is seen, and nonsense in it stays within bounds."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from ckptd.ckpt.beat import BEAT_BYTES, MARKS, PHASES, BeatReader, BeatWriter, took_s
from ckptd.ckpt.errors import CorruptionError
from ckptd.daemon.observe.digests import PHASE_OF
from ckptd.daemon.watch.observations import Phase

MS = 1_000_000


def steps(writer: BeatWriter, first: int, last: int, *, start: int = 1_000) -> None:
    """Steps of 10 ms, whose updates begin after 8."""
    for step in range(first, last + 1):
        writer.reached(start + step * 10 * MS - 2 * MS)
        writer.step(step, start + step * 10 * MS)


def test_a_reader_sees_what_the_writer_stored(tmp_path: Path) -> None:
    """Rank, process, life, step and phase arrive, and of the steps when they began, reached their update, and were done."""
    writer = BeatWriter(tmp_path / "3.beat", 3, 7)
    reader = BeatReader(tmp_path / "3.beat")
    assert PHASES[reader.look().phase] == "start"
    steps(writer, 1, 5)
    seen = reader.look()
    assert (seen.rank, seen.pid, seen.epoch, seen.step, PHASES[seen.phase]) == (3, os.getpid(), 7, 5, "train")
    assert [mark[0] for mark in seen.marks] == [5, 4, 3, 2]
    assert took_s(seen.marks[0]) == pytest.approx(0.010)
    assert seen.marks[0][3] - seen.marks[0][2] == 2 * MS


def test_phases_nest_and_the_step_stays(tmp_path: Path) -> None:
    """Entering a phase returns the one before, so that leaving restores it; the step is not touched."""
    writer = BeatWriter(tmp_path / "0.beat", 0, 1)
    steps(writer, 1, 2)
    reader = BeatReader(tmp_path / "0.beat")
    before = writer.phase(PHASES.index("eval"))
    assert (reader.look().step, PHASES[reader.look().phase]) == (2, "eval")
    writer.phase(before)
    assert (reader.look().step, PHASES[reader.look().phase]) == (2, "train")


def test_the_phases_are_those_of_the_judge() -> None:
    """A name in the trainer means to the judge what it says."""
    names = {"train": Phase.TRAINING, "start": Phase.START, "compile": Phase.COMPILE, "eval": Phase.EVALUATION}
    assert dict(zip(PHASES, PHASE_OF, strict=True)) == {**names, "checkpoint": Phase.CHECKPOINT}


def test_only_steps_that_were_counted_one_by_one_are_timed(tmp_path: Path) -> None:
    """After a leap, and beyond the ring, nothing is made up."""
    writer = BeatWriter(tmp_path / "0.beat", 0, 1)
    steps(writer, 1, 3 * MARKS)
    reader = BeatReader(tmp_path / "0.beat")
    assert len(reader.look().marks) == MARKS - 1
    writer.step(4 * MARKS + 10, 10_000 * MS)
    assert reader.look().marks == ()


def test_a_life_that_resumes_begins_at_its_step(tmp_path: Path) -> None:
    """A restored trainer shows the step that it goes on from, in a file of its own."""
    old = BeatWriter(tmp_path / "0.beat", 0, 1)
    steps(old, 1, 9)
    reader = BeatReader(tmp_path / "0.beat")
    BeatWriter(tmp_path / "0.beat", 0, 2).resumed(5)
    assert (reader.look().epoch, reader.look().step) == (1, 9)
    fresh = BeatReader(tmp_path / "0.beat").look()
    assert (fresh.epoch, fresh.step, fresh.marks) == (2, 5, ())


@pytest.mark.parametrize("seed", range(20))
def test_nonsense_in_the_page_stays_within_bounds(tmp_path: Path, seed: int) -> None:
    """Whatever a trainer writes, what is read has a place in a digest."""
    path = tmp_path / "0.beat"
    BeatWriter(path, 0, 1)
    content = bytearray(random.Random(seed).randbytes(BEAT_BYTES))
    content[:8] = path.read_bytes()[:8]
    path.write_bytes(content)
    seen = BeatReader(path).look()
    assert 0 <= seen.phase < len(PHASES)
    assert 0 <= seen.step < 1 << 32
    assert max(seen.rank, seen.pid, seen.epoch) < 1 << 31
    assert len(seen.marks) < MARKS


@pytest.mark.parametrize(
    "content", [b"", b"x" * BEAT_BYTES, b"\0" * (BEAT_BYTES + 1)], ids=["empty", "foreign", "long"]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """What is no page of this version is not read."""
    path = tmp_path / "0.beat"
    path.write_bytes(content)
    with pytest.raises(CorruptionError):
        BeatReader(path)
