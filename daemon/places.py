"""Whose letters count: for each place of the job, those of the daemon that answers at the place's address. Pure.

A machine that was given up may still run, and its daemon still tell what it holds, while its replacement has started at
its address. What it holds can't be read any more, since every read goes to the address: to count it would be to seal on
images and parities that nobody can get.
"""

from __future__ import annotations


class Places:
    """Which run of a daemon answered last at each node's address."""

    def __init__(self) -> None:
        self._boots: dict[int, str] = {}

    def admits(self, node: int, boot: str) -> bool:
        """Whether a letter of this run counts. If not, ask at the address who is there: it may have started meanwhile."""
        return self._boots.get(node) == boot

    def answered(self, node: int, boot: str) -> None:
        """This run of the daemon has answered at the node's address just now."""
        self._boots[node] = boot
