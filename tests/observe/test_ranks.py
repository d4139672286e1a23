"""The eye on one rank: what is asked of a process that stands still."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from ckptd.ckpt.beat import BeatWriter
from ckptd.daemon.observe.ranks import UNMOVED, Attached, RankEye


class Never(Executor):
    """Counts what it is asked to run, and runs nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def submit(self, fn: Callable[..., Any], /, *_args: Any, **_kwargs: Any) -> Future[Any]:
        self.asked += 1
        return Future()


@pytest.mark.parametrize(("closes", "asked"), [(False, 1), (True, 0)])
def test_a_stack_is_asked_for_once_and_never_of_who_ends(tmp_path: Path, *, closes: bool, asked: int) -> None:
    """The handler that answers waits for the interpreter's lock, which makes a Python that is ending abort."""
    writer, background = BeatWriter(tmp_path / "0.beat", 0, 1), Never()
    writer.step(1, 1_000)
    if closes:
        writer.close()
    eye = RankEye(tmp_path, Attached(0, os.getpid(), 1, 1), background)
    for _ in range(2 * UNMOVED + 2):
        eye.look()
    eye.close()
    assert background.asked == asked
