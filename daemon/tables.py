"""The tables that the command line prints for people, from the same values that `--json` prints."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text


def table_of(title: str, *columns: str) -> Table:
    """A table with so many columns, for `row_of`."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")  # a long path goes on in the next line, and loses no end
    return table


def row_of(table: Table, *cells: object, style: str = "") -> None:
    """Add a row of plain text: what comes from outside may hold brackets, which rich would take for markup."""
    table.add_row(*(Text(str(cell)) for cell in cells), style=style)


def _version(value: dict[str, int] | None) -> str:
    return f"{value['step']} (epoch {value['epoch']})" if value else "-"


def status(content: dict[str, Any]) -> RenderableType:
    table = table_of(
        f"job {content['job']}, seen from node {content['node']}",
        "node",
        "address",
        "state",
        "ranks",
        "captured",
        "images",
        "parities",
    )
    for row in content["nodes"]:
        ranks = ",".join(map(str, row["ranks"])) or "-"
        style = "red" if row["state"] in ("lost", "left") else ""
        captured = _version(row["captured"])
        cells = (row["node"], row["address"], row["state"], ranks, captured, row["images"], row["parities"])
        row_of(table, *cells, style=style)
    if not content["nodes"]:
        return Text(f"job {content['job']}: {content['reason']}")
    tolerated = content["losses_tolerated"]
    facts = _facts(
        ("newest restorable", _version(content["captured"])),
        ("sealed", _version(content["sealed"])),
        ("persisted", _version(content["persisted"])),
        *_on_its_way(content.get("work", {})),
        ("sealing lag", _lag(content["sealing"])),
        ("losses still tolerated", "-" if tolerated is None else str(tolerated)),
        (
            "memory of this node",
            f"{decimal(content['bytes']['payload'])} slots, {decimal(content['bytes']['parity'])} parity",
        ),
        ("snapshots skipped", str(content["skipped"])),
        ("waited for a slot", f"{content['waited']['count']} times, {content['waited']['seconds']:.1f} s in all"),
        *_launch(content.get("launch")),
        *_barred(content.get("barred", [])),
    )
    problem = [Text(content["reason"], style="red")] if content["reason"] else []
    seen = [Text(text, style="red" if bad else "dim") for bad, text in _watched(content.get("watch", {}))]
    seen += [Text(text, style="red") for text in _storage(content.get("storage", {}))]
    moved = [_transfers(content["transfers"])] if content.get("transfers") else []
    groups = content["groups"]
    lines = [Text(line, style="" if groups["rule_kept"] else "red") for line in groups["lines"]]
    return Group(table, facts, *lines, *moved, *seen, *problem)


def _watched(content: dict[str, Any]) -> list[tuple[bool, str]]:
    """What is wrong with the job now, and what can't be seen of it; each with whether it is a suspicion."""
    wrong = [
        (True, f"{item['class']}: {item['reason']} (`ckptd incidents {item['incident']}`){_advice(item)}")
        for item in content.get("suspicions", [])
    ]
    return wrong + [(False, f"not seen: {text}") for text in content.get("remarks", [])[:8]]


def _on_its_way(work: dict[str, Any]) -> list[tuple[str, str]]:
    """How far this node's part of a step has come to storage, while it is written."""
    persist = work.get("persist")
    return [("on its way to storage", f"{decimal(persist['done'])} of {decimal(persist['total'])}")] if persist else []


def _storage(content: dict[str, Any]) -> list[str]:
    """What is wrong with storage."""
    if content.get("stuck_s"):
        return [
            f"storage {content['where']} has taken nothing for {content['stuck_s']:.0f} s; check it and the way to it"
        ]
    return [f"not persisted: {content['problem']}"] if content.get("problem") else []


def _advice(item: dict[str, Any]) -> str:
    """What was decided about a suspicion, if that is more than to watch it."""
    decision = item.get("decision") or {}
    return f"; {decision['act']}: {decision['done']}" if decision.get("act") not in (None, "ignore", "warn") else ""


