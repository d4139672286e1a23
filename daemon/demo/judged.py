"""What ckptd has made of the demo's fault, beside the truth: from the incident records of the daemons. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ckptd.daemon.demo.watch import Event
from ckptd.daemon.incidents_command import suspects
from ckptd.daemon.observe.incidents import TIMES, summary

CLASSES = {
    "kill-rank": "crash",
    "kill-node": "node lost",
    "hang": "non-communication hang",
    "gil": "non-communication hang",
    "loader": "non-communication hang",
    "stop": "non-communication hang",
    "slow-rank": "non-communication slow",
    "slow-link": "communication slow",
    "lossy-link": "communication slow",
    "cut-link": "communication hang",
}
"""What each fault should be called."""
NOBODY = "nobody's fault"
"""What all ranks suffer alike on a busy machine is not the fault."""


@dataclass(frozen=True, slots=True)
class Injected:
    """The truth."""

    fault: str
    ranks: tuple[int, ...]
    nodes: tuple[int, ...]
    link: tuple[int, ...] = ()
    """The two nodes whose link it befalls, or none."""

    def as_json(self) -> dict[str, Any]:
        told = {"fault": self.fault, "ranks": list(self.ranks), "nodes": list(self.nodes)}
        return told | ({"link": list(self.link)} if self.link else {})

    def __str__(self) -> str:
        if self.link:
            return f"{self.fault}: the link between nodes {' and '.join(map(str, self.link))}"
        return f"{self.fault}: rank {', '.join(map(str, self.ranks))} on node {', '.join(map(str, self.nodes))}"


@dataclass(frozen=True, slots=True)
class Judged:
    """The truth, and the incident that was opened after it was caused; without one there was no verdict."""

    injected: Injected
    incident: Mapping[str, Any] | None
    told_by: str = ""
    """Who tells the incident's entries among the events; '' without one."""

    @property
    def verdict(self) -> dict[str, Any] | None:
        """`class`, `suspects` and `reason`."""
        told = (self.incident or {}).get("verdict")
        return {name: told[name] for name in ("class", "suspects", "reason")} if told else None

    @property
    def right(self) -> bool:
        """Whether class and culprits are what was injected."""
        verdict = self.verdict
        if verdict is None or verdict["class"] != CLASSES[self.injected.fault]:
            return False
        suspects = verdict["suspects"]
        if self.injected.link:
            return {frozenset(link) for link in suspects["links"]} == {frozenset(self.injected.link)}
        return sorted(suspects["ranks"]) == sorted(self.injected.ranks)

    def since(self, t: float) -> dict[str, float]:
        """The times of the incident, in seconds after `t`."""
        times = (self.incident or {}).get("times", {})
        return {name: round(times[name] - t, 3) for name in TIMES if name in times}

    def as_json(self, t_fault: float) -> dict[str, Any]:
        decision = (self.incident or {}).get("decision")
        return {
            "injected": self.injected.as_json(),
            "verdict": self.verdict,
            "verdict_right": self.right,
            "decision": decision,
            "timeline": self.since(t_fault),
        }


def records(events: Iterable[Event]) -> dict[str, list[dict[str, Any]]]:
    """The entries of each incident record among the events, by who tells them (`teller`), the oldest record first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.told_by.startswith("incident "):
            found.setdefault(event.told_by, []).append({"t": event.t, "event": event.name, **event.fields})
    return dict(sorted(found.items(), key=lambda record: record[1][0]["t"]))


def teller(number: int, where: str) -> str:
    """Who tells the entries of an incident that was recorded at a node, in words."""
    return f"incident {number} of {where}"


def summed(told_by: str, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What one of the `records` comes to."""
    return summary(int(told_by.split()[1]), entries)


def judged(injected: Injected, events: Iterable[Event], t_fault: float) -> Judged:
    """Find the verdict in the entries of the incident records: the first that was opened after the fault."""
    for told_by, entries in records(events).items():
        if entries[0]["t"] < t_fault or entries[0].get("verdict", {}).get("class") == NOBODY:
            continue
        return Judged(injected, summed(told_by, entries), told_by)
    return Judged(injected, None)


def add_rows(table: Table, found: Judged, t_fault: float) -> None:
    """The rows of the report for people: the truth, the verdict, what was done, and when."""
    table.add_row("injected", str(found.injected))
    verdict, decision = found.verdict, (found.incident or {}).get("decision")
    if verdict is None:
        table.add_row("verdict", "[red]none[/]")
    else:
        colour = "green" if found.right else "red"
        said = escape(f"{suspects(verdict)}: {verdict['reason']}")
        table.add_row("verdict", f"[{colour}]{verdict['class']}[/]: {said}")
    if decision:
        table.add_row("decision", escape(f"{decision['act']} ({decision['done']})"))
    times = [f"{name} {seconds:.2f} s" for name, seconds in found.since(t_fault).items()]
    table.add_row("incident record", ", ".join(times) or "-", end_section=True)


def describe_entry(event: Event) -> str | None:
    """An entry of an incident record in words for the running account."""
    told = event.fields
    match event.name:
        case "opened" | "verdict":
            verdict = told["verdict"]
            return f"verdict: {verdict['class']}, {suspects(verdict)}: {verdict['reason']}"
        case "decided":
            return f"decided: {told['decision']['act']} ({told['decision']['done']})"
        case "acted":
            return str(told["done"])
        case "isolated":
            return "the culprit has ended"
        case _:
            return None
