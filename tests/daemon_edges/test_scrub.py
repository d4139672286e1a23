"""The scrubber finds what nobody reads."""

from __future__ import annotations

import threading

import pytest
from tests.payload import bytes_of, flip

from ckptd.ckpt.model import PIECE, Version
from ckptd.daemon.events import Damaged, ParityDamaged, SlotId
from ckptd.daemon.scrub import Scrubber
from ckptd.daemon.segments import Segments
from ckptd.daemon.throttle import Throttle

pytestmark = pytest.mark.timeout(30)
V1 = Version(1, 1)
SIZE = 3 * PIECE


def test_rot_that_nobody_reads_is_found(segments: Segments) -> None:
    """A flipped bit in a slot is told with its piece, within two passes."""
    found, seen = threading.Event(), list[Damaged | ParityDamaged]()

    def damage(event: Damaged | ParityDamaged) -> None:
        seen.append(event)
        found.set()

    segments.on_damage = damage
    slot = SlotId(3, 1)
    path = segments.file_for(slot, SIZE)
    path.write_bytes(bytes_of(V1, 3, SIZE))
    segments.record(slot, V1, 4)
    flip(path, 2 * PIECE + 5)
    scrubber = Scrubber(segments, Throttle(), 0.05)
    try:
        assert found.wait(10.0), "nothing was found"
    finally:
        scrubber.close()
    assert seen[0] == Damaged(slot, V1, (2,))


def test_an_empty_directory_is_looked_at_again(segments: Segments) -> None:
    """What comes later is checked too, and closing does not wait for the end of a pass."""
    scrubber = Scrubber(segments, Throttle(), 1000.0)
    scrubber.close()
    assert not any(thread.name == "scrub" for thread in threading.enumerate())
