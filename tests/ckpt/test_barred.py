"""What is barred: words that mean the same to whoever hears them, in whatever order."""

from __future__ import annotations

from functools import reduce
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.ckpt.barred import BARS_MAX, Bar, Barred, merged
from ckptd.ckpt.model import Version

small = st.integers(0, 20)
bars = st.builds(Bar, small, st.builds(Version, small, small), st.sampled_from(["a", "b"]), st.booleans())
some = st.builds(lambda lifted, found: merged(Barred(lifted, tuple(found))), small, st.lists(bars, max_size=12))


@pytest.mark.parametrize(
    ("version", "covered"),
    [((2, 20), True), ((2, 25), True), ((1, 30), True), ((2, 19), False), ((3, 20), False), ((1, 3), False)],
)
def test_a_bar_is_of_a_step_and_what_was_trained_from_it(version: tuple[int, int], covered: bool) -> None:
    """Of its life and those before; what a later life captures at the same step is another matter."""
    known = Barred().adding(Version(2, 20), "poison")
    assert known.why(Version(*version)) == ("poison" if covered else "")


def test_damaged_bytes_are_of_one_version_alone() -> None:
    """Later ones, and the same step of other lives, have bytes of their own. What is barred already is not barred twice."""
    known = Barred().adding(Version(2, 20), "damaged", alone=True)
    assert known.why(Version(2, 20)) == "damaged"
    assert not any(map(known.why, (Version(2, 21), Version(1, 20), Version(3, 20))))
    assert known.adding(Version(2, 20), "again", alone=True) == known
    later = known.adding(Version(2, 20), "poison")
    assert later.why(Version(2, 21)) == "poison"
    assert later.adding(Version(1, 30), "damaged", alone=True) == later


def test_the_newest_reason_is_given_and_a_bar_that_says_nothing_new_is_none() -> None:
    known = Barred().adding(Version(1, 20), "first").adding(Version(2, 10), "second")
    assert known.why(Version(1, 20)) == "second"
    assert known.adding(Version(2, 15), "third") == known
    assert known.adding(Version(3, 15), "").why(Version(3, 15)) == "no reason was given"


def test_what_is_lifted_stays_lifted_and_what_is_barred_after_that_is_barred() -> None:
    """However late a word from before comes."""
    old = Barred().adding(Version(1, 20), "old")
    lifted = old.lifting()
    assert merged(lifted, old).why(Version(1, 20)) == ""
    again = lifted.adding(Version(1, 30), "new")
    assert merged(old, again).why(Version(1, 30)) == "new"
    assert merged(old, again).why(Version(1, 20)) == ""


def test_of_many_bars_the_newest_are_kept() -> None:
    known = reduce(lambda so_far, epoch: so_far.adding(Version(epoch, 10), "why"), range(1, 3 * BARS_MAX), Barred())
    assert len(known.bars) == BARS_MAX
    assert known.why(Version(3 * BARS_MAX - 1, 10)) == "why"


@given(st.lists(some, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_all_who_hear_the_same_words_know_the_same(words: list[Barred], random: Random) -> None:
    """In any order, one by one or together, and however often."""
    shuffled = [*words, *words]
    random.shuffle(shuffled)
    one_by_one = reduce(merged, shuffled, Barred())
    assert one_by_one == merged(*words) == merged(merged(*words), *words)
