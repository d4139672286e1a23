"""From the recorded events of two runs to the demo's report: what was lost, where the state came from, how long it took,
and whether the run with the fault ended with the same bits as the one without. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ckptd.daemon.demo.judged import Injected, Judged, add_rows, describe_entry, judged
from ckptd.daemon.demo.watch import Event

PER_STEP = {"step", "captured", "sealed", "protected"}
"""Left out of the report's events: there is one for each step and rank, or node."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The run with the fault against the uninterrupted one."""

    losses: int
    """Losses that both have, one for each rank and step; a step that was trained twice counts twice."""
    different: tuple[str, ...]
    """What differs or is missing, in words."""
    digest: str
    """Of all parameters and optimizer tensors at the end; empty when the ranks or the runs do not agree."""

    @property
    def bit_exact(self) -> bool:
        return not self.different


@dataclass(frozen=True, slots=True)
class Seconds:
    """When something was first true, in seconds after the fault; None when it was never seen."""

    t_detected: float | None
    t_rebuilt: float | None
    """The last lost payload was decoded from parity: from here on the state only waits for its trainers."""
    t_state_ready: float | None
    t_first_step: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    steps: int
    reached_step: int
    restored_step: int
    restored_from: str
    reason: str
    t_fault: float
    t_start: float
    seconds: Seconds
    payload_bytes: tuple[int, ...]
    parity_bytes: tuple[int, ...]
    comparison: Comparison
    events: tuple[Event, ...]
    judged: Judged | None = None
    """What ckptd made of a fault that nobody else was to notice."""
    launched: str = ""
    """How the trainers were started again, in words."""

    @property
    def lost_steps(self) -> int:
        """Steps that were trained again."""
        return self.reached_step - self.restored_step

    def as_json(self) -> dict[str, Any]:
        """The report for programs. `bytes` holds a number for each node; events that come at every step are left out."""
        return {
            "bit_exact": self.comparison.bit_exact,
            "steps": self.steps,
            "reached_step": self.reached_step,
            "restored_step": self.restored_step,
            "restored_from": self.restored_from,
            "reason": self.reason,
            "launched": self.launched,
            "lost_steps": self.lost_steps,
            "t_start": self.t_start,
            "t_fault": self.t_fault,
            "seconds": {name: getattr(self.seconds, name) for name in Seconds.__slots__},
            "bytes": {"payload": list(self.payload_bytes), "parity": list(self.parity_bytes)},
            "losses_compared": self.comparison.losses,
            "different": list(self.comparison.different),
            "digest": self.comparison.digest,
            **(self.judged.as_json(self.t_fault) if self.judged else {}),
            "events": [event.as_json() for event in self.events if event.name not in PER_STEP],
        }


def of_trainers(events: Iterable[Event], name: str) -> list[Event]:
    return [event for event in events if event.told_by == "trainer" and event.name == name]


def losses_of(events: Iterable[Event]) -> dict[tuple[int, int], list[str]]:
    """By rank and step, every loss that was logged for it, in order."""
    losses: dict[tuple[int, int], list[str]] = {}
    for event in of_trainers(events, "step"):
        losses.setdefault((event.fields["rank"], event.fields["step"]), []).append(event.fields["loss"])
    return losses


def compare(reference: Sequence[Event], faulty: Sequence[Event], *, ranks: int, steps: int) -> Comparison:
    """Hold every loss of every rank and step, and the final digests of every rank, against the uninterrupted run."""
    expected, got = losses_of(reference), losses_of(faulty)
    different, compared = [], 0
    for step in range(1, steps + 1):
        for rank in range(ranks):
            want, have = set(expected.get((rank, step), ())), got.get((rank, step), [])
            if len(want) != 1 or not have:
                different.append(f"rank {rank} has no loss of step {step} in both runs")
            elif set(have) != want:
                different.append(f"rank {rank}'s loss of step {step} is {', '.join(have)}, expected {want.pop()}")
            compared += len(have) if want else 0
    digests = {}
    for run, events in (("uninterrupted", reference), ("recovered", faulty)):
        done = {event.fields["rank"]: event.fields["digest"] for event in of_trainers(events, "done")}
        different += [f"rank {rank} of the {run} run did not finish" for rank in range(ranks) if rank not in done]
        digests[run] = set(done.values())
    same = digests["uninterrupted"] == digests["recovered"] and len(digests["recovered"]) == 1
    if not same:
        different.append(
            "the final parameters: "
            + " and ".join(f"{', '.join(sorted(found)) or 'none'} in the {run} run" for run, found in digests.items())
        )
    return Comparison(compared, tuple(different), digests["recovered"].pop() if same else "")


def lives_of(events: Iterable[Event], ranks: int) -> tuple[int, int, float | None]:
    """The newest step of the earlier lives, the step that the last life began from, and when it had finished a step.

    A life of a rank begins with its `restored`; the last one counts, should the launcher have needed several attempts.
    """
    reached, restored = 0, 0
    first: dict[int, float | None] = dict.fromkeys(range(ranks))
    current: dict[int, int] = {}
    for event in events:
        rank = event.fields.get("rank", -1)
        if event.told_by != "trainer" or rank not in first:
            continue
        if event.name == "restored":
            reached = max(reached, current.pop(rank, 0))
            first[rank], restored = None, event.fields["step"]
        elif event.name == "step":
            current[rank] = event.fields["step"]
            if first[rank] is None:
                first[rank] = event.t
    times = [t for t in first.values() if t is not None]
    return reached, restored, max(times) if len(times) == ranks else None


