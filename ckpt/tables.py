"""Tables as JSON, for the records and manifests; every number and name is checked on the way in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ckptd.ckpt.domain import DOMAIN
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version
from ckptd.ckpt.strict import short
from ckptd.erasure.layout import MEMBERS_MAX

DIGEST = re.compile(r"[0-9a-f]{32}")
RANKS_MAX = 1 << 20
PID_MAX = 1 << 31
SIZE_MAX = 1 << 46
STEP_MAX = 1 << 53
"""Steps and epochs fit the integers of every JSON reader."""


def table_to_json(table: Table) -> dict[str, Any]:
    return {
        "epoch": table.version.epoch,
        "step": table.version.step,
        "world": table.world,
        "payloads": [
            {"node": payload.node, "images": [[image.rank, image.size, image.digest] for image in payload.images]}
            for payload in table.payloads
        ],
        "map": {
            "number": table.map.number,
            "parity": table.map.parity,
            "groups": table.map.groups,
            "domains": table.map.domains,
        },
    }


def table_from_json(content: Any) -> Table:
    """Raises CorruptionError naming what was found and what was expected."""
    if not isinstance(content, Mapping) or not isinstance(content.get("payloads"), Sequence):
        raise CorruptionError("table: expected an object with payloads")
    payloads = []
    for item in content["payloads"]:
        if not isinstance(item, Mapping) or not isinstance(item.get("images"), Sequence):
            raise CorruptionError("table: expected payloads with a node and images")
        images = tuple(check_image(*_three(entry)) for entry in item["images"])
        payloads.append(Payload(number("node", item.get("node"), RANKS_MAX), images))
    world = number("world", content.get("world"), RANKS_MAX)
    return check_table(Table(version_from_json(content), world, tuple(payloads), _map_from_json(content.get("map"))))


def _map_from_json(content: Any) -> GroupMap:
    if not isinstance(content, Mapping) or not all(_is_list(content.get(name)) for name in ("groups", "domains")):
        raise CorruptionError("map: expected an object with groups and domains")
    groups = tuple(tuple(group) if _is_list(group) else () for group in content["groups"])
    domains = tuple(tuple(item) if _is_list(item) else () for item in content["domains"])
    if not all(len(item) == 2 for item in domains):
        raise CorruptionError("map: expected domains as [node, name]")
    parity = number("parity", content.get("parity"), RANKS_MAX)
    return check_map(GroupMap(number("map", content.get("number"), STEP_MAX), parity, groups, domains))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def version_from_json(content: Any) -> Version:
    """Raises CorruptionError."""
    if not isinstance(content, Mapping):
        raise CorruptionError(f"version: found {short(content)}, expected an object with epoch and step")
    return Version(number("epoch", content.get("epoch"), STEP_MAX), number("step", content.get("step"), STEP_MAX))


def number(name: str, value: Any, limit: int) -> int:
    """An integer from 0 to `limit` - 1. Raises CorruptionError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise CorruptionError(f"{name}: found {short(value)}, expected an integer from 0 to {limit - 1}")
    return value


def check_image(rank: Any, size: Any, digest: Any) -> Image:
    """An image from outside. Raises CorruptionError."""
    return Image(number("rank", rank, RANKS_MAX), number("size", size, SIZE_MAX), check_digest(digest))


def check_digest(digest: Any) -> str:
    """A digest, or a table's name, from outside. Raises CorruptionError."""
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise CorruptionError(f"digest: found {short(digest)}, expected 32 hexadecimal digits")
    return digest


def check_map(map_: GroupMap) -> GroupMap:
    """Return the map, or raise CorruptionError when a node stands twice or is out of range, or a group is too large."""
    nodes = [number("node", node, RANKS_MAX) for group in map_.groups for node in group]
    if len(set(nodes)) != len(nodes):
        raise CorruptionError("map: a node stands twice")
    if any(not 0 < len(group) <= MEMBERS_MAX for group in map_.groups):
        raise CorruptionError(f"map: a group of {max(map(len, map_.groups))} nodes, expected 1 to {MEMBERS_MAX}")
    for node, name in map_.domains:
        number("node", node, RANKS_MAX)
        if not isinstance(name, str) or not DOMAIN.fullmatch(name):
            raise CorruptionError(f"map: found the domain {short(name)}")
    return map_


def nodes_in(table: Table) -> set[int]:
    """Every node that a table names."""
    return {payload.node for payload in table.payloads} | table.map.nodes


def check_table(table: Table) -> Table:
    """Return the table, or raise CorruptionError when a node or a rank stands twice or is out of range."""
    nodes = [payload.node for payload in table.payloads]
    ranks = [image.rank for payload in table.payloads for image in payload.images]
    if len(set(nodes)) != len(nodes) or len(set(ranks)) != len(ranks):
        raise CorruptionError(f"table of {table.version}: a node or a rank stands twice")
    if any(rank >= table.world for rank in ranks):
        raise CorruptionError(f"table of {table.version}: rank {max(ranks)} in a world of {table.world}")
    return table


def _three(entry: Any) -> tuple[Any, Any, Any]:
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 3:
        raise CorruptionError("table: expected images as [rank, size, digest]")
    return entry[0], entry[1], entry[2]
