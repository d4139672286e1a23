"""Which calls take a snapshot: alike on all ranks, by steps, by time and by cost, and the last one when a rank must end."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ckptd.ckpt.errors import DaemonUnavailable
from ckptd.ckpt.policy import Cadence, Failures, cadence_of
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.rounds import LAG_EVERY_S, Rounds, Turn

ROOT = Path(__file__).parents[2]


class Alone:
    """Rounds of a single rank with a clock that the test moves."""

    def __init__(self, every: int | str, **answers: Any) -> None:
        self.now, self.asked, self.told = 100.0, 0, False
        self.lag: float | DaemonUnavailable = 0.0
        cadence: Cadence = cadence_of(every, "every")
        self.rounds = Rounds(
            cadence, Ranks(), failures=lambda: Failures(mtbf_node_s=1e4), ending=lambda: self.told, lag_s=self.ask,
            blocked_s=lambda: 0.0,
            clock=lambda: self.now, **answers,
        )  # fmt: skip

    def ask(self) -> Future[float | None]:
        self.asked += 1
        answer: Future[float | None] = Future()
        if isinstance(self.lag, DaemonUnavailable):
            answer.set_exception(self.lag)
        else:
            answer.set_result(self.lag)
        return answer

    def train(self, steps: range, step_s: float) -> list[int]:
        """The steps that were due."""
        due = []
        for n in steps:
            self.now += step_s
            if self.rounds.turn(n).due:
                due.append(n)
        return due


def test_steps_are_multiples_of_the_step() -> None:
    """Every 5 steps: after a restore at 12 the next one is 15, whatever was counted before."""
    assert Alone(5).train(range(13, 31), 0.1) == [15, 20, 25, 30]
    assert Alone("1").train(range(1, 4), 0.1) == [1, 2, 3]


def test_a_time_needs_no_multiples() -> None:
    """Every 2 s with steps of 0.1 s: the first step, and then every twentieth."""
    due = Alone("2s").train(range(7, 207), 0.1)
    assert due[0] == 7
    assert all(18 <= after - before <= 22 for before, after in pairwise(due))


def test_auto_says_what_it_chose_and_asks_for_the_lag(caplog: pytest.LogCaptureFixture) -> None:
    """A sealing that takes 1 s bounds it, and the daemon is not asked at every step."""
    job = Alone("auto")
    job.lag = 1.0
    with caplog.at_level(logging.INFO, "ckptd"):
        due = job.train(range(1, 401), 0.1)
    assert due[-1] - due[-2] == 10
    assert "one is taken every 10 steps" in caplog.text
    assert job.asked <= 40.0 / LAG_EVERY_S + 1


def test_a_daemon_that_is_gone_does_not_disturb_auto() -> None:
    """Then the last known lag counts, and none at the start."""
    job = Alone("auto")
    job.lag = DaemonUnavailable("gone")
    due = job.train(range(1, 401), 0.1)
    assert len([step for step in due if step > 100]) > 250


@pytest.mark.parametrize("every", [1, 50, "1h", "auto"])
def test_the_last_turn_is_the_next_one(every: int | str) -> None:
    """A single rank that is told to end takes its last snapshot at once, due or not."""
    job = Alone(every)
    job.train(range(1, 4), 0.1)
    job.told = True
    assert job.rounds.turn(4) == Turn(due=True, last=True)
    job.told = False
    assert not job.rounds.turn(5).last


@pytest.mark.slow
def test_two_ranks_agree_without_looking_at_their_own_clocks(tmp_path: Path) -> None:
    """Rank 1's clock is three times as fast, and it alone is told to end: all calls are due, and last, on both."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.rounds_worker", str(rank), str(tmp_path)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    first, second = (json.loads(rank.communicate(timeout=100)[0]) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert first == second
    assert first["last"] > 60
    assert first["due"][0] == 1
    assert first["due"][-1] == first["last"]
    assert len(first["due"]) > 3
