"""The demo's report says what the events say, and calls bit-identical only what is."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from ckptd.daemon.demo.judged import Injected
from ckptd.daemon.demo.report import Report, build_report, compare, describe, lives_of, table_of
from ckptd.daemon.demo.watch import Event

STATUSES = [{"bytes": {"payload": 13_000_000, "parity": 13_000_000}}] * 2
T_FAULT = 100.0


def trainer(t: float, name: str, rank: int, **fields: Any) -> Event:
    return Event(t, "trainer", name, {"rank": rank, **fields})


def daemon(t: float, name: str, node: int, **fields: Any) -> Event:
    return Event(t, "daemon", name, {"node": node, **fields})


def life(t: float, first: int, last: int, *, done: bool) -> list[Event]:
    """Two ranks restore `first` at `t` and train to `last`, a step a second; the loss depends on the step and rank."""
    events = []
    for rank in (0, 1):
        events += [trainer(t - 1, "start", rank, pid=7), trainer(t, "restored", rank, step=first)]
        for step in range(first + 1, last + 1):
            at = t + step - first + rank * 0.25
            events.append(trainer(at, "step", rank, step=step, loss=float(step + rank).hex()))
        if done:
            events.append(trainer(t + last - first + 1, "done", rank, step=last, digest="ab12"))
    return events


def uninterrupted() -> list[Event]:
    return life(0.0, 0, 6, done=True)


def interrupted() -> list[Event]:
    """Node 1 is lost when step 4 is done, and the job goes on from step 3, rebuilt from parity."""
    return [
        *life(95.0, 0, 4, done=False),
        daemon(99.0, "sealed", 0, epoch=1, step=3),
        Event(T_FAULT, "demo", "fault", {"text": "FAULT", "nodes": [1]}),
        daemon(100.5, "node_lost", 0, lost=1),
        daemon(101.0, "rebuild", 1, epoch=1, step=3, started=True),
        daemon(101.5, "rebuilt", 1, epoch=1, step=3, bytes=13_000_000, seconds=0.25),
        daemon(101.0, "decided", 0, epoch=2, version_epoch=1, step=3, source="parity", reason="node 1 [lost]"),
        daemon(101.1, "gathered", 0, epoch=1, step=3, seconds=0.1),
        daemon(101.75, "gathered", 1, epoch=1, step=3, seconds=0.5),
        *life(105.0, 3, 6, done=True),
    ]


def report_of(faulty: list[Event], reference: list[Event] | None = None, injected: Injected | None = None) -> Report:
    return build_report(
        uninterrupted() if reference is None else reference,
        faulty,
        STATUSES,
        nodes=2,
        steps=6,
        t_start=50.0,
        t_fault=T_FAULT,
        injected=injected,
        launched="`ckptd run`, warm trainers",
    )


def test_a_fault_that_is_to_be_judged_is_detected_when_it_is_named() -> None:
    """Not when its trainer is seen to have ended, unless nobody names it; and a slow rank may cost no step at all."""
    named = {"class": "crash", "suspects": {"ranks": [1], "nodes": [1], "links": []}, "reason": "it went"}
    opened = Event(102.0, "incident 1 of node 0", "opened", {"verdict": named, "t_detected": 102.0})
    decided = Event(
        102.0, "incident 1 of node 0", "decided", {"decision": {"act": "restart in place", "done": "asked"}}
    )
    report = report_of([*interrupted(), opened, decided], injected=Injected("kill-rank", (1,), (1,)))
    told = report.as_json()
    assert (told["seconds"]["t_detected"], told["verdict"], told["verdict_right"]) == (2.0, named, True)
    assert told["restored_from"] == "parity"
    assert any("crash" in str(cell) for column in table_of(report).columns for cell in column.cells)

    unnamed = report_of(interrupted(), injected=Injected("kill-node", (1,), (1,))).as_json()
    assert (unnamed["seconds"]["t_detected"], unnamed["verdict"]) == (0.5, None)

    unharmed = report_of(life(95.0, 0, 6, done=True), injected=Injected("slow-rank", (1,), (1,))).as_json()
    assert (unharmed["lost_steps"], unharmed["seconds"]["t_first_step"], unharmed["verdict"]) == (0, None, None)
    assert unharmed["bit_exact"]


def test_a_recovery_from_parity_is_told_in_numbers() -> None:
    told = report_of(interrupted()).as_json()
    events = told.pop("events")
    assert told == {
        "bit_exact": True,
        "steps": 6,
        "reached_step": 4,
        "restored_step": 3,
        "restored_from": "parity",
        "reason": "node 1 [lost]",
        "launched": "`ckptd run`, warm trainers",
        "lost_steps": 1,
        "t_start": 50.0,
        "t_fault": 100.0,
        "seconds": {"t_detected": 0.5, "t_rebuilt": 1.5, "t_state_ready": 1.75, "t_first_step": 6.25},
        "bytes": {"payload": [13_000_000, 13_000_000], "parity": [13_000_000, 13_000_000]},
        "losses_compared": 14,
        "different": [],
        "digest": "ab12",
    }
    assert json.loads(json.dumps(events)) == events
    assert [event["t"] for event in events] == sorted(event["t"] for event in events)
    assert {event["event"] for event in events} >= {
        "fault",
        "node_lost",
        "rebuilt",
        "decided",
        "gathered",
        "restored",
        "done",
    }
    assert not {event["event"] for event in events} & {"step", "sealed"}, "events of every step would bury the others"


def test_the_table_says_the_same() -> None:
    text = io.StringIO()
    Console(file=text, width=120).print(table_of(report_of(interrupted())))
    for words in (
        "1 (trained to step 4, went on from step 3 of 6)",
        "parity (node 1 [lost])",
        "50.00 s after the start",
        "0.50 s after the fault",
        "1.50 s after the fault",
        "1.75 s after the fault",
        "6.25 s after the fault (`ckptd run`, warm trainers)",
        "data 13.0 MB, parity 13.0 MB",
        "bit-identical: all 14 of both runs",
        "bit-identical: ab12",
    ):
        assert words in text.getvalue()


def test_one_different_loss_is_found() -> None:
    """Also when it is a loss of the life before the fault."""
    faulty = interrupted()
    where = next(i for i, event in enumerate(faulty) if event.name == "step" and event.fields["step"] == 2)
    fields = faulty[where].fields
    faulty[where] = trainer(faulty[where].t, "step", fields["rank"], step=2, loss=(2.0000000000000004).hex())
    report = report_of(faulty)
    assert not report.comparison.bit_exact
    assert report.comparison.different == (
        "rank 0's loss of step 2 is 0x1.0000000000001p+1, expected 0x1.0000000000000p+1",
    )
    text = io.StringIO()
    Console(file=text, width=120).print(table_of(report))
    assert "different in 1 places" in text.getvalue()
    assert "rank 0's loss of step 2" in text.getvalue()


@pytest.mark.parametrize("name", ["done", "step"])
def test_what_is_missing_is_no_match(name: str) -> None:
    faulty = interrupted()
    last = max(i for i, event in enumerate(faulty) if event.name == name)
    comparison = compare(uninterrupted(), faulty[:last] + faulty[last + 1 :], ranks=2, steps=6)
    assert not comparison.bit_exact
    assert "rank 1" in comparison.different[0]


def test_two_empty_runs_are_not_identical() -> None:
    assert not compare([], [], ranks=2, steps=6).bit_exact


def test_different_parameters_are_found() -> None:
    reference = [*uninterrupted()[:-1], trainer(7.0, "done", 1, step=6, digest="cd34")]
    comparison = compare(reference, interrupted(), ranks=2, steps=6)
    assert comparison.different == (
        "the final parameters: ab12, cd34 in the uninterrupted run and ab12 in the recovered run",
    )
    assert comparison.digest == ""


def test_a_fresh_start_is_called_none() -> None:
    """Nothing was found: everything is trained again, from the seed, and still the bits must agree."""
    faulty = [*life(95.0, 0, 4, done=False), *life(105.0, 0, 6, done=True)]
    report = report_of(faulty)
    assert (report.restored_from, report.restored_step, report.lost_steps) == ("none", 0, 4)
    assert report.seconds.t_detected is None
    assert report.comparison.bit_exact


def test_the_last_of_several_attempts_counts() -> None:
    """A launcher may start the trainers twice before they stay; steps of the failed attempt are lost too."""
    events = [
        *life(95.0, 0, 4, done=False),
        *life(105.0, 3, 5, done=False),
        *life(115.0, 3, 6, done=True),
    ]
    assert lives_of(events, 2) == (5, 3, 116.25)


def test_no_first_step_while_a_rank_has_none() -> None:
    assert lives_of([event for event in life(5.0, 0, 2, done=False) if event.fields["rank"] == 0], 2) == (0, 0, None)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (daemon(1, "node_lost", 0, lost=2), "node 2 is lost, says node 0"),
        (Event(1, "demo", "node_lost", {"text": "", "lost": [0, 1]}), "says the launcher"),
        (daemon(1, "rank_lost", 3, rank=3, pid=77), "rank 3 (pid 77)"),
        (daemon(1, "decided", 0, step=20, source="storage", reason="two lost"), "step 20, from storage: two lost"),
        (daemon(1, "rebuilt", 2, step=3, bytes=26_000_000, seconds=0.5), "26.0 MB in 0.50 s"),
        (daemon(1, "refused", 2, reason="wrong secret"), "wrong secret"),
        (trainer(1, "restored", 0, step=30), "goes on from step 30"),
        (trainer(1, "restored", 0, step=0), "begins at step 0"),
    ],
)
def test_events_are_told_in_words(event: Event, words: str) -> None:
    assert words in str(describe(event))


def test_events_of_every_step_are_not_told_one_by_one() -> None:
    assert describe(daemon(1, "sealed", 0, epoch=1, step=3)) is None
    assert describe(trainer(1, "step", 0, step=3, loss="0x1p+0")) is None
    assert describe(trainer(1, "restored", 1, step=3)) is None, "rank 0 speaks for all"
