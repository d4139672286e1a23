"""The campaign finds bugs: each planted one makes a verdict wrong within a stated number of seeds."""

from __future__ import annotations

import pytest
from tests.watch.campaign import judge_seed
from tests.watch.canaries import CANARIES

SEEDS_MAX = 300
RANKS = (8, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_found(name: str) -> None:
    def is_wrong(seed: int) -> bool:
        try:
            outcome = judge_seed(seed, RANKS)
        except (IndexError, ValueError):  # nonsense that is believed may also break what reads it
            return True
        missed = [
            fault for fault in outcome.struck if not (said := outcome.found(fault)) or not outcome.names(said, fault)
        ]
        return bool(outcome.made_up or missed)

    assert not any(is_wrong(seed) for seed in range(3)), "without the bug these are right"
    with CANARIES[name]():
        found = next((seed for seed in range(SEEDS_MAX) if is_wrong(seed)), None)
    assert found is not None, f"{name}: not found within {SEEDS_MAX} seeds"
