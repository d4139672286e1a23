"""Who is to blame when torch says that trainers have ended."""

from __future__ import annotations

import pytest

from ckptd.integrations.agent import first_of


@pytest.mark.parametrize(
    ("ended", "noticed", "first"),
    [
        ({3: -9}, {3}, (3, -9)),
        ({2: -15, 3: -9}, {3}, (3, -9)),
        ({2: 1, 3: -9}, {2}, (3, -9)),
        ({2: -15, 3: 1}, {3}, (3, 1)),
        ({2: -15, 3: -15}, {3}, (3, -15)),
        ({2: 1, 3: 7}, {3}, (2, 1)),
        ({2: -15, 3: -15}, set(), (2, -15)),
    ],
    ids=[
        "alone",
        "torch ended its sibling",
        "its sibling failed of it",
        "an error",
        "ended from outside",
        "two",
        "unknown",
    ],
)
def test_who_has_ended_first(ended: dict[int, int], noticed: set[int], first: tuple[int, int]) -> None:
    """A signal comes before an error, and the SIGTERM that torch sends to the siblings before nothing."""
    assert first_of(ended, noticed) == first
