"""No snapshots: what the others are compared with."""

from __future__ import annotations

from benchmarks.peers.base import Peer


class Nothing(Peer):
    def save(self, step: int) -> None:
        pass

    def finish(self) -> None:
        pass

    def restore(self) -> int:
        return 0
