"""The scrubber: a slow check of everything that this node keeps, so that bit rot is found while it can be repaired."""

from __future__ import annotations

import threading

from ckptd.daemon.segments import Segments, Stretch
from ckptd.daemon.throttle import Throttle

STEP = 16
"""Pieces that are checked at a time: 4 MiB, less than a millisecond."""


class Scrubber:
    """A thread that goes through all slots and parities once in `every_s` seconds, evenly. `close` must be called.

    What it finds is told like any other damage (`Segments.on_damage`): readers check too, but only what they read.
    """

    def __init__(self, segments: Segments, throttle: Throttle, every_s: float) -> None:
        self._segments, self._throttle, self._every_s = segments, throttle, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            stretches = [stretch for _, stretch in self._segments.slot_entries()]
            stretches += [stretch for _, stretch in self._segments.parity_entries()]
            total = sum(len(stretch.sums) for stretch in stretches)
            if not total:
                self._closing.wait(self._every_s)
            for stretch in stretches:
                self._check(stretch, self._every_s / total)

    def _check(self, stretch: Stretch, seconds_a_piece: float) -> None:
        for first in range(0, len(stretch.sums), STEP):
            count = min(STEP, len(stretch.sums) - first)
            if self._closing.wait(seconds_a_piece * count):
                return
            with self._throttle.work():
                # What was given up since the pass began fails its check too, and is nobody's damage.
                self._segments.check(stretch, first, count)
