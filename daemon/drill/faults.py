"""The faults of a drill, how they are written on a command line or in a campaign, and what is promised for each. Pure."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.demo.links import How

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

Kind = Literal["rank", "daemon", "node", "memory", "disk", "link", "bits"]

KINDS: dict[Kind, str] = {
    "rank": "SIGKILL a trainer",
    "daemon": "SIGKILL a daemon; it is started again, as a service manager does",
    "node": "SIGKILL trainer and daemon, and delete the node's memory",
    "memory": "fill the tmpfs for a while",
    "disk": "let no fsync of a daemon return for a while",
    "link": "cut, slow down, corrupt or lose of what two daemons send each other for a while",
    "bits": "SIGKILL a trainer, and flip a bit in each of its slots",
}
LASTS: dict[Kind, float] = {"memory": 4.0, "disk": 4.0, "link": 5.0}
"""Seconds, of the faults that end by themselves. A link that is cut for 5 s makes a collector count the node as lost."""
SECONDS_MAX = 60.0
MEMORY: frozenset[str] = frozenset({"own", "peer", "parity"})
"""The rungs of the ladder that need no storage."""

_WRITTEN = re.compile(
    r"(?P<kind>[a-z]+)(=(?P<node>\d+)(-(?P<peer>\d+))?)?(:(?P<how>[a-z]+))?(:(?P<seconds>\d+(\.\d+)?))?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: on a node (rank I lives on node I), for `seconds`, where it ends by itself."""

    kind: Kind
    node: int
    seconds: float = 0.0
    peer: int = -1
    how: How = "cut"
    """The last two are a link's: its other end, and what becomes of what is sent."""

    def __str__(self) -> str:
        where = f"={self.node}" + (f"-{self.peer}:{self.how}" if self.kind == "link" else "")
        return f"{self.kind}{where}" + (f":{self.seconds:g}" if self.seconds else "")


@dataclass(frozen=True, slots=True)
class Promise:
    """What is promised for a fault."""

    text: str
    sources: frozenset[str] | None
    """Where the state of the next life comes from; None: the training goes on as if nothing had happened."""

    @property
    def brief(self) -> str:
        """For a column of a table."""
        if self.sources is None:
            return "the training goes on"
        return "sealed step, from memory" if self.sources == MEMORY else "persisted step, or fresh"


def parse(text: str, nodes: int, rng: Random) -> Fault:
    """Read `node=1`, `rank`, `link=0-1:slow:3`; what is not said is drawn. Raises UsageError."""
    found = _WRITTEN.fullmatch(text)
    if not found or found["kind"] not in KINDS:
        raise UsageError(f"fault {text!r}: expected one of {', '.join(KINDS)}, as in node=1, rank or link=0-1:slow:3")
    kind: Kind = found["kind"]
    if (found["peer"] or found["how"]) and kind != "link":
        raise UsageError(f"fault {text!r}: only a link has two ends and a way to fail (such as link=0-1:slow)")
    if found["seconds"] and kind not in LASTS:
        raise UsageError(f"fault {text!r}: only {', '.join(LASTS)} last for some seconds")
    return complete(
        kind,
        nodes,
        rng,
        node=None if found["node"] is None else int(found["node"]),
        peer=None if found["peer"] is None else int(found["peer"]),
        how=found["how"],
        seconds=None if found["seconds"] is None else float(found["seconds"]),
    )


def complete(
    kind: Kind,
    nodes: int,
    rng: Random,
    *,
    node: int | None = None,
    peer: int | None = None,
    how: str | None = None,
    seconds: float | None = None,
) -> Fault:
    """A fault with everything decided. Raises UsageError for nodes, ways or times that can't be."""
    # All is drawn whether it is needed or not: what is said of one fault must not change the others.
    drawn, apart, way = rng.randrange(nodes), rng.randrange(1, max(nodes, 2)), rng.choice(get_args(How))
    node = drawn if node is None else node
    if not 0 <= node < nodes:
        raise UsageError(f"fault {kind}={node}: expected a node from 0 to {nodes - 1}")
    seconds = LASTS.get(kind, 0.0) if seconds is None else seconds
    if not 0.0 <= seconds <= SECONDS_MAX:
        raise UsageError(f"fault {kind}: {seconds} s, expected 0 to {SECONDS_MAX:.0f}")
    if kind != "link":
        return Fault(kind, node, seconds)
    peer, how = (node + apart) % nodes if peer is None else peer, way if how is None else how
    if not 0 <= peer < nodes or peer == node:
        raise UsageError(f"fault link={node}-{peer}: expected two different nodes from 0 to {nodes - 1}")
    if not isinstance(how, str) or how not in get_args(How):
        raise UsageError(f"fault link:{how}: expected {', '.join(get_args(How))}")
    return Fault(kind, node, seconds, peer, how)  # type: ignore[arg-type]


