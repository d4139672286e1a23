"""The simulator's own tools: runs repeat exactly, failures shrink, and the command line says how to replay them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sim.__main__ import command, main
from tests.sim.canaries import CANARIES
from tests.sim.runs import Failure, attempt
from tests.sim.scenario import draw
from tests.sim.shrink import shrink

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_seed_replays_exactly_in_another_process() -> None:
    """Nothing depends on the order of a set or on the clock: two processes print the same trace."""
    command = [sys.executable, "-m", "tests.sim", "--seed", "11", "--trace"]
    outputs = {
        subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert b"SEALED" in outputs.pop()


def test_shrinking_keeps_what_the_failure_needs() -> None:
    """Of fifteen faults two are needed together; the others are dropped, however they lie."""
    scenario = next(s for s in map(draw, range(1000)) if len(s.faults) == 15)
    tried = 0

    def attempt(kept: set[int]) -> Failure | None:
        nonlocal tried
        tried += 1
        return Failure(scenario.keeping(kept), f"after {tried} tries") if {3, 11} <= kept else None

    small = shrink(Failure(scenario, "after 0 tries"), attempt)
    assert [fault.number for fault in small.scenario.faults] == [3, 11]
    assert command(small.scenario) == f"python -m tests.sim --seed {scenario.seed} --keep 3,11"
    assert tried < 100


def test_shrinking_does_not_wander_to_another_failure() -> None:
    scenario = next(s for s in map(draw, range(1000)) if len(s.faults) == 6)

    def attempt(kept: set[int]) -> Failure | None:
        return Failure(scenario.keeping(kept), "P1: it" if len(kept) == 6 else "P4: something else")

    assert len(shrink(Failure(scenario, "P1: it"), attempt).scenario.faults) == 6


def test_dropped_faults_leave_the_others_where_they_were() -> None:
    scenario = next(s for s in map(draw, range(1000)) if len(s.faults) == 6)
    kept = scenario.keeping({1, 4}).faults
    when = [sum(fault.after_s for fault in scenario.faults[: number + 1]) for number in (1, 4)]
    assert [kept[0].after_s, kept[0].after_s + kept[1].after_s] == pytest.approx(when)
    assert [fault.seed for fault in kept] == [scenario.faults[1].seed, scenario.faults[4].seed]


def test_a_failing_seed_is_replayed_by_the_command_that_was_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with CANARIES["Seal before the last parity is placed"]():
        failure = next(failure for seed in range(50) if (failure := attempt(draw(seed))[0]))
        small = shrink(failure, lambda kept: attempt(failure.scenario.keeping(kept))[0])
        words = command(small.scenario).split()[3:]
        assert main([word.strip("'") for word in words]) == 1
    printed = capsys.readouterr().out
    assert "sealed without all parities" in printed
    assert f"replay: {command(small.scenario)}" in printed
    assert main([word.strip("'") for word in words]) == 0, "without the planted bug the same run passes"


def test_many_runs_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "30", "--jobs", "2", "--start", "40"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("sim: 30 seeds from 40, 0 failed, ")


def test_a_crash_of_the_checked_code_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: object) -> None:
        raise KeyError("gone")

    monkeypatch.setattr("tests.sim.chaos.Chaos.run", crash)
    failure, _ = attempt(draw(1))
    assert failure is not None
    assert failure.problem == "KeyError: 'gone'"
