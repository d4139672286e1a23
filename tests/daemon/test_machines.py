"""The transition tables: reachable, drawn in the documentation, and what every act of a rank and of work goes through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.diagrams import COMMAND, FILE, MACHINES, Table, name_of, page

from ckptd.ckpt.model import Version
from ckptd.daemon.machine import IllegalAct, follow
from ckptd.daemon.ranks import Ranks, Trainer
from ckptd.daemon.work import TRANSITIONS, Work

DAEMON = Path(__file__).parents[2] / "daemon"


def test_the_diagrams_are_fresh() -> None:
    assert FILE.read_text() == page(), f"docs/machines.md is stale: run `{COMMAND}` and read the difference"


def test_every_table_is_drawn() -> None:
    found = {path.name for path in DAEMON.glob("*.py") if re.search(r"^TRANSITIONS\b", path.read_text(), re.MULTILINE)}
    drawn = {Path(match[1]).name for _, text in MACHINES.values() if (match := re.match(r"`([a-z/]+\.py)`", text))}
    assert found == drawn


@pytest.mark.parametrize("title", MACHINES)
def test_every_state_can_be_reached_and_left(title: str) -> None:
    table: Table = MACHINES[title][0]
    reached, new = set(), {next(iter(table))}
    while new:
        reached |= new
        new = {after for state in new for after in table[state].values()} - reached
    assert reached == set(table), f"never reached: {[name_of(state) for state in set(table) - reached]}"
    assert all(table.values()), "a state that can't be left is a leak"


def test_an_act_outside_the_table_names_what_was_possible() -> None:
    with pytest.raises(IllegalAct, match=r"rebuild: succeed is not in the table for idle; possible is start"):
        follow(TRANSITIONS, "idle", "succeed", "rebuild")


def test_work_pauses_after_a_failure_until_somebody_hurries() -> None:
    work: Work[int] = Work("rebuild", 5.0)
    assert work.is_due(0.0)
    work.start(1)
    assert not work.is_due(100.0)
    with pytest.raises(IllegalAct):
        work.start(2)
    assert work.end(1.0, failed=True) == 1
    assert not work.is_due(5.9)
    assert work.is_due(6.0)
    work.hurry()
    assert work.is_due(1.0)
    with pytest.raises(IllegalAct):
        work.end(2.0, failed=False)


def test_a_rank_captures_only_after_it_has_joined() -> None:
    ranks = Ranks(0)
    ranks.attach(0, Trainer(1, 1, 100))
    assert ranks.begin(0, Version(1, 1), epoch=0, captured=None) is not None
    assert ranks.join(0, 1) is None
    assert ranks.begin(0, Version(1, 1), epoch=1, captured=None) is None
    ranks.check_invariants()
    assert ranks.leave(0, 100)
    with pytest.raises(IllegalAct):
        ranks._move(0, "begin", Trainer(1, 1, 100, epoch=1))
