"""Random runs of the production nodes under faults within the fault model. A failure names the seed that replays it."""

from __future__ import annotations

import pytest
from tests.sim.chaos import Chaos

SEEDS = 60


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_promise_breaks_under_faults(seed: int) -> None:
    """P1 holds after every event, restores are of one version (P2), and when the faults stop the job makes progress."""
    chaos = Chaos(seed)
    chaos.run()
    assert chaos.world.sealed is not None
