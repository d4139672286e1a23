"""The simulator finds bugs: each planted one makes a run fail within a stated number of seeds."""

from __future__ import annotations

import pytest
from tests.sim.canaries import CANARIES
from tests.sim.runs import attempt
from tests.sim.scenario import draw

SEEDS_MAX = 300
"""Within so many seeds every planted bug is found; most within ten."""


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_found(name: str) -> None:
    with CANARIES[name]():
        found = next((seed for seed in range(SEEDS_MAX) if attempt(draw(seed))[0]), None)
    assert found is not None, f"{name}: not found within {SEEDS_MAX} seeds"
