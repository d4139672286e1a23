"""Notices what was written behind the optimizer's back: trip wires, and which frozen tensors have changed.

The trainer's thread arms the wires at each snapshot, with one call for each tensor and no more. The worker looks at torch's
version counters and a word of each tensor's bytes when it has copied: what is written later does no harm. (Of tensors on a
GPU the trainer looks at the counters, in the fence, as the copies are still under way.) All of it proves that something
was written, never that nothing was: fused optimizers and `.data` count no versions, a look sees one word of all but tiny
tensors, and a write that has only begun shows in neither.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ckptd.integrations.sources import Source
from ckptd.integrations.tensors import sample_of

Watch = Literal["samples", "counters"]
TURNS = 4
"""Looks differ in which word of a tensor they read. One each: after an update none of them is in the processor's cache, and
four took the trainer 1.1 ms for 900 tensors where one takes 0.4."""
_REFRESH = 64
_version_of = attrgetter("_version")


@dataclass(frozen=True, slots=True)
class Look:
    """What some sources looked like at one moment. Two looks of the same turn can be compared."""

    turn: int
    versions: list[int]
    words: list[npt.NDArray[Any]]


class Lookout:
    """Looks at sources, always the same ones."""

    def __init__(self, sources: Sequence[Source], watch: Watch) -> None:
        """`watch`: "samples" reads a word of each tensor, "counters" only torch's version counters."""
        self._names = [source.name for source in sources]
        self._counted = [at for at, source in enumerate(sources) if not source.live.is_inference()]
        self._lives = [sources[at].live for at in self._counted]
        views = [(at, sample_of(source.rows)) for at, source in enumerate(sources)] if watch == "samples" else []
        self._words = [
            Words([(at, _word(view, turn)) for at, view in views if view is not None]) for turn in range(TURNS)
        ]

    def look(self, turn: int) -> Look:
        """The counters and the words of this turn. For the trainer's thread, when no update is in progress."""
        return Look(turn, self.versions(), self.words(turn))

    def versions(self) -> list[int]:
        """torch's counters."""
        return list(map(_version_of, self._lives))

    def words(self, turn: int) -> list[npt.NDArray[Any]]:
        """Some of the tensors' bytes."""
        return self._words[turn].read()

    def counted(self, before: list[int], now: list[int]) -> set[int]:
        """The indexes of the sources whose counters differ."""
        if before == now:
            return set()
        return {at for at, one, other in zip(self._counted, before, now, strict=True) if one != other}

    def sampled(self, turn: int, before: list[npt.NDArray[Any]], now: list[npt.NDArray[Any]]) -> set[int]:
        """The indexes of the sources whose words differ."""
        found: set[int] = set()
        for owners, one, other in zip(self._words[turn].owners, before, now, strict=True):
            unlike = np.flatnonzero(one != other)
            if len(unlike):
                found.update(owners[unlike].tolist())
        return found

    def names_of(self, found: set[int]) -> list[str]:
        """The names at some indexes, in order."""
        return [self._names[at] for at in sorted(found)]


def _word(view: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    if view.strides[0] == view.itemsize:  # all of a tiny tensor
        return view
    at = turn * len(view) // TURNS
    return view[at : at + 1]


class Words:
    """Single words of many arrays, read by one call.

    Reading each array would touch a cold object for each. To numpy they are elements of one array, which begins at the
    lowest of their addresses and ends at the highest; what lies between is never read. One for each size and alignment.
    """

    def __init__(self, views: Sequence[tuple[int, npt.NDArray[Any]]]) -> None:
        """`views`: the elements to read, with the owner of each. As long as numpy has them, torch cannot move the memory."""
        self._views = views
        groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for owner, view in views:
            size, address = view.itemsize, view.ctypes.data
            for at in range(len(view)):
                owners, places = groups.setdefault((size, address % size), ([], []))
                owners.append(owner)
                places.append(address + at * view.strides[0])
        self.owners = [np.array(owners) for owners, _ in groups.values()]
        self._groups = [_memory(size, np.array(places)) for (size, _), (_, places) in groups.items()]

    def read(self) -> list[npt.NDArray[Any]]:
        """What stands there now."""
        return [memory[where] for memory, where in self._groups]


def _memory(size: int, places: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """An array of words of `size` bytes from the lowest to the highest place, and the places' indexes in it."""
    first, last = int(places.min()), int(places.max()) + size
    memory = (ctypes.c_uint8 * (last - first)).from_address(first)
    return np.frombuffer(memoryview(memory), dtype=f"u{size}"), (places - first) // size


@dataclass(frozen=True, slots=True)
class Armed:
    """Trip wires on some sources, as they looked at the capture."""

    lookout: Lookout
    before: Look

    def by_all(self) -> list[str]:
        """The names of those that either shows. For the worker, when it has copied: what is written later does no harm."""
        return list(dict.fromkeys([*self.by_counters(), *self.by_words()]))

    def by_counters(self) -> list[str]:
        """The names of those whose version counters have moved."""
        return self.lookout.names_of(self.lookout.counted(self.before.versions, self.lookout.versions()))

    def by_words(self) -> list[str]:
        """The names of those whose bytes look different."""
        turn = self.before.turn
        return self.lookout.names_of(self.lookout.sampled(turn, self.before.words, self.lookout.words(turn)))


class Wires:
    """Trip wires on what is copied beside the training."""

    def __init__(self, sources: Sequence[Source], watch: Watch) -> None:
        self._lookout = Lookout(sources, watch)
        self._count = 0

    def arm(self) -> Armed:
        """Remember how the sources look now."""
        self._count += 1
        return Armed(self._lookout, self._lookout.look(self._count % TURNS))


class Frozen:
    """Which of the tensors that no optimizer owns must be copied again, into a slot that holds them already.

    What was seen to change is copied, and in turn a 64th of the rest, so that neither a write that no look has seen
    nor a bit that flipped in a slot stays for long.
    """

    def __init__(self, sources: Sequence[Source], watch: Watch) -> None:
        self._lookout = Lookout(sources, watch)
        self._last = [self._lookout.look(turn) for turn in range(TURNS)]
        self._count = 0
        self._changed_at = np.zeros(len(sources), dtype=np.int64)
        self._nothing = Armed(self._lookout, self._last[0]), Due(0, self._changed_at)

    def arm(self) -> tuple[Armed, Due]:
        """Look, and say what has changed since the looks before."""
        if not len(self._changed_at):
            return self._nothing
        self._count += 1
        turn = self._count % TURNS
        now, last = self._lookout.look(turn), self._last[turn]  # words: as long ago as their turn
        changed = self._lookout.counted(self._last[turn - 1].versions, now.versions)
        changed |= self._lookout.sampled(turn, last.words, now.words)
        self._changed_at[list(changed)] = self._count
        self._last[turn] = now
        return Armed(self._lookout, now), Due(self._count, self._changed_at.copy())


@dataclass(frozen=True, slots=True)
class Due:
    """The number of a capture, and of those by which each frozen tensor had last changed."""

    count: int
    changed_at: npt.NDArray[np.int64]

    def of(self, held: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """The indexes of what this capture must copy into a slot that got them at the captures `held` (-1: never)."""
        stale = held < self.changed_at
        stale[self.count % _REFRESH :: _REFRESH] = True
        return np.flatnonzero(stale | (held < 0))
