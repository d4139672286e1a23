"""Random jobs under labelled faults, and as many healthy ones. A failure names the command that replays it."""

from __future__ import annotations

import pytest
from tests.watch.__main__ import command, main
from tests.watch.campaign import Tally, judge_seed, table
from tests.watch.faults import Ill, named
from tests.watch.month import watch_day

from ckptd.daemon.watch.verdicts import Syndrome

BATCHES, SEEDS = 4, 10
RANKS = (8, 32)
MISSES_MAX = 1
"""Of a batch's ten faults: some are as faint as the noise. The whole campaign's bar is stated in `tests.watch.__main__`."""


@pytest.mark.parametrize("batch", range(BATCHES))
def test_faults_are_named_and_the_innocent_are_not(batch: int) -> None:
    """Each batch has five healthy jobs and five with faults: nobody is accused for nothing, nothing healthy is restarted."""
    tally = Tally()
    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        tally.add(judge_seed(seed, RANKS))
    told = [f"{said.verdict.reason}; replay: {command(seed, '8..32')}" for seed, said in tally.made_up]
    missed = [f"{fault.ill.value}: {found}; replay: {command(seed, '8..32')}" for seed, fault, found in tally.missed]
    assert not told
    assert not tally.restarts
    assert len(missed) <= MISSES_MAX, missed


def test_the_same_seed_gives_the_same_verdicts() -> None:
    first, second = judge_seed(5, RANKS), judge_seed(5, RANKS)
    assert [(s.at_s, s.verdict) for s in first.said] == [(s.at_s, s.verdict) for s in second.said]
    assert first.said


def test_a_quarter_of_an_hour_of_1024_ranks_restarts_nothing() -> None:
    outcome = watch_day(3, 10.0, 900.0)
    assert outcome.scenario.job.ranks == 1024
    assert not outcome.acts


def test_a_campaign_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "4", "--ranks", "8..8", "--jobs", "1"]) in (0, 1)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("watch: 4 seeds from 0, 2 of them healthy, ")


def test_a_campaign_can_be_of_some_faults_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "24", "--ranks", "8..8", "--jobs", "1", "--ill", Ill.KILL.value]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0] for line in lines[1:2]] == [Ill.KILL.value]
    assert "0 of them healthy" in lines[-1]


def test_every_fault_has_a_class_and_a_line_in_the_table() -> None:
    tally = Tally()
    outcome = judge_seed(1, RANKS)
    tally.add(outcome)
    assert all(isinstance(fault.syndrome, Syndrome) and fault.suspects for fault in outcome.faults)
    assert len(table(tally.classes)) == 1 + len({fault.ill for fault in outcome.struck})
    assert {Ill.KILL.value, Ill.CUT.value} <= {ill.value for ill in Ill}
    assert all(named(said.verdict) for said in outcome.said if said.verdict.syndrome is not Syndrome.NOBODY)
