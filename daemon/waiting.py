"""When a wait for a version is over: it has come so far, or it is certain that it never will."""

from __future__ import annotations

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import Version
from ckptd.ckpt.recovery import forsaken
from ckptd.daemon import views
from ckptd.daemon.node import Node

LEVELS = ("none", "captured", "sealed", "persisted")


class Wait:
    """For `version`, or a newer one, to reach `level`. For one thread."""

    def __init__(self, version: Version, level: str) -> None:
        """Raises UsageError for a level that is none."""
        if level not in LEVELS:
            raise UsageError(f"level {level!r}: expected one of {', '.join(LEVELS)}")
        self._version, self._level = version, level
        self._judged: Ledger | None = None
        self._hopeless = False

    def is_over(self, node: Node) -> bool:
        """Whether there is nothing to wait for any more, by what this node knows. Changes nothing in the node."""
        reached = views.level(node, self._version)
        if LEVELS.index(reached) >= LEVELS.index(self._level):
            return True
        if reached == "sealed" and node.config.storage is None:
            return True
        if (
            node.ledger is not None and node.ledger is not self._judged
        ):  # all that is held is gone through: once a ledger
            self._judged, self._hopeless = node.ledger, self._version in forsaken(node.ledger)
        return self._hopeless
