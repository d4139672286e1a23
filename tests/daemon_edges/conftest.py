"""Fixtures that the tests of the segment directory share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import shm_dir
from tests.daemon_edges.segment_life import Life

from ckptd.daemon.segments import Segments


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for a segment directory, on the tmpfs."""
    with shm_dir() as path:
        yield path / "segments"


@pytest.fixture
def life(folder: Path) -> Iterator[Life]:
    """A segment directory; the last daemon that had it lets go at the end."""
    made = Life(folder)
    yield made
    made.segments.close(clean=False)


@pytest.fixture
def segments(life: Life) -> Segments:
    """The first daemon's view of it."""
    return life.segments
