"""`ckptd plan`: which groups would be formed, what they tolerate and what they cost, without any daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from ckptd.ckpt.budget import Need
from ckptd.ckpt.config import check_protection
from ckptd.ckpt.domain import NONE, check_domain
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.placement import breaches, parity_of, place, verdict
from ckptd.ckpt.settings import read
from ckptd.daemon import tables
from ckptd.daemon.cli_options import AsJson, GroupSize, Parity, Slots
from ckptd.daemon.sizes import parse_size

NODES_MAX = 100_000


def plan(
    nodes: Annotated[
        int | None,
        typer.Option(help="How many nodes (default: those of --domains, or the configured).", show_default=False),
    ] = None,
    domains: Annotated[
        str | None,
        typer.Option(
            help="The failure domain of each node in order, as rack-a,rack-a,rack-b; empty where unknown.",
            show_default=False,
        ),
    ] = None,
    parity: Parity = None,
    group_size: GroupSize = None,
    slots: Slots = None,
    payload: Annotated[
        str | None, typer.Option(help="The bytes of a node's snapshot, as 20GB or 18.5GiB.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which protection groups would be formed, what they tolerate and cost. No daemon is asked.

    Ends with 1 when a domain holds more members of a group than it may lose, or a node is in no group with parity.
    """
    settings = read(parity=parity, group_size=group_size, slots=slots)
    configured = sum(1 for part in settings.nodes.split(",") if part.strip()) or 1
    content = outlook(
        standing(nodes, domains, configured),
        parity=settings.parity,
        size=settings.group_size,
        slots=settings.slots,
        payload=None if payload is None else parse_size(payload, "--payload"),
    )
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        Console().print(tables.plan(content))
    if not content["ok"]:
        raise typer.Exit(1)


def outlook(domains: Sequence[str], *, parity: int, size: int, slots: int, payload: int | None) -> dict[str, Any]:
    """What `ckptd plan` shows, as JSON: groups over nodes 0.. that stand in `domains`, and their cost for `payload` bytes.

    Costs are those of each node of a group. Without a payload they are multiples of it. Raises UsageError.
    """
    check_protection(len(domains), parity, size)
    if slots < 2:
        raise UsageError(f"slots {slots}: expected 2 or more")
    where = dict(enumerate(domains))
    groups = place(range(len(domains)), where, parity=parity, size=size)
    broken = breaches(groups, where, parity=parity)
    rows = [_row(index, group, where, parity, slots, payload) for index, group in enumerate(groups)]
    bare = bool(parity) and len(domains) > 1 and not all(row["m"] for row in rows)
    return {
        "nodes": len(domains),
        "parity": parity,
        "group_size": size,
        "slots": slots,
        "payload": payload,
        "groups": rows,
        "losses_tolerated": min(row["m"] for row in rows),
        "breaches": [asdict(breach) | {"reason": str(breach)} for breach in broken],
        "verdict": verdict(groups, where, parity=parity),
        "ok": not broken and not bare,
    }


def standing(nodes: int | None, domains: str | None, configured: int) -> list[str]:
    """The domain of each node; '' where none is named. The number of nodes is what is said first. Raises UsageError."""
    names = None if domains is None else split_names(domains)
    count = nodes if nodes is not None else len(names) if names is not None else configured
    if not 1 <= count <= NODES_MAX:
        raise UsageError(f"--nodes {count}: expected 1 to {NODES_MAX}")
    if names is None:
        return [""] * count
    if len(names) != count:
        raise UsageError(
            f"--domains: found {len(names)}, expected one for each of {count} nodes; leave unknown ones empty"
        )
    return ["" if name in ("", NONE) else check_domain(name, "--domains") for name in names]


def split_names(text: str) -> list[str]:
    """The names between commas. A comma in brackets belongs to the name, as Slurm writes leaf[1,4-6]."""
    names: list[str] = []
    inside = False
    for part in text.split(","):
        if inside:
            names[-1] += f",{part}"
        else:
            names.append(part)
        if "[" in part or "]" in part:
            inside = part.rfind("[") > part.rfind("]")
    return [name.strip() for name in names]


def _row(
    index: int, group: Sequence[int], domains: Mapping[int, str], parity: int, slots: int, payload: int | None
) -> dict[str, Any]:
    m = parity_of(len(group), parity)
    k = len(group) - m
    there: dict[str, list[int]] = {}
    for node in sorted(group):
        if domains[node]:
            there.setdefault(domains[node], []).append(node)
    row = {"group": index, "nodes": list(group), "k": k, "m": m, "domains": there}
    # While a step is sealed, the parity of the sealed one before it is still kept.
    row |= {"parity_ratio": m / k, "memory_ratio": slots + 2 * m / k, "network_ratio": m}
    if payload is not None:
        need = Need(slots=slots, payload=payload, k=k, m=m)
        row |= {
            "parity_bytes": m * need.segment,
            "memory_bytes": need.total,
            "network_bytes": m * k * need.segment,
        }
    return row
