"""The simulator finds bugs: each planted one makes a run fail within a stated number of seeds."""

from __future__ import annotations

import pytest
from tests.sim.canaries import CANARIES
from tests.sim.runs import attempt
from tests.sim.scenario import draw

SEEDS_MAX = 300
"""Within so many seeds every planted bug is found; most within ten."""
BEGIN = {
    "Take a ledger's sealed step as it comes, even when it is older than one's own": 145,
    "Grant the file of a replaced trainer, which may still write to it, to its successor": 175,
    "Rename a file into place before its content is synced": 35,
    "Forget to sync the directory of the files": 35,
    "Forget to sync the directory into which a version was renamed": 75,
    "Restore the newest step whatever is barred": 60,
}
"""The search begins near a seed that shows the bug where the first ones take seconds."""


def test_the_search_begins_for_bugs_that_there_are() -> None:
    assert BEGIN.keys() <= CANARIES.keys()


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_found(name: str) -> None:
    with CANARIES[name]():
        begin = BEGIN.get(name, 0)
        found = next((seed for seed in range(begin, begin + SEEDS_MAX) if attempt(draw(seed))[0]), None)
    assert found is not None, f"{name}: not found within {SEEDS_MAX} seeds"
