"""Whether the snapshots of a node fit, and what is said when they don't."""

from __future__ import annotations

import pytest

from ckptd.ckpt.budget import HEADROOM, Limit, Need, check_budget, check_room
from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.ckpt.model import PIECE

GB = 10**9
NEED = Need(slots=3, payload=4 * PIECE, k=3, m=1)
TMPFS = Limit("tmpfs", "/dev/shm/x", 10 * GB, 12 * GB)
MACHINE = Limit("machine", "the machine", 50 * GB, 64 * GB)
CGROUP = Limit("cgroup", "cgroup /pod", 20 * GB, 30 * GB)


def test_the_peak_is_all_slots_and_two_generations_of_parity() -> None:
    """Three slots of four pieces; parities of two whole pieces, as three nodes share four, and each twice."""
    assert (NEED.images, NEED.parities, NEED.total) == (12 * PIECE, 4 * PIECE, 16 * PIECE)
    assert Need(slots=2, payload=PIECE, k=1, m=0).total == 2 * PIECE


def test_what_fits_is_let_in() -> None:
    """To the last byte beside the headroom; what is taken already is never refused."""
    room = TMPFS.free - HEADROOM["tmpfs"]
    check_room(NEED, taken=0, more=room, limits=[TMPFS, MACHINE, CGROUP], budget=room)
    full = Limit("tmpfs", "/dev/shm/x", 0, 12 * GB)
    check_room(NEED, taken=5, more=0, limits=[full], budget=1)


@pytest.mark.parametrize(
    ("small", "word"), [("tmpfs", "--shm-size"), ("cgroup", "raise the memory limit"), ("machine", "has more")]
)
def test_each_limit_refuses_with_its_own_advice(small: str, word: str) -> None:
    """Every number is named, whichever was too small, and what would help."""
    limits = [TMPFS, MACHINE, CGROUP]
    limits = [Limit(lim.kind, lim.name, GB if lim.kind == small else lim.free, lim.total) for lim in limits]
    with pytest.raises(MemoryBudgetError) as caught:
        check_room(NEED, taken=7, more=2 * GB, limits=limits, budget=0)
    text = str(caught.value)
    for part in (
        str(NEED),
        "7 are taken and 2000000000 more",
        word,
        "slots to 2, which needs 3145728 bytes",
        "larger groups",
    ):
        assert part in text
    for limit in limits:
        assert f"{limit.name} has {limit.free} bytes free of {limit.total}" in text


def test_the_budget_counts_what_is_taken() -> None:
    """memory_bytes is for slots and parities together; two slots without parity leave nothing else to advise."""
    bare = Need(slots=2, payload=PIECE, k=1, m=0)
    check_room(bare, taken=60, more=40, limits=[TMPFS], budget=100)
    with pytest.raises(MemoryBudgetError, match=r"memory_bytes is 100; raise memory_bytes$"):
        check_room(bare, taken=60, more=41, limits=[TMPFS], budget=100)


def test_a_budget_beyond_the_machine_is_refused() -> None:
    """What no limit would ever allow is found before anything starts."""
    check_budget(0, [TMPFS])
    check_budget(12 * GB, [TMPFS, MACHINE, CGROUP])
    with pytest.raises(
        MemoryBudgetError, match="memory_bytes is 31000000000, but cgroup /pod has 30000000000 bytes in all"
    ):
        check_budget(31 * GB, [MACHINE, CGROUP])
