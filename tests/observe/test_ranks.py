"""The look at one rank: when its stacks are asked for, and when it is left in peace."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from ckptd.ckpt.beat import BeatWriter
from ckptd.daemon.observe.ranks import UNMOVED, Attached, RankEye


class Noted(Executor):
    """Counts what it was given, and does nothing."""

    def __init__(self) -> None:
        self.jobs = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs += 1
        return Future()


@pytest.mark.parametrize(("closed", "asked"), [(False, 1), (True, 0)], ids=["stands still", "ends"])
def test_a_rank_that_ends_is_not_asked_for_its_stacks(tmp_path: Path, closed: bool, asked: int) -> None:
    """One that stands still is, once. One that ends stands still, too: a question would abort it after its last step."""
    writer, background = BeatWriter(tmp_path / "0.beat", 0, 1), Noted()
    writer.step(5, 1)
    eye = RankEye(tmp_path, Attached(0, os.getpid(), 1, 1), background)
    if closed:
        writer.close()
    for _ in range(3 * UNMOVED):
        eye.look()
    eye.close()
    assert background.jobs == asked


def test_the_last_step_of_a_rank_that_has_gone_is_known(tmp_path: Path) -> None:
    """Also the one that it made after it was last looked at: where it died is judged by that."""
    writer = BeatWriter(tmp_path / "0.beat", 0, 1)
    writer.resumed(40)
    eye = RankEye(tmp_path, Attached(0, os.getpid(), 1, 1), Noted())
    eye.look()
    for step in range(41, 47):
        writer.step(step, step)
    assert eye.bury().step == 46
    eye.close()
