"""Shares one gathering of a version among the ranks of a node: the first one brings it, the others find it there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ckptd.ckpt.model import Version

T = TypeVar("T")


class Gatherings(Generic[T]):
    """`bring` puts a version's images on this node, `let_go` removes them. May be used from several threads."""

    def __init__(self, bring: Callable[[Version], T], let_go: Callable[[Version], None]) -> None:
        self._bring, self._let_go = bring, let_go
        self._lock = threading.Lock()
        self._version: Version | None = None
        self._life = -1
        self._found: T | None = None
        self._users = 0

    def gather(self, version: Version, life: int) -> T:
        """The version's images; brought by the first caller of a `life` (epoch) while the others wait for it.

        What an earlier life found was verified then, and may have changed since. Raises what `bring` raises.
        """
        with self._lock:
            if (self._version, self._life) != (version, life):
                # An earlier restore whose ranks died before they let go must not fill the memory.
                if self._version is not None:
                    self._let_go(self._version)
                self._version, self._found, self._users = None, None, 0
                try:
                    self._found = self._bring(version)
                    self._version, self._life = version, life
                finally:
                    if self._version is None:
                        self._let_go(version)  # what was brought before it failed must not fill the memory either
            self._users += 1
            assert self._found is not None, "gathered, and nothing there"
            return self._found

    def here(self, version: Version) -> T | None:
        """What some caller has gathered and not released; None where that is another version, or none."""
        with self._lock:
            return self._found if self._version == version else None

    def release(self, version: Version) -> None:
        """One caller less; the last one's leaving removes the images. A version that is not here is ignored."""
        with self._lock:
            if self._version != version:
                return
            self._users -= 1
            if self._users <= 0:
                self._let_go(version)
                self._version, self._found = None, None
