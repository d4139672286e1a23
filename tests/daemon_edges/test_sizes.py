"""Sizes and ages on a command line."""

from __future__ import annotations

import pytest

from ckptd.ckpt.durations import age_of
from ckptd.ckpt.errors import UsageError
from ckptd.daemon.sizes import age_words


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("30 min", 1800), ("7d", 604800), (" 2w ", 1209600)]
)
def test_ages(text: str, seconds: float) -> None:
    """Seconds, minutes, hours, days, weeks."""
    assert age_of(text, "--older-than") == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 days", "1e3s", "²d", "9999999999d"])
def test_what_is_no_age(text: str) -> None:
    """A bare number could be anything."""
    with pytest.raises(UsageError, match="--older-than"):
        age_of(text, "--older-than")


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3.0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (90000, "1 d")]
)
def test_ages_in_words(seconds: float, words: str) -> None:
    """The largest unit that fits; a clock that is ahead counts as now."""
    assert age_words(seconds) == words
