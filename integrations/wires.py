"""Notices what was written behind the optimizer's back: trip wires, and which frozen tensors have changed.

A look is a handful of calls for all tensors together, because the trainer's thread takes two of them for each snapshot:
the version counters, and a few words of each tensor on the CPU. It proves that something was written, never that
nothing was: fused optimizers and `.data` count no versions, and a look sees 4 words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ckptd.integrations.sources import Source
from ckptd.integrations.tensors import sample_of

Watch = Literal["samples", "counters"]
TURNS = 4
"""Looks differ in which quarter of a tensor's sampled words they read."""
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
        """`watch`: "samples" reads some words of each tensor, "counters" only torch's version counters."""
        self.names = [source.name for source in sources]
        self._counted = [at for at, source in enumerate(sources) if not source.live.is_inference()]
        self._lives = [sources[at].live for at in self._counted]
        views: dict[Any, tuple[list[int], list[npt.NDArray[Any]]]] = {}
        for at, source in enumerate(sources):
            view = sample_of(source.rows) if watch == "samples" else None
            if view is not None:
                found = views.setdefault(view.dtype, ([], []))  # numpy joins arrays of one dtype without converting
                found[0].append(at)
                found[1].append(view)
        self._sampled = [np.array(at) for at, _ in views.values()]
        self._views = [[[_quarter(view, turn) for view in some] for _, some in views.values()] for turn in range(TURNS)]
        self._ends = [[np.cumsum([len(view) for view in some]) for some in turn] for turn in self._views]

    def look(self, turn: int) -> Look:
        """Read the counters and the words of this turn. For the trainer's thread, when no update is in progress."""
        return Look(turn, list(map(_version_of, self._lives)), [np.concatenate(views) for views in self._views[turn]])

    def differing(self, one: Look, other: Look) -> list[int]:
        """The indexes of the sources that were written between two looks of the same turn, ascending."""
        found: set[int] = set()
        if one.versions != other.versions:
            pairs = zip(self._counted, one.versions, other.versions, strict=True)
            found.update(at for at, before, now in pairs if before != now)
        for sampled, ends, before, now in zip(self._sampled, self._ends[one.turn], one.words, other.words, strict=True):
            unlike = np.flatnonzero(before != now)
            if len(unlike):
                found.update(sampled[np.searchsorted(ends, unlike, side="right")].tolist())
        return sorted(found)


def _quarter(view: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    return view if len(view) < 2 * TURNS else view[turn::TURNS]


class Wires:
    """Trip wires on what is copied beside the training: armed at the capture, looked at in the fence."""

    def __init__(self, sources: Sequence[Source], watch: Watch) -> None:
        self._lookout = Lookout(sources, watch)
        self._before = self._lookout.look(0)

    def arm(self) -> None:
        """Remember how the sources look now."""
        self._before = self._lookout.look((self._before.turn + 1) % TURNS)

    def tripped(self) -> list[str]:
        """The names of those that look different now."""
        found = self._lookout.differing(self._before, self._lookout.look(self._before.turn))
        return [self._lookout.names[at] for at in found]


class Frozen:
    """Which of the tensors that no optimizer owns must be copied again, into a slot that holds them already.

    What was seen to change is copied, and in turn a 64th of the rest, so that neither a write that no look has seen
    nor a bit that flipped in a slot stays for long.
    """

    def __init__(self, sources: Sequence[Source], watch: Watch) -> None:
        self.sources = tuple(sources)
        self._lookout = Lookout(sources, watch)
        self._last = [self._lookout.look(turn) for turn in range(TURNS)]
        self._count = 0
        self._changed_at = np.zeros(len(self.sources), dtype=np.int64)
        self._since: Look | None = None

    def arm(self) -> tuple[int, npt.NDArray[np.int64]]:
        """Look, and return the number of this capture with the numbers of the captures that each last changed before.

        What a slot got at an earlier capture than its number here is out of date.
        """
        self._count += 1
        if not self.sources:
            return self._count, self._changed_at
        turn = self._count % TURNS
        now, versions = self._lookout.look(turn), self._last[turn - 1].versions  # words: as long ago as their turn
        self._mark(self._lookout.differing(replace(self._last[turn], versions=versions), now))
        self._last[turn] = self._since = now
        return self._count, self._changed_at.copy()

    def tripped(self) -> list[str]:
        """The names of those that changed since `arm`."""
        if self._since is None:
            return []
        found = self._lookout.differing(self._since, self._lookout.look(self._since.turn))
        self._mark(found)
        return [self._lookout.names[at] for at in found]

    def _mark(self, found: list[int]) -> None:
        self._changed_at[found] = self._count


def due(held: npt.NDArray[np.int64], count: int, changed_at: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Which frozen tensors capture `count` must copy into a slot that got them at the captures `held` (-1: never)."""
    stale = held < changed_at
    stale[count % _REFRESH :: _REFRESH] = True
    return np.flatnonzero(stale | (held < 0))
