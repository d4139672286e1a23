"""`ckptd incidents [ID]`: what was wrong, who was to blame and why, and the times, for people and as JSON."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from ckptd.ckpt.client import Client
from ckptd.ckpt.settings import read
from ckptd.daemon.cli_options import AsJson, Job, RunDir
from ckptd.daemon.tables import row_of, table_of

_SHOWN = {
    "opened": "detected",
    "verdict": "the verdict changed",
    "stack": "stacks of rank {rank}",
    "decided": "decided: {decision[act]}; {decision[done]}",
    "acted": "{done}",
    "isolated": "the culprit has ended",
    "resumed": "state ready: step {chosen[step]} in epoch {epoch}, from {chosen[tier]}",
    "first step": "first step: {step}",
    "closed": "closed: {reason}",
}


def incidents(
    number: Annotated[
        int | None, typer.Argument(metavar="[ID]", help="One incident, with its timeline.", min=1)
    ] = None,
    run_dir: RunDir = None,
    job: Job = None,
    as_json: AsJson = False,
) -> None:
    """What went wrong in the job, as the collector's daemon has recorded it: who was to blame and why, and the times."""
    settings = read(run_dir=run_dir, job=job)
    content = Client(settings.where(), settings.job).document("Incidents", 30.0, id=number or 0)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        Console().print(timeline(content) if number else listing(content))


def listing(content: dict[str, Any]) -> RenderableType:
    """All incidents, newest first."""
    table = table_of(
        f"incidents recorded at node {content['node']}", "id", "when", "class", "suspects", "lost steps", "state"
    )
    for item in content["incidents"]:
        verdict, times = item["verdict"] or {}, item["times"]
        lost = "-" if item["lost_steps"] is None else item["lost_steps"]
        style = "red" if item["open"] else ""
        cells = (item["id"], _clock(times.get("t_detected")), verdict.get("class", "-"), suspects(verdict), lost)
        row_of(table, *cells, "open" if item["open"] else "closed", style=style)
    lines = [] if content["incidents"] else [Text("nothing has gone wrong that was seen here")]
    return Group(table, *lines, *_elsewhere(content))


def timeline(content: dict[str, Any]) -> RenderableType:
    """One incident: the verdict, and what happened when, in seconds from the fault."""
    item = content["incidents"][0]
    verdict, times = item["verdict"] or {}, item["times"]
    lines = [
        Text(f"incident {item['id']}: {verdict.get('class', '-')}, {suspects(verdict)}", style="bold"),
        Text(f"{verdict.get('reason', '')} ({verdict.get('confidence', '-')})"),
    ]
    if decision := item.get("decision"):
        said = f"{decision.get('act', '-')}: {decision.get('reason', '')} ({decision.get('done', '-')})"
        lines.append(Text(f"decision: {said}"))
    start = times.get("t_fault", times.get("t_detected", 0.0))
    table = table_of("", "at", "after", "what")
    if "t_fault" in times:
        row_of(table, _clock(start), "0.0 s", "fault, as far as is known")
    for entry in content["entries"]:
        at = entry.get("t")
        what = _said(entry)
        if isinstance(at, int | float) and what:
            row_of(table, _clock(at), f"{at - start:.1f} s", what)
    if item["lost_steps"] is not None:
        lines.append(Text(f"lost steps: {item['lost_steps']}"))
    stacks = [
        Text(f"rank {entry['rank']}:\n{str(entry['text']).rstrip()}", style="dim")
        for entry in content["entries"]
        if entry.get("event") == "stack" and "rank" in entry and "text" in entry
    ]
    return Group(*lines, table, *stacks)


def suspects(verdict: dict[str, Any]) -> str:
    """Who is suspected, in words."""
    named = verdict.get("suspects", {})
    ranks, nodes, links = (named.get(name) or [] for name in ("ranks", "nodes", "links"))
    if links:
        return ", ".join(f"link {sender} to {receiver}" for receiver, sender in links[:4])
    if ranks:
        shown = ",".join(map(str, ranks[:8])) + (",..." if len(ranks) > 8 else "")
        return f"rank {shown} on node {','.join(map(str, nodes[:8]))}"
    return f"node {','.join(map(str, nodes[:8]))}" if nodes else "nobody"


def _said(entry: dict[str, Any]) -> str:
    event = str(entry.get("event"))
    if event not in _SHOWN:  # an entry of another version
        return event
    try:
        return _SHOWN[event].format(**{str(name): value for name, value in entry.items()})
    except (KeyError, IndexError, TypeError):  # one of its fields is missing
        return event


def _elsewhere(content: dict[str, Any]) -> list[Text]:
    if content["collector"] in (None, content["node"]):
        return []
    return [Text(f"node {content['collector']} is the collector now: what is found from now on is recorded there")]


def _clock(at: float | None) -> str:
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