def _launch(launch: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The round of agents, where there are any."""
    if not launch or not (launch["round"] or launch["isolated"]):
        return []
    members = ", ".join(map(str, launch["members"]))
    why = f" ({launch['reason']})" if launch["reason"] else ""
    lines = [("launch round", f"{launch['round']} {launch['state']}: nodes {members}{why}")]
    return lines + [(f"node {row['node']} is isolated", row["reason"]) for row in launch["isolated"]]


def _barred(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """From which steps no life begins, and why."""
    return [
        (
            f"step {row['step']} of epoch {row['epoch']} is barred"
            if row["alone"]
            else f"step {row['step']} on, to epoch {row['epoch']}, is barred",
            row["reason"],
        )
        for row in rows
    ]


def _lag(sealing: dict[str, Any]) -> str:
    """How long the last snapshot was unprotected, and what this node's share of the work took."""
    if sealing["lag_s"] is None:
        return "-"
    lag = f"{sealing['lag_s']:.3f} s"
    if "waited_s" not in sealing:
        return lag
    spared = f"{decimal(sealing['copied_bytes'])} copied and {decimal(sealing['updated_bytes'])} updated"
    parts = (f"waited {sealing['waited_s']:.3f} s for bytes", f"coded {sealing['coded_s']:.3f} s")
    return f"{lag} ({', '.join(parts)}; {decimal(sealing['read_bytes'])} read, of the parity {spared})"


def _transfers(rows: list[dict[str, Any]]) -> RenderableType:
    table = table_of("between this node and the others", "node", "read", "at", "delay", "sent", "at", "failed reads")
    for row in rows:
        read, sent = row["read"], row["sent"]
        rates = [f"{decimal(flow['recent_bytes_s'])}/s" if flow["count"] else "-" for flow in (read, sent)]
        delay = f"{read['first_s'] * 1e3:.1f} ms" if read["count"] else "-"
        cells = (row["node"], decimal(read["bytes"]), rates[0], delay, decimal(sent["bytes"]), rates[1], read["failed"])
        row_of(table, *cells)
    return table


def steps(content: dict[str, Any]) -> RenderableType:
    table = table_of(f"job {content['job']}: steps that can be restored", "step", "epoch", "where", "")
    for row in content["steps"]:
        note = row.get("path", "") if row["recoverable"] else row["reason"]
        note = f"barred: {row['barred']}" if row["barred"] and row["recoverable"] else note
        where = ", ".join(row["where"]) or "no"
        row_of(table, row["step"], row["epoch"], where, note, style="" if row["recoverable"] else "dim")
    return Group(table, Text(f"a restart would take step {_version(content['next_restore'])}: {content['reason']}"))


def checks(content: dict[str, Any]) -> RenderableType:
    where = f"node {content['node']}" if "node" in content else str(content["storage"])
    table = table_of(f"{where}: what was checked", "kind", "what", "step", "size", "result")
    for row in content["checked"]:
        size = decimal(row["bytes"]) if "bytes" in row else "-"
        result = "ok" if row["ok"] else row["reason"]
        row_of(table, row["kind"], row["what"], row.get("step", "-"), size, result, style="" if row["ok"] else "red")
    bad = sum(1 for row in content["checked"] if not row["ok"])
    if not content["checked"]:
        return Text(f"{where}: nothing to check, no slot, parity or file is here")
    lost = "they count as lost from now on" if "node" in content else "their steps can't be restored from there"
    return Group(table, Text("all is well" if not bad else f"{bad} damaged; {lost}"))


def diagnosis(content: dict[str, Any]) -> RenderableType:
    table = table_of(f"job {content['job']}, node {content['node']}: is it fit?", "check", "", "found", "what to do")
    for row in content["checks"]:
        style = {"ok": "", "warn": "yellow", "fail": "red"}[row["verdict"]]
        row_of(table, row["name"], row["verdict"], row["found"], row["advice"], style=style)
    return table


def rebuilt(content: dict[str, Any]) -> RenderableType:
    if content["reason"]:
        return Text(f"node {content['node']}: {content['reason']}", style="" if content["ok"] else "red")
    if content["ok"]:
        return Text(f"node {content['node']} holds its whole payload of step {_version(content['restorable'])}")
    missing = ", ".join(f"rank {row['rank']} of step {row['step']}" for row in content["missing"])
    return Text(f"node {content['node']} still lacks {missing}; `ckptd list` says what can be restored", style="red")


def plan(content: dict[str, Any]) -> RenderableType:
    title = f"{content['nodes']} nodes, parity {content['parity']}, groups of at most {content['group_size']}"
    table = table_of(title, "group", "nodes in order", "k+m", "domains", "memory of a node", "in and out per snapshot")
    for row in content["groups"]:
        if content["payload"] is None:
            costs = (f"{row['memory_ratio']:.2f} x payload", f"{row['network_ratio']} x payload each")
        else:
            costs = (decimal(row["memory_bytes"]), f"{decimal(row['network_bytes'])} each")
        where = ", ".join(f"{name}: {len(nodes)}" for name, nodes in row["domains"].items()) or "-"
        nodes = ", ".join(map(str, row["nodes"]))
        kind = f"{row['k']}+{row['m']}{' mirror' if row['k'] == row['m'] == 1 else ''}"
        row_of(table, row["group"], nodes, kind, where, *costs, style="" if row["m"] else "red")
    style = "" if content["ok"] else "red"
    slots = f"memory: {content['slots']} slots, and the parity twice while a step is sealed"
    tolerated = f"losses tolerated in every group: {content['losses_tolerated']}"
    return Group(table, Text(slots), Text(tolerated), *(Text(line, style=style) for line in content["verdict"]))


def exported(content: dict[str, Any]) -> RenderableType:
    size = f"{content['tensors']} tensors, {decimal(content['bytes'])}"
    files = ", ".join(content["files"][:4]) + (", ..." if len(content["files"]) > 4 else "")
    lines = [Text(f"step {content['step']} as {content['format']}: {files} in {content['directory']} ({size})")]
    if content["left_out"]:
        names = ", ".join(content["left_out"][:5]) + (", ..." if len(content["left_out"]) > 5 else "")
        lines.append(Text(f"left out {len(content['left_out'])} values that are no tensors ({names}); dcp keeps them"))
    return Group(*lines)


def _facts(*pairs: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in pairs:
        row_of(table, name, value)
    return table
