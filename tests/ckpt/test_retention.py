"""Which persisted steps may go, and when the daemon says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.ckpt.barred import Barred
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import Table, Version
from ckptd.ckpt.retention import Kept, Rule, doomed, excess
from ckptd.daemon import events as ev
from ckptd.daemon.duties import Duties

versions = st.builds(Version, st.integers(1, 3), st.integers(1, 60))


def test_the_newest_are_kept_and_every_so_many() -> None:
    """By version, not by step: what was trained again is newer."""
    stored = [Version(1, step) for step in (10, 20, 30, 40)] + [Version(2, 25), Version(2, 30)]
    assert excess(stored, 2) == (Version(1, 10), Version(1, 20), Version(1, 30), Version(1, 40))
    assert excess(stored, 2, 20) == (Version(1, 10), Version(1, 30))
    assert excess(stored, 0, 20) == ()
    assert excess(stored, 9) == ()


def test_what_is_barred_takes_nobody_s_place() -> None:
    """A job that passes it over has as many steps to go back to as were asked for. It goes with what is as old."""
    stored = [Version(1, step) for step in (10, 20, 30, 40)] + [Version(2, 25)]
    barred = Barred().adding(Version(1, 30), "poison")
    assert excess(stored, 2, barred=barred) == (Version(1, 10),)
    assert excess([*stored, Version(2, 35)], 2, barred=barred) == stored_before(Version(2, 25), stored)
    assert excess(stored, 4, barred=barred) == ()
    steps = [Kept(version, 5.0, True) for version in stored]
    assert doomed(steps, Rule(last=2), barred) == (Version(1, 10),)
    assert doomed(steps, Rule(older_than_s=1.0), barred) == stored_before(Version(2, 25), stored)


def stored_before(version: Version, stored: list[Version]) -> tuple[Version, ...]:
    return tuple(sorted(found for found in stored if found < version))


def test_the_daemon_s_rule_knows_the_bars() -> None:
    """Those of the whole job, as the ledger has them."""
    stored = tuple(Kept(Version(1, step), 5.0, True) for step in (10, 20, 30, 40))
    duties = Duties(replace(Config(run_dir=Path("/nowhere"), segment_dir=Path("/nowhere")), keep_last=2))
    duties.publish(Table(Version(2, 15), 1, ()), 0.0)
    published = ev.Published(Version(2, 15), stored=(*stored, Kept(Version(2, 15), 0.0, True)))
    effects = duties.published(published, Barred().adding(Version(1, 30), "poison"), 1.0)
    assert [effect.version.step for effect in effects if isinstance(effect, ev.Remove)] == [10]


@given(st.sets(versions), st.integers(2, 5), st.integers(0, 20))
def test_enough_is_always_kept(stored: set[Version], keep: int, every: int) -> None:
    """Whatever is stored: the newest stay, only what is stored goes, and what is left has nothing in excess."""
    gone = excess(stored, keep, every)
    left = stored - set(gone)
    assert set(gone) <= stored
    assert sorted(stored)[-keep:] == sorted(left)[-keep:]
    assert excess(left, keep, every) == ()
    assert not every or all(version.step % every for version in gone)


def test_what_was_published_last_decides() -> None:
    """Only versions up to the one that was just published are judged; without a setting nothing goes."""
    base = Config(run_dir=Path("/nowhere"), segment_dir=Path("/nowhere"))
    stored = tuple(Kept(Version(1, step), 5.0, True) for step in (10, 20, 30, 40))
    for keep, gone in ((0, []), (2, [Version(1, 10)])):
        duties = Duties(replace(base, keep_last=keep))
        duties.publish(Table(Version(1, 30), 1, ()), 0.0)
        effects = duties.published(ev.Published(Version(1, 30), stored=stored), Barred(), 1.0)
        assert [effect.version for effect in effects if isinstance(effect, ev.Remove)] == gone


@pytest.mark.parametrize("keep", [-1, 1])
def test_too_few_to_keep(tmp_path: Path, keep: int) -> None:
    """One is too few: a restart may be reading the step before the newest."""
    with pytest.raises(UsageError, match="2 or more to keep"):
        Config(run_dir=tmp_path, segment_dir=tmp_path, keep_last=keep).validate()


def removed(stored: list[Kept], newest: int, **settings: float) -> list[int]:
    """The steps that a daemon removes when it has published `newest`."""
    duties = Duties(replace(Config(run_dir=Path("/nowhere"), segment_dir=Path("/nowhere")), **settings))  # type: ignore[arg-type]
    duties.publish(Table(Version(1, newest), 1, ()), 0.0)
    effects = duties.published(ev.Published(Version(1, newest), stored=tuple(stored)), Barred(), 1.0)
    return [effect.version.step for effect in effects if isinstance(effect, ev.Remove)]


def test_a_daemon_removes_what_is_old() -> None:
    """Beyond the newest so many (two, where nobody says), and never one of a multiple; what has no age stays."""
    aged = [Kept(Version(1, step), 100.0 - step, True) for step in range(10, 91, 10)]
    assert removed(aged, 90, keep_for_s=45.0) == [10, 20, 30, 40, 50]
    assert removed(aged, 90, keep_for_s=45.0, keep_last=6) == [10, 20, 30]
    assert removed(aged, 90, keep_for_s=45.0, keep_every=20) == [10, 30, 50]
    assert removed(aged, 90, keep_for_s=1.0) == [10, 20, 30, 40, 50, 60, 70]
    assert removed(aged, 90) == []
    assert removed([Kept(step.version, None, True) for step in aged], 90, keep_for_s=1.0) == []


def test_ages_by_a_wrong_clock() -> None:
    """A step from 1970 is no older than the one before it; one from the future is not old, and makes no other one young."""
    ages = {10: 60.0, 20: 50.0, 30: 1.8e9, 40: -1e9, 50: 25.0, 60: 2e9, 70: 15.0, 80: 5.0, 90: 1.8e9}
    stored = [Kept(Version(1, step), age_s, True) for step, age_s in ages.items()]
    assert removed(stored, 90, keep_for_s=40.0) == [10, 20, 30]
    assert removed(stored, 90, keep_for_s=20.0) == [10, 20, 30, 50, 60]


@pytest.mark.parametrize("age", [-1.0, float("nan"), float("inf")])
def test_an_age_that_is_none(tmp_path: Path, age: float) -> None:
    with pytest.raises(UsageError, match="keep_for_s"):
        Config(run_dir=tmp_path, segment_dir=tmp_path, keep_for_s=age).validate()


RULES = st.builds(Rule, st.integers(0, 4), st.integers(0, 20), st.none() | st.floats(0, 50))
STEPS = st.dictionaries(versions, st.tuples(st.none() | st.floats(-10, 100), st.booleans())).map(
    lambda found: [Kept(version, age_s, complete) for version, (age_s, complete) in found.items()]
)


@given(STEPS, RULES)
def test_the_newest_complete_step_and_what_follows_it_always_stay(steps: list[Kept], rule: Rule) -> None:
    """Whatever is broken and whatever the rule says; the young, the multiples and the last complete ones stay as well."""
    gone = doomed(steps, rule)
    complete = sorted(step.version for step in steps if step.complete)
    assert list(gone) == sorted(set(gone))
    assert not gone or max(gone) < complete[-1]
    assert not set(complete[-rule.last :] if rule.last else complete[-1:]) & set(gone)
    for step in steps:
        if step.version in gone:
            assert rule.older_than_s is None or (step.age_s is not None and step.age_s >= rule.older_than_s)
            assert not rule.every or step.version.step % rule.every
    left = [step for step in steps if step.version not in gone]
    assert doomed(left, rule) == ()


def test_without_a_rule_nothing_goes() -> None:
    """Keep-every alone can't be meant: it would leave none of the newest."""
    steps = [Kept(Version(1, step), 1e9, True) for step in (1, 2, 3)]
    assert doomed(steps, Rule()) == ()
    assert doomed(steps, Rule(older_than_s=5.0)) == (Version(1, 1), Version(1, 2))
    for wrong in (Rule(every=5), Rule(last=-1), Rule(last=1, every=-1)):
        with pytest.raises(UsageError, match="keep-"):
            wrong.check()
