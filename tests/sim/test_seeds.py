"""Random runs of the production nodes under faults within the fault model. A failure names the command that replays it."""

from __future__ import annotations

import pytest
from tests.sim.__main__ import command
from tests.sim.runs import attempt
from tests.sim.scenario import draw

BATCHES, SEEDS = 8, 12


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_promise_breaks_under_faults(batch: int) -> None:
    """P1 to P4 hold after every event, restores are of one version, and when the faults stop the job makes progress."""
    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        failure, chaos = attempt(draw(seed))
        assert failure is None, f"{failure.problem}; replay: {command(failure.scenario)}"
        assert chaos.scenario.beyond or chaos.world.sealed is not None, f"seed {seed}: nothing was ever sealed"
