"""The images of one version on this node as far as its ranks have asked for them, each piece brought once.

What this node holds itself stands in its slot. Of other images a node that holds them gives the pieces that are wanted, or
storage where memory has too little left. One that is decoded is decoded as a whole: only then can it be verified.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckptd.ckpt import shm
from ckptd.ckpt.client import Found, Stretch
from ckptd.ckpt.errors import CkptdError, Unrecoverable, UsageError
from ckptd.ckpt.model import PIECE, Image
from ckptd.ckpt.pieces import runs

Some = Callable[[Image, Sequence[int], memoryview], str]
"""Brings pieces of an image into the view, which has room for all of it; returns where they came from. Raises CkptdError."""
Whole = Callable[[Image, memoryview], str]
"""The same for all of its pieces."""


@dataclass(slots=True)
class Part:
    """One image that is not held here, as far as it has come."""

    image: Image
    path: Path
    view: memoryview
    have: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Came:
    """What one request brought."""

    size: int
    """Bytes, in whole pieces."""
    sources: tuple[str, ...]


class Opened:
    """May be used from several threads; one brings at a time, and the others find it done."""

    def __init__(
        self, own: Sequence[Found], parts: Sequence[Part], somes: Sequence[Some], wholes: Sequence[Whole]
    ) -> None:
        """`own`: images that stand here, whole and verified. `somes`: ways to pieces, the best one first; `wholes`: to a
        whole image, where those fail."""
        self._own, self._parts = tuple(own), {part.image.rank: part for part in parts}
        self._somes, self._wholes = tuple(somes), tuple(wholes)
        self._lock = threading.Lock()
        self.number = secrets.randbits(63)
        """Names this opening. Whoever has mapped the files of another one would read holes after asking this one."""

    @property
    def found(self) -> list[Found]:
        """Every image's file, by rank."""
        parts = [Found(part.image.rank, part.path, part.image.size, "none") for part in self._parts.values()]
        return sorted([*self._own, *parts], key=lambda found: found.rank)

    def bring(self, stretches: Sequence[Stretch]) -> Came:
        """See that these bytes stand in the files. Raises UsageError for bytes that no image has, and CkptdError."""
        sizes = {found.rank: found.size for found in self.found}
        wanted: dict[int, set[int]] = {}
        for stretch in stretches:
            if not 0 <= stretch.first <= stretch.last <= sizes.get(stretch.rank, -1):
                raise UsageError(
                    f"found bytes {stretch.first} to {stretch.last} of rank {stretch.rank}, expected some of an image of "
                    f"{sizes.get(stretch.rank, 0)}; ask for what the images' headers name"
                )
            pieces = range(stretch.first // PIECE, -(-stretch.last // PIECE))
            wanted.setdefault(stretch.rank, set()).update(pieces)
        size, sources = 0, set[str]()
        with self._lock:
            for rank in sorted(wanted.keys() & self._parts.keys()):
                part = self._parts[rank]
                missing = sorted(wanted[rank] - part.have)
                if missing:
                    came, source = self._one(part, missing)
                    size, sources = size + came, sources | {source}
        return Came(size, tuple(sorted(sources)))

    def _one(self, part: Part, missing: list[int]) -> tuple[int, str]:
        image, reasons = part.image, list[str]()
        if len(missing) < image.pieces:
            for first, count in runs(missing):
                start = first * PIECE
                shm.reserve_part(part.path, start, min(count * PIECE, image.size - start))
            for some in self._somes:
                try:
                    source = some(image, missing, part.view)
                    part.have.update(missing)
                    return len(missing) * PIECE, source
                except CkptdError as error:
                    reasons.append(str(error))
        shm.reserve_part(part.path, 0, image.size)
        for whole in self._wholes:
            try:
                source = whole(image, part.view)
                part.have.update(range(image.pieces))
                return image.pieces * PIECE, source
            except CkptdError as error:
                reasons.append(str(error))
        raise Unrecoverable("; ".join(reasons) or f"rank {image.rank}: nobody has it")
