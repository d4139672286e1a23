"""Which persisted steps may go, and when the daemon says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    stored = tuple(Version(1, step) for step in (10, 20, 30, 40))
    for keep, gone in ((0, []), (2, [Version(1, 10)])):
        duties = Duties(replace(base, keep_last=keep))
        duties.publish(Table(Version(1, 30), 1, ()), 0.0)
        effects = duties.published(ev.Published(Version(1, 30), stored=stored), 1.0)
        assert [effect.version for effect in effects if isinstance(effect, ev.Remove)] == gone


@pytest.mark.parametrize("keep", [-1, 1])
def test_too_few_to_keep(tmp_path: Path, keep: int) -> None:
    """One is too few: a restart may be reading the step before the newest."""
    with pytest.raises(UsageError, match="2 or more to keep"):
        Config(run_dir=tmp_path, segment_dir=tmp_path, keep_last=keep).validate()


RULES = st.builds(Rule, st.integers(0, 4), st.integers(0, 20), st.none() | st.floats(0, 50))
STEPS = st.dictionaries(versions, st.tuples(st.floats(0, 100), st.booleans())).map(
    lambda found: [Kept(version, at, complete) for version, (at, complete) in found.items()]
)


@given(STEPS, RULES)
def test_the_newest_complete_step_and_what_follows_it_always_stay(steps: list[Kept], rule: Rule) -> None:
    """Whatever is broken and whatever the rule says; the young, the multiples and the last complete ones stay as well."""
    gone = doomed(steps, rule, now=100.0)
    complete = sorted(step.version for step in steps if step.complete)
    assert list(gone) == sorted(set(gone))
    assert not gone or max(gone) < complete[-1]
    assert not set(complete[-rule.last :] if rule.last else complete[-1:]) & set(gone)
    for step in steps:
        if step.version in gone:
            assert rule.older_than_s is None or 100.0 - step.written_at >= rule.older_than_s
            assert not rule.every or step.version.step % rule.every
    left = [step for step in steps if step.version not in gone]
    assert doomed(left, rule, now=100.0) == ()


def test_without_a_rule_nothing_goes() -> None:
    """Keep-every alone can't be meant: it would leave none of the newest."""
    steps = [Kept(Version(1, step), 0.0, True) for step in (1, 2, 3)]
    assert doomed(steps, Rule(), now=1e9) == ()
    assert doomed(steps, Rule(older_than_s=5.0), now=1e9) == (Version(1, 1), Version(1, 2))
    for wrong in (Rule(every=5), Rule(last=-1), Rule(last=1, every=-1)):
        with pytest.raises(UsageError, match="keep-"):
            wrong.check()
