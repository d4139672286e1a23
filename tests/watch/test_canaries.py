"""The campaign finds bugs: each planted one makes a verdict wrong within a stated number of seeds."""

from __future__ import annotations

import pytest
from tests.watch.campaign import judge_seed
from tests.watch.canaries import CANARIES

SEEDS_MAX = 100
RANKS = (8, 32)
BEGIN = {
    "Call a node lost as soon as one node accuses it": 84,
    "Take the receiver of a slow transfer for its sender": 35,
    "Blame each link of a node whose whole side is slow": 35,
    "Blame the first links that show a slow side": 46,
    "Take the first error that is heard for the cause, though a node may have gone before": 53,
}
"""The search begins near a seed that shows the bug where the first ones take seconds."""


def is_wrong(seed: int) -> bool:
    try:
        outcome = judge_seed(seed, RANKS)
    except (IndexError, ValueError):  # nonsense that is believed may also break what reads it
        return True
    missed = [fault for fault in outcome.struck if not (said := outcome.found(fault)) or not outcome.names(said, fault)]
    return bool(outcome.made_up or missed)


def test_the_search_begins_for_bugs_that_there_are() -> None:
    assert BEGIN.keys() <= CANARIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_found(name: str) -> None:
    """By a seed that is right without it."""

    def shows_it(seed: int) -> bool:
        with CANARIES[name]():
            if not is_wrong(seed):
                return False
        return not is_wrong(seed)

    begin = BEGIN.get(name, 0)
    found = next((seed for seed in range(begin, begin + SEEDS_MAX) if shows_it(seed)), None)
    assert found is not None, f"{name}: not found within {SEEDS_MAX} seeds"
