"""Who is to blame when torch says that trainers have ended."""

from __future__ import annotations

import pytest

from ckptd.ckpt.config import Timing
from ckptd.integrations.agent import first_of, patience_s


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


def test_a_failure_that_would_end_the_job_is_held_against_the_others_for_longer() -> None:
    """A node that is lost is missed after 2 s, and its peers may fail at once; who was killed has nothing to wait for."""
    assert [patience_s(certain=True, left=left) for left in (3, 0)] == [0.0, 0.0]
    assert patience_s(certain=False, left=1) < 1.0
    assert patience_s(certain=False, left=0) > Timing().lost_after_s + Timing().report_every_s
