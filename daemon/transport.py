"""The port of the data plane: read a range of pieces of an image or a parity that another node holds.

`RangeReader` (TCP) implements it, and so may a one-sided transport: it would fetch the sums and a handle of the memory by
a short message, read the bytes itself, and check them in the same way. tests/contract/ holds what every one must do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.daemon.segments import Stretch

Listed = npt.NDArray[np.uint64]
"""The sums of an image's pieces, in order."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a node serves ranges."""

    node: int
    """Its number; a daemon of another number that answers there is not believed."""
    host: str
    port: int

    def __str__(self) -> str:
        return f"node {self.node} ({self.host}:{self.port})"


@dataclass(frozen=True, slots=True)
class Trip:
    """To a holder and back: a few short messages, each a segment, and their answers."""

    seconds: float
    """Until the first answer."""
    lost: int
    """Segments to the holder, on the same connection, that were found lost since the trip before this one."""


@dataclass(frozen=True, slots=True)
class Range:
    """Pieces `first` .. `first + count - 1` of an image or of a parity."""

    version: Version
    what: Image | Parity
    first: int
    count: int

    @property
    def size(self) -> int:
        """The bytes that it has at most; of an image exactly so many, if the image has these pieces."""
        whole = self.count * PIECE
        return min(whole, self.what.size - self.first * PIECE) if isinstance(self.what, Image) else whole

    def part(self, first: int, count: int) -> Range:
        """Other pieces of the same."""
        return replace(self, first=first, count=count)

    def parts(self, count: int) -> Iterator[Range]:
        """The range in order, cut into ranges of at most `count` pieces."""
        for first in range(self.first, self.first + self.count, count):
            yield self.part(first, min(count, self.first + self.count - first))

    def __str__(self) -> str:
        name = f"rank {self.what.rank}" if isinstance(self.what, Image) else f"parity of stripe {self.what.stripe}"
        return f"pieces {self.first}..{self.first + self.count - 1} of {name}, {self.version}"


class NotHeld(PeerError):
    """The holder does not hold the range, or not any more: asking it again would not help."""


class DamagedThere(CorruptionError):
    """Pieces fail their check where they are held: asking again would not help. All other pieces of the range arrived."""

    def __init__(self, holder: Endpoint, wanted: Range, pieces: tuple[int, ...]) -> None:
        numbers = ", ".join(map(str, pieces[:8])) + (", ..." if len(pieces) > 8 else "")
        super().__init__(f"{holder}: piece {numbers} of {wanted} fails its checksum where it is held")
        self.pieces = pieces
        """Their numbers within the image or parity, ascending; what `into` has in their places is not to be used."""


class Transport(Protocol):
    """Reads from other nodes. Methods may be called from many threads at a time."""

    def read(self, holder: Endpoint, wanted: Range, into: memoryview) -> int:
        """Read a range of any number of pieces (> 0) into `into`; return its length in bytes.

        Every piece has been checked against the sum that was taken at its capture when this returns. `into` belongs to the
        transport until then, and holds anything at all when it raises, except as `DamagedThere` says. Of a parity or an
        image whose length the holder alone knows, the last piece may be short: `into` must have room for what it has.

        *Resumable*: a connection that breaks is replaced, and pieces that had arrived and been checked are not
        transferred again. It is given up when two connections in a row have not brought a single piece.

        A piece that fails its check is asked about: if it is damaged where it is held, the holder's daemon has learnt
        so, and `DamagedThere` is raised when all others have arrived; if not, it is read again, twice at most.

        Raises NotHeld (not, or not any more), other PeerErrors (gone, silent, or answers outside the protocol),
        AccessError (another job or secret), DamagedThere, other CorruptionErrors (a piece is damaged on the way again
        and again). Each names the holder. A slow or dead holder costs its own readers a bounded time and nobody else.
        """

    def sums(self, holder: Endpoint, version: Version, image: Image) -> list[int]:
        """The sums of all pieces of an image, in order, as they were taken at its capture; no piece is read for it.

        Who keeps a parity of it knows them, too, and lists them when the image is lost.
        They are exactly the image's, as its digest is of them: whoever lists others is found out (CorruptionError). The
        holder's bytes are not looked at. Raises NotHeld, other PeerErrors and AccessError as `read` does.
        """

    def close(self) -> None:
        """End; a `read` that is under way raises PeerError."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What a node can serve: implemented over the segments. Called from many threads at a time."""

    image: Callable[[Version, int, str], Stretch | None]
    """The last argument is the digest that the reader expects."""
    parity: Callable[[Parity], Stretch | None]
    check: Callable[[Stretch, int, int], list[int] | None]
    """The damaged ones among pieces (first, count); they count as lost then. None when the bytes were given up meanwhile."""
    listed: Callable[[str], Listed | None] = lambda _: None
    """The sums of an image (of this digest) that is not held but protected here, so that its pieces can be verified when it
    is lost."""
