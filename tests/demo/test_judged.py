"""The demo holds ckptd's verdict against the truth, and calls right only what is."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from ckptd.daemon.demo.judged import NOBODY, Injected, add_rows, describe_entry, judged, records, summed, teller
from ckptd.daemon.demo.watch import Event

T_FAULT = 100.0
HANG = Injected("hang", (1,), (1,))


def verdict(named: str = "non-communication hang", *ranks: int) -> dict[str, Any]:
    suspects = {"ranks": list(ranks), "nodes": list(ranks), "links": []}
    return {"class": named, "suspects": suspects, "reason": "it [stands]", "confidence": "likely"}


def entry(number: int, t: float, name: str, **fields: Any) -> Event:
    return Event(t, teller(number, "node 0"), name, fields)


def record(number: int, t: float, said: dict[str, Any]) -> list[Event]:
    """An incident that is detected, acted on and over."""
    decision = {"act": "restart in place", "reason": "it [stands]", "done": "the agents are asked"}
    return [
        entry(number, t, "opened", verdict=said, t_detected=t, t_fault=T_FAULT + 0.5),
        entry(number, t, "decided", decision=decision),
        entry(number, t, "acted", done="the agents were asked to restart"),
        entry(number, t + 0.25, "isolated", t_isolated=t + 0.25),
    ]


def test_the_right_verdict_is_told_with_the_truth_the_decision_and_the_times() -> None:
    """In the JSON report as `verdict: {class, suspects, reason}`, and in the table."""
    found = judged(HANG, record(1, 106.0, verdict("non-communication hang", 1)), T_FAULT)
    told = found.as_json(T_FAULT)
    assert told["verdict"] == {
        "class": "non-communication hang", "suspects": {"ranks": [1], "nodes": [1], "links": []}, "reason": "it [stands]",
    }  # fmt: skip
    assert told["injected"] == {"fault": "hang", "ranks": [1], "nodes": [1]}
    assert told["verdict_right"]
    assert told["decision"]["done"] == "the agents were asked to restart"
    assert told["timeline"] == {"t_fault": 0.5, "t_detected": 6.0, "t_isolated": 6.25}
    table = Table()
    add_rows(table, found, T_FAULT)
    out = io.StringIO()
    Console(file=out, width=160).print(table)
    for words in ("hang: rank 1 on node 1", "it [stands]", "restart in place", "t_detected 6.00 s"):
        assert words in out.getvalue()


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], None),
        (record(1, 106.0, verdict("non-communication hang", 0)), "non-communication hang"),
        (record(1, 106.0, verdict("communication hang", 1)), "communication hang"),
        (record(1, 106.0, verdict("non-communication hang", 0, 1)), "non-communication hang"),
        (record(1, 90.0, verdict("non-communication hang", 1)), None),
    ],
)
def test_what_is_missing_early_or_about_somebody_else_is_wrong(events: list[Event], said: str | None) -> None:
    found = judged(HANG, events, T_FAULT)
    assert not found.right
    assert (found.verdict or {}).get("class") == said


def test_what_all_suffer_alike_is_not_the_fault() -> None:
    """A busy machine makes all steps slow."""
    events = [*record(1, 101.0, verdict(NOBODY)), *record(2, 106.0, verdict("non-communication hang", 1))]
    assert judged(HANG, events, T_FAULT).right


def test_records_of_several_nodes_are_told_apart() -> None:
    """Each node counts its own, and a node that comes anew begins again; the first after the fault is the one."""
    said = verdict("node lost") | {"suspects": {"ranks": [0], "nodes": [0], "links": []}}
    of_node_0 = record(1, 90.0, verdict("crash", 2))
    after = [Event(e.t, teller(1, "node 1"), e.name, e.fields) for e in record(1, 102.0, said)]
    later = [Event(e.t, teller(1, "the new node 0"), e.name, e.fields) for e in record(1, 104.0, verdict("crash", 1))]
    found = judged(Injected("kill-node", (0,), (0,)), [*later, *after, *of_node_0], T_FAULT)
    assert found.right
    assert found.told_by == "incident 1 of node 1"
    told = records([*later, *after, *of_node_0])
    assert [summed(*item)["times"]["t_detected"] for item in told.items()] == [90.0, 102.0, 104.0]


def test_the_running_account_tells_what_is_judged_and_done() -> None:
    """And leaves out what the daemons tell as well."""
    lines = [describe_entry(event) for event in record(1, 106.0, verdict("crash", 1))]
    assert lines[0] == "verdict: crash, rank 1 on node 1: it [stands]"
    assert lines[1:] == [
        "decided: restart in place (the agents are asked)", "the agents were asked to restart", "the culprit has ended",
    ]  # fmt: skip
    assert describe_entry(entry(1, 1.0, "resumed")) is None


@pytest.mark.parametrize(
    ("named", "links", "right"),
    [
        ("communication slow", [[2, 1], [1, 2]], True),
        ("communication slow", [[1, 2]], True),
        ("communication slow", [[1, 2], [0, 1]], False),
        ("communication slow", [], False),
        ("communication hang", [[1, 2]], False),
    ],
)
def test_a_link_is_right_in_either_direction_and_alone(named: str, links: list[list[int]], right: bool) -> None:
    said = verdict(named) | {"suspects": {"ranks": [], "nodes": [1, 2], "links": links}}
    found = judged(Injected("slow-link", (), (), (1, 2)), record(1, 106.0, said), T_FAULT)
    assert found.right is right
    assert found.as_json(T_FAULT)["injected"] == {"fault": "slow-link", "ranks": [], "nodes": [], "link": [1, 2]}
    assert str(found.injected) == "slow-link: the link between nodes 1 and 2"
