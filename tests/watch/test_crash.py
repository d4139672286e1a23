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
