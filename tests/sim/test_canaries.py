"""The simulator finds bugs: each planted one makes a run fail within a stated number of seeds."""

from __future__ import annotations

import pytest
from tests.sim.canaries import CANARIES
from tests.sim.runs import attempt
from tests.sim.scenario import draw

SEEDS_MAX = 300
"""Within so many seeds every planted bug is found; most within ten."""
BEGIN = {"Grant the file of a replaced trainer": 170, "Restore the newest step whatever is barred": 60}
"""The search begins near a seed that shows the bug where the first ones take minutes."""


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_found(name: str) -> None:
    with CANARIES[name]():
        begin = BEGIN.get(name, 0)
        found = next((seed for seed in range(begin, begin + SEEDS_MAX) if attempt(draw(seed))[0]), None)
    assert found is not None, f"{name}: not found within {SEEDS_MAX} seeds"