def build_report(
    reference: Sequence[Event],
    faulty: Sequence[Event],
    statuses: Sequence[Mapping[str, Any]],
    *,
    nodes: int,
    steps: int,
    t_start: float,
    t_fault: float,
    injected: Injected | None = None,
    launched: str = "",
) -> Report:
    """Put the report together; `statuses` is what each node said about itself at the end, in their order. `injected`: the
    truth about a fault that is to be judged; `launched`: how the trainers were started again, in words."""
    ranks = nodes  # each has one
    events = sorted(faulty, key=lambda event: event.t)
    reached, restored, first_step = lives_of(events, ranks)
    after = [event for event in events if event.t >= t_fault]
    found = judged(injected, events, t_fault) if injected else None
    if not of_trainers(after, "restored"):  # nobody had to begin anew
        reached, restored, first_step = 0, 0, None
    if found is None or found.incident is None:
        detected = [event.t for event in after if event.name in ("node_lost", "rank_lost")]
    else:
        detected = [event.t for event in after if event.name == "opened" and event.told_by == found.told_by]
    rebuilt = [event.t for event in after if event.name == "rebuilt" and event.t <= (first_step or event.t)]
    gathered = [event.t for event in after if event.name == "gathered" and event.t <= (first_step or event.t)]
    decided = [event.fields for event in after if event.name == "decided" and event.told_by == "daemon"]

    def since_fault(t: float | None) -> float | None:
        return None if t is None else round(t - t_fault, 3)

    return Report(
        steps=steps,
        reached_step=reached,
        restored_step=restored,
        restored_from=str(decided[-1].get("source", "none")) if decided else "none",
        reason=str(decided[-1].get("reason", "")) if decided else "the daemons decided nothing",
        t_start=t_start,
        t_fault=t_fault,
        seconds=Seconds(
            since_fault(min(detected, default=None)),
            since_fault(max(rebuilt, default=None)),
            since_fault(max(gathered, default=None)),
            since_fault(first_step),
        ),
        payload_bytes=tuple(int(status["bytes"]["payload"]) for status in statuses),
        parity_bytes=tuple(int(status["bytes"]["parity"]) for status in statuses),
        comparison=compare(reference, faulty, ranks=ranks, steps=steps),
        events=tuple(events),
        judged=found,
        launched=launched,
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def after_fault(seconds: float | None) -> str:
    return "not seen" if seconds is None else f"{seconds:.2f} s after the fault"


def table_of(report: Report) -> Table:
    """The report for people."""
    table = Table(show_header=False, title="what was lost, and what was not", title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if report.judged is not None:
        add_rows(table, report.judged, report.t_fault)
    again = f"trained to step {report.reached_step}, went on from step {report.restored_step} of {report.steps}"
    table.add_row("steps lost", f"{report.lost_steps} ({again})")
    table.add_row("state came from", escape(f"{report.restored_from} ({report.reason})"))
    table.add_row("t_fault", f"{report.t_fault - report.t_start:.2f} s after the start")
    table.add_row("t_detected", after_fault(report.seconds.t_detected))
    if report.seconds.t_rebuilt is not None:
        table.add_row("t_rebuilt", after_fault(report.seconds.t_rebuilt))
    table.add_row("t_state_ready", after_fault(report.seconds.t_state_ready))
    by = f" ({report.launched})" if report.launched else ""
    table.add_row("t_first_step", after_fault(report.seconds.t_first_step) + by, end_section=True)
    for node, (payload, parity) in enumerate(zip(report.payload_bytes, report.parity_bytes, strict=True)):
        table.add_row(f"memory of node {node}", f"data {megabytes(payload)}, parity {megabytes(parity)}")
    table.add_section()
    comparison = report.comparison
    if comparison.bit_exact:
        table.add_row("losses", f"[green]bit-identical[/]: all {comparison.losses} of both runs")
        table.add_row("final parameters", f"[green]bit-identical[/]: {comparison.digest}")
    else:
        table.add_row("losses and parameters", f"[red]different in {len(comparison.different)} places[/]")
        for difference in comparison.different[:5]:
            table.add_row("", difference)
    return table


def describe(event: Event) -> str | None:
    """The event in words for the running account; None when it says nothing new to a person."""
    told = event.fields
    node, step = told.get("node"), told.get("step")
    if event.told_by.startswith("incident "):
        return describe_entry(event)
    if event.told_by == "trainer":
        if event.name == "restored" and told["rank"] == 0:
            return f"training goes on from step {step}" if step else "training begins at step 0"
        return None
    match event.name:
        case "rank_lost":
            return f"node {node}: its trainer, rank {told.get('rank')} (pid {told.get('pid')}), is gone"
        case "node_lost":
            return f"node {told.get('lost')} is lost, says {'the launcher' if node is None else f'node {node}'}"
        case "node_joined":
            return f"node {told.get('joined')} has joined, says node {node}"
        case "rebuild":
            return f"node {node}: decodes the lost payload of step {step} from parity"
        case "rebuilt":
            taken = f"{megabytes(int(told.get('bytes', 0)))} in {float(told.get('seconds', 0)):.2f} s"
            return f"node {node}: rebuilt the lost payload of step {step}, {taken}"
        case "decided":
            what = "nothing" if step is None else f"step {step}, from {told.get('source')}"
            return f"decided: {what}: {told.get('reason')}"
        case "gathered":
            return f"node {node}: the state of step {step} is ready, {float(told.get('seconds', 0)):.2f} s"
        case "refused":
            return f"node {node}: refused: {told.get('reason')}"
        case _:
            return str(told["text"]) if "text" in told else None
