"""What the reports of a life add up to."""

from __future__ import annotations

import pytest

from ckptd.daemon.watch.clocks import Clocks
from ckptd.daemon.watch.fleet import Fleet
from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import NodeReport, Phase, RankDigest, pack


@pytest.mark.parametrize(("made", "excused"), [(0, True), (2, True), (3, False), (28, False)])
def test_only_the_first_steps_of_a_life_are_excused(made: int, excused: bool) -> None:
    """Counted from where it began, at step 100, and not from the first report: a fast life has made many by then."""
    fleet = Fleet(Layout([0], {5: [0]}), 1, 0.0, Limits())
    seen = RankDigest(0, step=100 + made, own_s=(0.02,) * min(made, 8))
    fleet.hear([NodeReport(0, pack([seen]))], 1.0, Clocks())
    assert list(fleet.excused(2.0)) == [excused]


def test_a_restored_life_leaps_to_its_step_once() -> None:
    """Its first digest may come before its state: a million steps in a second are nonsense only after that."""
    fleet = Fleet(Layout([0], {5: [0]}), 1, 0.0, Limits())
    for at, step in ((1.0, 0), (1.2, 1_000_000), (1.4, 2_000_000)):
        fleet.hear([NodeReport(0, pack([RankDigest(0, step=step, phase=Phase.START)]))], at, Clocks())
    assert int(fleet.rows["step"][0]) == 1_000_000
    assert fleet.remarks
