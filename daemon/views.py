"""What the command line shows, as JSON values computed from the node. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptd.ckpt.barred import Bar, Barred
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import Version
from ckptd.ckpt.placement import breaches, explain
from ckptd.ckpt.recovery import Plan, losses_tolerated, plan, sources_for, tables_of
from ckptd.ckpt.rounds import isolated
from ckptd.ckpt.storage import Step
from ckptd.daemon.node import Node
from ckptd.daemon.rounds import state_of, waits_for


def named(version: Version | None) -> dict[str, int] | None:
    """A version as JSON."""
    return {"epoch": version.epoch, "step": version.step} if version else None


def level(node: Node, version: Version) -> str:
    """How far a version (or a newer one) has come: none, captured, sealed, persisted."""
    if node.persisted and node.persisted >= version:
        return "persisted"
    if node.sealed and node.sealed >= version:
        return "sealed"
    captured = any(held.version >= version for _, held in node.catalog.holding())
    return "captured" if captured else "none"


def status(node: Node, usage: dict[str, int]) -> dict[str, Any]:
    """`ckptd status`: nodes, ranks, newest captured, sealed and persisted step, losses still tolerated."""
    ledger, config = node.ledger, node.config
    base = {
        "job": config.job,
        "node": config.node,
        "address": config.nodes[config.node],
        "parity": config.parity if len(config.nodes) > 1 else 0,
        "segment_dir": str(config.segment_dir),
        "trainers": [{"rank": rank, "pid": trainer.pid} for rank, trainer in node.ranks],
        "bytes": usage,
        "skipped": node.slots.skipped,
        "waited": {"count": node.slots.waited, "seconds": node.slots.waited_s},
        "ready": node.scanned and ledger is not None,
    }
    if ledger is None:
        return base | {"nodes": [], "ok": False, "reason": "no collector has been heard yet"}
    known = tables_of(ledger)
    best = plan(ledger, ())
    rows = []
    for index, address in enumerate(config.nodes):
        report = ledger.report(index)
        newest = max((held.version for held in report.held), default=None) if report else None
        rows.append(
            {
                "node": index,
                "address": address,
                "state": _state(ledger, index),
                "ranks": [rank for rank, _ in report.ranks] if report else [],
                "captured": named(newest),
                "images": len(report.held) if report else 0,
                "parities": len(report.parities) if report else 0,
            }
        )
    tolerated = losses_tolerated(ledger, known[best.version]) if best.version in known else None
    return base | {
        "nodes": rows,
        "collector": ledger.collector,
        "epoch": ledger.epoch,
        "captured": named(best.version),
        "sealed": named(ledger.sealed),
        "shielded": named(ledger.shielded),
        "sealing": {"lag_s": node.sealing_lag_s, **node.duties.protected},
        "persisted": named(ledger.persisted),
        "losses_tolerated": tolerated,
        "groups": _groups(ledger),
        "persisting": named(ledger.persist),
        "barred": [_barred(bar) for bar in ledger.barred.bars],
        "launch": _launch(ledger),
        "ok": not ledger.lost,
        "reason": f"nodes lost: {', '.join(map(str, ledger.lost))}" if ledger.lost else "",
    }


def _launch(ledger: Ledger) -> dict[str, Any]:
    """The round of agents, and who is kept out of it; `round` is 0 before the first one."""
    round_ = ledger.round
    state = state_of(round_)
    return {
        "round": round_.number if round_ else 0,
        "state": state,
        "members": [member.node for member in round_.members] if round_ else [],
        "reason": round_.over if round_ else "",
        "waits_for": waits_for(ledger) if state == "gathering" else "",
        "isolated": [{"node": node, "reason": reason} for node, reason in isolated(ledger.isolations).items()],
    }


def _barred(bar: Bar) -> dict[str, Any]:
    return {"epoch": bar.version.epoch, "step": bar.version.step, "reason": bar.reason, "alone": bar.alone}


def has_agents(node: Node) -> bool:
    """Whether agents train, or are about to."""
    round_ = node.ledger.round if node.ledger else None
    return round_ is not None and not round_.end


def bar_after(node: Node, stored: Sequence[Step], step: int) -> Version:
    """What to bar so that `step` is restored next. Raises UsageError where it can't be."""
    ledger = node.ledger
    if ledger is None:
        raise UsageError("no collector was heard yet; try again in a moment")
    found = [item.stored for item in stored]
    lives = [
        node.epoch,
        ledger.epoch,
        *(version.epoch for version in [*tables_of(ledger), *(s.version for s in found)]),
    ]
    bar = Version(max(lives), step + 1)
    chosen = plan(ledger, found, Barred().adding(bar, "it is asked for")).version
    if chosen is None or chosen.step != step:
        raise UsageError(f"step {step} can't be restored; `ckptd list` shows which ones can")
    return bar


def _groups(ledger: Ledger) -> dict[str, Any]:
    """Which nodes protect each other, and whether that keeps the rule of the failure domains, in lines for people."""
    groups, domains, parity = ledger.map.groups, dict(ledger.map.domains), ledger.map.parity
    return {
        "lines": explain(groups, domains, parity=parity),
        "rule_kept": not breaches(groups, domains, parity=parity),
        "map": ledger.map.number,
    }


def _state(ledger: Ledger, node: int) -> str:
    """live, lost, left (lost for so long that the others go on without it), or unheard."""
    if node in ledger.lost:
        return "left" if node in ledger.left else "lost"
    return "live" if ledger.report(node) else "unheard"


def recoverable(node: Node, stored: Sequence[Step]) -> dict[str, Any]:
    """`ckptd list`: every step that could be restored, where it is, and what a restart would choose."""
    ledger = node.ledger
    rows: list[dict[str, Any]] = []
    on_storage = {step.manifest.version: step for step in stored}
    tables = tables_of(ledger) if ledger else {}
    for version in sorted({*tables, *on_storage}, reverse=True):
        where: list[str] = []
        reason = ""
        if ledger and version in tables:
            sources = sources_for(ledger, tables[version])
            if isinstance(sources, str):
                reason = sources
            else:
                where += sorted({"parity" if source.rung == "parity" else "memory" for source in sources})
        if version in on_storage:
            where.append("storage")
        row = {
            "epoch": version.epoch,
            "step": version.step,
            "where": where,
            "recoverable": bool(where),
            "barred": ledger.barred.why(version) if ledger else "",
            "reason": reason,
        }
        if version in on_storage:
            row["path"] = on_storage[version].where
        rows.append(row)
    chosen: Plan | None = plan(ledger, [step.stored for step in stored], ledger.barred) if ledger else None
    return {
        "job": node.config.job,
        "steps": rows,
        "next_restore": named(chosen.version) if chosen else None,
        "source": chosen.rung if chosen else "none",
        "reason": chosen.reason if chosen else "no collector has been heard yet",
        "ok": any(row["recoverable"] for row in rows),
    }


def rebuild_state(node: Node) -> dict[str, Any]:
    """`ckptd recover`: whether a rebuild runs, and what is still missing of this node's payload."""
    ledger = node.ledger
    best = plan(ledger, ()).version if ledger else None
    lacking = node.duties.lacking(ledger, node.catalog) if ledger else []
    missing = [{"rank": rank, **(named(version) or {})} for version, rank in lacking if version == best]
    reason = (
        "no collector has been heard yet"
        if ledger is None
        else ""
        if best
        else "no step is in memory, nothing to rebuild"
    )
    return {
        "node": node.config.node,
        "busy": node.duties.rebuilding,
        "restorable": named(best),
        "missing": missing,
        "ok": ledger is not None and not missing,
        "reason": reason,
    }
