"""The judgement on a fault: from the events alone, and never kept when it was not."""

from __future__ import annotations

from typing import Any

import pytest

from ckptd.ckpt.model import Version
from ckptd.daemon.demo.watch import Event
from ckptd.daemon.drill.faults import Fault, promise
from ckptd.daemon.drill.judge import Outcome, first_step, judge, new_seal, sealed_by

RANK, DAEMON, NODE = Fault("rank", 0), Fault("daemon", 0), Fault("node", 1)
STRUCK = 100.0


def daemon(t: float, name: str, **fields: Any) -> Event:
    return Event(t, "daemon", name, fields)


def trainer(t: float, name: str, rank: int, step: int) -> Event:
    return Event(t, "trainer", name, {"rank": rank, "step": step})


def history(*after: Event) -> list[Event]:
    """Step 7 was sealed before the fault, step 8 captured."""
    return [
        daemon(98.0, "captured", epoch=1, step=7),
        daemon(98.5, "sealed", epoch=1, step=7),
        daemon(99.5, "captured", epoch=1, step=8),
        *after,
    ]


def decided(t: float, step: int | None, source: str) -> Event:
    chosen = {} if step is None else {"version_epoch": 1, "step": step}
    return daemon(t, "decided", epoch=2, source=source, **chosen)


def verdict(fault: Fault, *after: Event, sealed_at: float | None = 112.0) -> Outcome:
    return judge(fault, promise(fault, 3, 1), history(*after), STRUCK, sealed_at, 2)


def test_a_kept_promise() -> None:
    """From memory, not older than what was sealed; with the times."""
    steps = [trainer(105.0, "restored", rank, 7) for rank in (0, 1)]
    steps += [trainer(106.0 + rank, "step", rank, 8) for rank in (0, 1)]
    outcome = verdict(RANK, daemon(100.5, "rank_lost"), decided(104.0, 7, "own"), *steps)
    assert not outcome.broken
    assert outcome.sealed_before == Version(1, 7)
    assert (outcome.t_noticed, outcome.t_first_step, outcome.t_sealed) == (0.5, 7.0, 12.0)
    assert outcome.happened == "restored step 7 from own"
    assert outcome.as_json()["kept"]


@pytest.mark.parametrize(
    ("fault", "after", "sealed_at", "problem"),
    [
        (RANK, [decided(104.0, 6, "own")], 112.0, "older than step 7"),
        (RANK, [decided(104.0, 7, "storage")], 112.0, "expected it from own"),
        (NODE, [decided(104.0, None, "none")], 112.0, "restored nothing from none"),
        (NODE, [decided(104.0, 5, "parity"), decided(105.0, 7, "parity")], 112.0, "older than"),
        (RANK, [], 112.0, "nothing was restored"),
        (DAEMON, [decided(104.0, 7, "own")], 112.0, "the training was stopped"),
        (DAEMON, [], None, "no step was sealed afterwards"),
    ],
)
def test_a_broken_promise_is_named(fault: Fault, after: list[Event], sealed_at: float | None, problem: str) -> None:
    """Whatever is not as promised."""
    outcome = verdict(fault, *after, sealed_at=sealed_at)
    assert any(problem in text for text in outcome.broken), outcome.broken
    assert not outcome.as_json()["kept"]


def test_only_what_was_captured_afterwards_counts_as_protection() -> None:
    """A step that was on its way when the fault struck may be sealed yet; that says nothing about the job afterwards."""
    late = history(daemon(100.5, "sealed", epoch=1, step=8))
    assert new_seal(late, STRUCK) is None
    new = [*late, daemon(101.0, "captured", epoch=1, step=9), daemon(102.0, "sealed", epoch=1, step=9)]
    assert new_seal(new, STRUCK) == 102.0
    assert sealed_by(new, STRUCK) == Version(1, 7)


def test_every_rank_must_train_again() -> None:
    """One that was restored and has not finished a step is not training; steps of the life before count for nothing."""
    events = [trainer(100.1, "step", 1, 8), trainer(105.0, "restored", 0, 7), trainer(105.0, "restored", 1, 7)]
    assert first_step(events, STRUCK, 2) is None
    events.append(trainer(106.0, "step", 0, 8))
    assert first_step(events, STRUCK, 2) is None
    events.append(trainer(107.0, "step", 1, 8))
    assert first_step(events, STRUCK, 2) == 107.0
