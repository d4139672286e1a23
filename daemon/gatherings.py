"""Shares one gathering of a version among the ranks of a node: the first one brings it, the others find it there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ckptd.ckpt.model import Version

T = TypeVar("T")


@dataclass(slots=True)
class _Gathered(Generic[T]):
    found: T
    users: int = 0


class Gatherings(Generic[T]):
    """`bring` puts a version's images on this node, `let_go` removes them. May be used from several threads."""

    def __init__(self, bring: Callable[[Version], T], let_go: Callable[[Version], None], at_once: int = 1) -> None:
        """`at_once`: how many versions are kept; for one more the oldest goes."""
        self._bring, self._let_go, self._at_once = bring, let_go, at_once
        self._lock = threading.Lock()
        self._life = -1
        self._gathered: dict[Version, _Gathered[T]] = {}

    def gather(self, version: Version, life: int) -> T:
        """The version's images; brought by the first caller of a `life` (epoch) while the others wait for it.

        What an earlier life found was verified then, and may have changed since. Raises what `bring` raises.
        """
        with self._lock:
            # An earlier restore whose ranks died before they let go must not fill the memory.
            if life != self._life:
                self._remove(*self._gathered)
                self._life = life
            if version not in self._gathered:
                self._remove(*list(self._gathered)[: len(self._gathered) + 1 - self._at_once])
                try:
                    self._gathered[version] = _Gathered(self._bring(version))
                finally:
                    if version not in self._gathered:
                        self._let_go(version)  # what was brought before it failed must not fill the memory either
            gathered = self._gathered[version]
            gathered.users += 1
            return gathered.found

    def here(self, version: Version) -> T | None:
        """What some caller has gathered and not released; None where it is not here."""
        with self._lock:
            gathered = self._gathered.get(version)
            return gathered.found if gathered else None

    def release(self, version: Version) -> None:
        """One caller less; the last one's leaving removes the images. A version that is not here is ignored."""
        with self._lock:
            gathered = self._gathered.get(version)
            if gathered is not None:
                gathered.users -= 1
                if gathered.users <= 0:
                    self._remove(version)

    def _remove(self, *versions: Version) -> None:
        for version in versions:
            del self._gathered[version]
            self._let_go(version)
