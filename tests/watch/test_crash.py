"""Who died first, where an agent ends the others at once."""

from __future__ import annotations

from math import inf

import pytest

from ckptd.daemon.watch.crash import crashes
from ckptd.daemon.watch.fleet import Fleet
from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import Process


@pytest.mark.parametrize(
    ("over_at", "doubt", "suspects"),
    [
        (inf, 0.001, [(0, 1)]),
        (10.05, 0.001, [(1,)]),
        (9.9, 0.001, []),
        (9.9, 0.5, [(0, 1)]),
    ],
)
def test_who_goes_after_the_life_was_over_has_not_died_of_itself(
    over_at: float, doubt: float, suspects: list[tuple[int, ...]]
) -> None:
    """Rank 1 goes first, rank 0 a tenth of a second later, both by SIGKILL; where clocks are in doubt nobody is let off."""
    fleet = Fleet(Layout([0, 1], {5: [0, 1]}), 1, 0.0, Limits())
    fleet.rows["process"], fleet.rows["exit"] = Process.GONE, -9
    fleet.died[:], fleet.doubt[:], fleet.over_at = (10.1, 10.0), doubt, over_at
    assert [verdict.ranks for verdict in crashes(fleet, 10.2, Limits())] == suspects


KILLED, TERMINATED, SEGFAULT, FAILED, OUT_OF_MEMORY = -9, -15, -11, 1, 137


@pytest.mark.parametrize(
    ("ended", "suspects", "siblings"),
    [
        ({0: (10.0, KILLED), 1: (10.004, TERMINATED), 2: (10.005, TERMINATED)}, (0,), 2),
        ({1: (10.0, SEGFAULT), 0: (10.002, TERMINATED)}, (1,), 1),
        ({1: (10.0, FAILED), 0: (10.002, TERMINATED), 2: (10.003, TERMINATED)}, (1,), 2),
        ({2: (10.0, OUT_OF_MEMORY), 0: (10.002, TERMINATED)}, (2,), 1),
        ({0: (10.0, TERMINATED), 1: (10.001, TERMINATED), 2: (10.002, FAILED)}, (2,), 2),
        ({0: (10.0, TERMINATED), 2: (11.0, FAILED)}, (0,), 0),
        ({0: (10.0, TERMINATED), 1: (10.001, TERMINATED)}, (0, 1), 0),
        ({0: (10.0, FAILED), 3: (10.001, TERMINATED)}, (0, 3), 0),
        ({0: (10.0, FAILED), 1: (10.002, TERMINATED), 3: (10.5, FAILED)}, (0,), 1),
    ],
    ids=[
        "killed",
        "segfault",
        "an error",
        "out of memory",
        "the siblings were seen first",
        "ended from outside, and its peer failed of it",
        "all ended from outside",
        "not a sibling",
        "another node fails of it",
    ],
)
def test_whom_torch_ends_for_a_sibling_is_not_blamed(
    ended: dict[int, tuple[float, int]], suspects: tuple[int, ...], siblings: int
) -> None:
    """Ranks 0 to 2 share a node, rank 3 has another; `ended` is when and how."""
    fleet = Fleet(Layout([0, 0, 0, 1], {5: [0, 1, 2, 3]}), 1, 0.0, Limits())
    for rank, (when, code) in ended.items():
        fleet.rows["process"][rank], fleet.rows["exit"][rank] = Process.GONE, code
        fleet.died[rank], fleet.doubt[rank] = when, 0.001
    fleet.node_read[:] = 12.0
    (verdict,) = crashes(fleet, 12.0, Limits())
    assert verdict.ranks == suspects
    assert (f"{siblings} more were ended by SIGTERM" in verdict.reason) == bool(siblings)
    assert dict(verdict.evidence)["dead"] == len(ended)
