"""Shares one gathering of a version among the ranks of a node: the first one brings it, the others find it there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ckptd.ckpt.client import Found
from ckptd.ckpt.model import Version


class Gatherings:
    """`bring` puts a version's images on this node, `let_go` removes them. May be used from several threads."""

    def __init__(self, bring: Callable[[Version], list[Found]], let_go: Callable[[Version], None]) -> None:
        self._bring, self._let_go = bring, let_go
        self._lock = threading.Lock()
        self._version: Version | None = None
        self._life = -1
        self._found: list[Found] = []
        self._users = 0

    def gather(self, version: Version, life: int) -> list[Found]:
        """The version's images; brought by the first caller of a `life` (epoch) while the others wait for it.

        What an earlier life found was verified then, and may have changed since. Raises what `bring` raises.
        """
        with self._lock:
            if (self._version, self._life) != (version, life):
                # An earlier restore whose ranks died before they let go must not fill the memory.
                if self._version is not None:
                    self._let_go(self._version)
                self._version, self._users = None, 0
                try:
                    self._found = self._bring(version)
                    self._version, self._life = version, life
                finally:
                    if self._version is None:
                        self._let_go(version)  # what was brought before it failed must not fill the memory either
            self._users += 1
            return self._found

    def release(self, version: Version) -> None:
        """One caller less; the last one's leaving removes the images. A version that is not here is ignored."""
        with self._lock:
            if self._version != version:
                return
            self._users -= 1
            if self._users <= 0:
                self._let_go(version)
                self._version, self._found = None, []
