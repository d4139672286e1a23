"""What a trainer says of itself without a call: a page of memory that its daemon maps, too. Layout: docs/formats.md.

The writer only stores words of 8 bytes, each of which is whole for whoever reads it, whatever the writer does: compute,
stand still, hold the interpreter's lock, or be dead.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.shm import map_file

PHASES = ("train", "start", "compile", "eval", "checkpoint")
"""By number. `train` is what a rank does that is in no other one."""
MARKS = 64
"""Steps whose times are kept."""
BEAT_BYTES = 4096
BEAT_FILE = re.compile(r"(\d{1,7})\.beat")
_MAGIC = int.from_bytes(b"ckptbt01", "little")
_HEAD = struct.Struct("<QQQQQQ")
_WORD, _CLOSED, _REACHED, _DONE = 4, 5, 8, 8 + MARKS
_STEP_BITS = 56


@dataclass(frozen=True, slots=True)
class Seen:
    """A beat file at one moment."""

    rank: int
    pid: int
    epoch: int
    step: int
    phase: int
    """Index into PHASES."""
    closed: bool
    """The trainer has said that it ends."""
    marks: tuple[tuple[int, int, int, int], ...]
    """Of the newest steps, newest first: (step, when the one before was done, when its update began, when it was done), in
    nanoseconds of the wall clock. Only steps of which all three are known."""


class BeatWriter:
    """The trainer's side. Used from the thread that trains."""

    def __init__(self, path: Path, rank: int, epoch: int) -> None:
        """Make the file anew; whoever has mapped an older one keeps that. Raises OSError."""
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        head = _HEAD.pack(_MAGIC, rank, os.getpid(), epoch, _word(1, 0), 0)
        fresh.touch(mode=0o600, exist_ok=False)
        fresh.write_bytes(head.ljust(BEAT_BYTES, b"\0"))
        fresh.rename(path)
        self._words = memoryview(map_file(path, BEAT_BYTES, write=True)).cast("Q")
        self._step, self._phase = 0, 1

    def step(self, n: int, now_ns: int) -> None:
        """`n` updates are finished. `now_ns`: the wall clock in nanoseconds."""
        words = self._words
        if not words[_REACHED + n % MARKS] > words[_DONE + self._step % MARKS]:
            words[_REACHED + n % MARKS] = now_ns  # no update has said where it began: it took no time
        if n != self._step + 1:
            words[_DONE + (n - 1) % MARKS] = 0  # when that one was done was not seen
        words[_DONE + n % MARKS] = now_ns
        self._step, self._phase = n, 0 if self._phase == 1 else self._phase
        words[_WORD] = _word(self._phase, n)

    def reached(self, now_ns: int) -> None:
        """The next update begins: what the step needed of the others has come."""
        self._words[_REACHED + (self._step + 1) % MARKS] = now_ns

    def phase(self, phase: int) -> int:
        """Enter a phase; return the one before."""
        before, self._phase = self._phase, phase
        self._words[_WORD] = _word(phase, self._step)
        return before

    def resumed(self, step: int) -> None:
        """A life begins after so many updates."""
        self._step = step
        self._words[_WORD] = _word(self._phase, step)

    def close(self) -> None:
        """This process ends of its own will."""
        self._words[_CLOSED] = 1


class BeatReader:
    """The daemon's side. Whatever the file holds, a look takes microseconds and returns numbers within their bounds."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or CorruptionError."""
        self._words = memoryview(map_file(path, BEAT_BYTES, write=False)).cast("Q")
        if self._words[0] != _MAGIC:
            raise CorruptionError(f"{path} is no beat file of this version; it is not read")

    def look(self) -> Seen:
        """What the trainer says now."""
        words = self._words.tolist()
        step, phase = words[_WORD] & (1 << _STEP_BITS) - 1, words[_WORD] >> _STEP_BITS
        newer = self._words[_WORD] & (1 << _STEP_BITS) - 1
        marks = []
        for number in range(step, max(0, newer - MARKS + 1, step - MARKS + 1), -1):
            before, reached, done = (
                words[_DONE + (number - 1) % MARKS],
                *(words[_at(at, number)] for at in (_REACHED, _DONE)),
            )
            if not 0 < before < reached <= done < 1 << 63:
                break  # steps that were not counted one by one, or another life's
            marks.append((number, before, reached, done))
        phase = phase if phase < len(PHASES) else 0
        rank, pid, epoch = (min(value, (1 << 31) - 1) for value in words[1:4])
        return Seen(rank, pid, epoch, min(step, (1 << 32) - 1), phase, bool(words[_CLOSED]), tuple(marks))


def took_s(mark: tuple[int, int, int, int]) -> float:
    """How long a step took, in seconds; NaN beyond a day."""
    seconds = (mark[3] - mark[1]) / 1e9
    return seconds if seconds < 86400 else math.nan


def _at(base: int, number: int) -> int:
    return base + number % MARKS


def _word(phase: int, step: int) -> int:
    return phase << _STEP_BITS | step & (1 << _STEP_BITS) - 1
