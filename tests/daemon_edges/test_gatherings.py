"""The ranks of a node share what was brought for one restore, and nothing outlives its life."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import Unrecoverable
from ckptd.ckpt.model import Version
from ckptd.daemon.gatherings import Gatherings

V1, V2 = Version(1, 1), Version(1, 2)


class Shelf:
    """Notes what is brought and let go."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail = False
        self.gatherings = Gatherings(self.bring, self.let_go)

    def bring(self, version: Version) -> list[Found]:
        self.calls.append(f"bring {version.step}")
        if self.fail:
            raise Unrecoverable("nothing there")
        return [Found(0, Path("x"), len(self.calls), "peer")]

    def let_go(self, version: Version) -> None:
        self.calls.append(f"let go {version.step}")


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_one_brings_for_all(shelf: Shelf) -> None:
    """Ranks that ask at once get the same images, brought once, and the last one's release removes them."""
    together = threading.Barrier(6)

    def rank(_: int) -> list[Found]:
        together.wait()
        return shelf.gatherings.gather(V1, 1)

    with ThreadPoolExecutor(6) as pool:
        assert len({found[0] for found in pool.map(rank, range(6))}) == 1
    for _ in range(5):
        shelf.gatherings.release(V1)
    assert shelf.calls == ["bring 1"]
    shelf.gatherings.release(V1)
    shelf.gatherings.release(V1)
    assert shelf.calls == ["bring 1", "let go 1"]
    shelf.gatherings.gather(V1, 1)
    assert shelf.calls[2:] == ["bring 1"]


def test_another_version_takes_the_place(shelf: Shelf) -> None:
    """What dead ranks never released goes when another version is asked for; their late release hurts nobody."""
    shelf.gatherings.gather(V1, 1)
    shelf.gatherings.gather(V2, 1)
    shelf.gatherings.release(V1)
    assert shelf.calls == ["bring 1", "let go 1", "bring 2"]


def test_some_versions_are_kept_side_by_side(shelf: Shelf) -> None:
    """Where several may be read at a time, the oldest makes way; a new life begins with none."""
    both = Gatherings(shelf.bring, shelf.let_go, at_once=2)
    for version in (V1, V2, V1):
        both.gather(version, 1)
    assert shelf.calls == ["bring 1", "bring 2"]
    both.gather(Version(1, 3), 1)
    assert shelf.calls[2:] == ["let go 1", "bring 3"]
    assert (both.here(V1), both.here(V2)) == (None, [Found(0, Path("x"), 2, "peer")])
    both.gather(V1, 2)
    assert shelf.calls[4:] == ["let go 2", "let go 3", "bring 1"]


def test_another_life_verifies_anew(shelf: Shelf) -> None:
    """The same version in a later life is brought and verified again: its slots may have changed since."""
    first = shelf.gatherings.gather(V1, 1)
    assert shelf.gatherings.gather(V1, 2) != first
    assert shelf.calls == ["bring 1", "let go 1", "bring 1"]


def test_a_failure_is_everybodys_own(shelf: Shelf) -> None:
    """When something can't be brought each caller learns it, nothing is left behind, and the next one tries again."""
    shelf.fail = True
    for _ in range(2):
        with pytest.raises(Unrecoverable):
            shelf.gatherings.gather(V1, 1)
    shelf.fail = False
    assert shelf.gatherings.gather(V1, 1)
    shelf.gatherings.release(V1)
    assert shelf.calls == ["bring 1", "let go 1"] * 3
