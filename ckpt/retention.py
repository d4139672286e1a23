"""Which persisted steps may go. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ckptd.ckpt.model import Version


def excess(stored: Iterable[Version], keep_last: int, keep_every: int = 0) -> tuple[Version, ...]:
    """The versions on storage that are not among the `keep_last` newest, nor of a step that is a multiple of `keep_every`.

    Oldest first, so that an interruption leaves the newer ones. Nothing is in excess when `keep_last` is 0.
    """
    if not keep_last:
        return ()
    older = sorted(stored)[:-keep_last]
    return tuple(version for version in older if not keep_every or version.step % keep_every)