def draw(rng: Random, nodes: int, count: int) -> tuple[Fault, ...]:
    """Faults at random."""
    kinds = [kind for kind in KINDS if kind != "link" or nodes > 1]
    return tuple(complete(rng.choice(kinds), nodes, rng) for _ in range(count))


def promise(fault: Fault, nodes: int, parity: int) -> Promise:
    """What ckptd promises for a fault that comes alone. docs/faults.md says it at length."""
    back = "the newest sealed step or a newer one"
    match fault.kind:
        case "rank":
            return Promise(f"{back}, from memory", MEMORY)
        case "node" | "bits" if nodes > 1 and parity:
            return Promise(f"{back}, from parity", MEMORY)
        case "node" | "bits":
            return Promise("without parity: a persisted step, or a fresh start", frozenset({"storage", "none"}))
        case "daemon":
            return Promise("the training goes on, and nothing that was sealed is lost", None)
        case "memory":
            return Promise("the training goes on; snapshots without room are skipped; sealing goes on afterwards", None)
        case "disk":
            return Promise("training and sealing go on; steps are persisted afterwards", None)
        case "link":
            return Promise("the training goes on; no wrong byte is taken; sealing goes on afterwards", None)


@dataclass(frozen=True, slots=True)
class Campaign:
    """A list of faults for one throw-away job."""

    nodes: int = 3
    parity: int = 1
    seed: int = 1
    faults: tuple[Fault, ...] = ()


def campaign_from(text: str) -> Campaign:
    """Read a campaign, written in TOML (docs/operations.md). Raises UsageError for anything that it can't be."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"campaign: {error}") from error
    _known("campaign", content, {"nodes", "parity", "seed", "fault"})
    nodes, parity, seed = (_number(content, name, getattr(Campaign(), name)) for name in ("nodes", "parity", "seed"))
    check_shape(nodes, parity)
    listed = content.get("fault", [])
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise UsageError('campaign: expected one or more [[fault]] with a kind, such as kind = "node"')
    rng, faults = Random(seed), []
    for item in listed:
        _known("campaign: [[fault]]", item, {"kind", "node", "peer", "how", "seconds", "count"})
        kind = item.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise UsageError(f"campaign: kind = {kind!r}, expected one of {', '.join(KINDS)}")
        seconds = item.get("seconds")
        if seconds is not None and (
            kind not in LASTS or isinstance(seconds, bool) or not isinstance(seconds, int | float)
        ):
            raise UsageError(
                f"campaign: {kind} with seconds = {seconds!r}; only {', '.join(LASTS)} have a number of them"
            )
        if kind != "link" and ("peer" in item or "how" in item):
            raise UsageError(f"campaign: {kind} with peer or how; only a link has them")
        where: dict[str, Any] = {name: _number(item, name, None) for name in ("node", "peer")}
        count = _number(item, "count", 1)
        faults += [complete(kind, nodes, rng, **where, how=item.get("how"), seconds=seconds) for _ in range(count)]
    return Campaign(nodes, parity, seed, tuple(faults))


def check_shape(nodes: int, parity: int) -> None:
    """Raise UsageError when a job can't have this shape."""
    if not 1 <= nodes <= 8:
        raise UsageError(f"nodes {nodes}: expected 1 to 8")
    if not 0 <= parity < nodes:
        raise UsageError(f"parity {parity}: expected 0 to {nodes - 1}, fewer than the nodes")


def _known(what: str, content: dict[str, Any], names: set[str]) -> None:
    unknown = sorted(set(content) - names)
    if unknown:
        raise UsageError(f"{what}: {unknown[0]!r} is not known; expected {', '.join(sorted(names))}")


def _number(content: dict[str, Any], name: str, default: Any) -> Any:
    value = content.get(name, default)
    if value is not default and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31):
        raise UsageError(f"campaign: {name} = {value!r}, expected a number")
    return value
