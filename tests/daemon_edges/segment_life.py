"""What the tests of the segment directory share: one directory, and the daemons that have it one after the other."""

from __future__ import annotations

from pathlib import Path

from tests.payload import bytes_of

from ckptd.ckpt.groups import map_of
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Payload, Table, Version
from ckptd.ckpt.pieces import sums_of
from ckptd.daemon.events import SlotId
from ckptd.daemon.segments import Segments

V1, V2 = Version(1, 1), Version(1, 2)
SIZE = 2 * PIECE + 100
SLOT = SlotId(3, 1)
MAP = map_of(1, range(4), parity=2, size=4)
ROWS = ((1, 2), (3, 4))


def table_of(version: Version) -> Table:
    return Table(version, 1, (Payload(0, (Image(0, 100, "ab" * 16),)),), MAP)


TABLE = table_of(V1)
PARITY = Parity(V1, TABLE.name, 0, 2, 1)


class Life:
    """One directory and the daemons that have it, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.segments = Segments(folder)

    def again(self) -> Segments:
        """The directory as the next daemon finds it: nothing was put in order before."""
        self.segments.close(clean=False)
        self.segments = Segments(self.segments.directory)
        return self.segments


def capture(segments: Segments, slot: SlotId, version: Version, size: int = SIZE) -> Image:
    """What a trainer and the daemon do."""
    path = segments.file_for(slot, size)
    segments.drop(slot)
    path.write_bytes(b"")  # the file keeps its inode, not its length
    path.write_bytes(bytes_of(version, slot.rank, size))
    return segments.record(slot, version, 4)


def make_parity(segments: Segments, parity: Parity = PARITY, pieces: int = 2) -> bytes:
    name, view = segments.new_parity(pieces * PIECE)
    view[:] = bytes_of(parity.version, parity.stripe, pieces * PIECE)
    segments.record_parity(name, parity, table_of(parity.version), ROWS, sums_of(view))
    return bytes(view)


def files(segments: Segments, suffix: str) -> list[str]:
    return sorted(path.name for path in segments.directory.glob(f"*{suffix}"))
