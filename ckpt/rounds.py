"""What the daemons say of the launchers of a job: each node's agent, and the round of agents that train together.

An agent is torch elastic's word for the process that starts a node's trainers. It joins a round, starts its trainers, and
joins anew when the round is over; (node, name, join) names what it asked for, and a round names its members so. Whether an
agent waits or runs therefore needs no state of its own: it runs while the newest round has it as a member and is not over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Ended = Literal["", "done", "failed", "gone"]
ENDED: tuple[Ended, ...] = ("", "done", "failed", "gone")
End = Literal["", "done", "failed", "given up"]
ENDS: tuple[End, ...] = ("", "done", "failed", "given up")
WishedEnd = Literal["", "given up"]
WISHED_ENDS: tuple[WishedEnd, ...] = ("", "given up")
State = Literal["wait", "spare", "member", "over", "isolated", "closed"]
"""How an agent stands: waiting for a round to be formed, or for a seat in one that goes on without it; training; to join
anew; kept out; or the job has ended."""
STATES: tuple[State, ...] = ("wait", "spare", "member", "over", "isolated", "closed")

GIVEN_UP_EXIT = 93
"""An agent's exit code when the job was given up: a restart would only fail again. Others use the same number."""
ISOLATED_EXIT = 94
"""An agent's exit code when its node is kept out of the job."""

NAME_CHARS = 64
HOST_CHARS = 255
REASON_CHARS = 500
LAST_CALL_MAX_S = 3600.0


@dataclass(frozen=True, slots=True)
class Place:
    """A member's place in a round."""

    number: int
    key: str
    rank: int
    """The group rank: counts nodes, not trainers."""
    size: int


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent of a node, as its daemon knows it."""

    name: str
    """Names this process: a new one has a new name."""
    join: int
    """Counts the rounds that it has asked for."""
    host: str
    port: int
    """Where it serves the round's store if it becomes the first member; it listens there already."""
    minimum: int
    maximum: int
    """How many agents make a round: torchrun's --nnodes."""
    last_call_s: float = 0.0
    """Seconds that a first round waits for more than the minimum, after the last agent came."""
    since: int = 0
    """The first round that it may have to do with: what ended before it came is none of its business."""
    place: Place | None = None
    """Where it trains, or trained last: from this a collector that has lost its memory finds the round again."""
    reason: str = ""
    """Why it asks for another round, where it knows more than that the last one is over."""
    ended: Ended = ""


@dataclass(frozen=True, slots=True)
class Member:
    """One agent's request for a round, granted."""

    node: int
    name: str
    join: int


@dataclass(frozen=True, slots=True)
class Round:
    """The agents that train together, by group rank. Of two rounds the one with the greater `order` is the newer."""

    number: int
    key: str
    """Tells rounds of one number apart, which two collectors made on two sides of a cut."""
    size: int
    members: tuple[Member, ...]
    """All `size` of them; fewer only while a collector finds a round again that it had no part in."""
    host: str = ""
    port: int = 0
    over: str = ""
    """Why its agents have to join anew; '' while it goes on."""
    end: End = ""
    """How the job ended with it; '' while it goes on, or another round is to come."""

    @property
    def order(self) -> tuple[int, str]:
        return self.number, self.key

    @property
    def runs(self) -> bool:
        return not (self.over or self.end)


@dataclass(frozen=True, slots=True)
class Isolation:
    """Whether a node is kept out. Of two about one node the one with the higher `number` counts."""

    node: int
    number: int
    out: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Wish:
    """A node's word that one round has to end. It means no other round, however late or often it is heard."""

    number: int
    key: str
    reason: str
    end: WishedEnd = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an agent stands: what its daemon answers when it calls."""

    state: State
    reason: str = ""
    place: Place | None = None
    host: str = ""
    port: int = 0
    """The round's store."""
    end: End = ""


def newer(first: Round | None, second: Round | None) -> Round | None:
    """The newer of two rounds; of one round the word that is further: ended, over, more members known."""
    if first is None or second is None:
        return first or second
    if first.order != second.order:
        return max(first, second, key=lambda round_: round_.order)
    return max(first, second, key=lambda r: (bool(r.end), bool(r.over), len(r.members)))


def merged(*known: Iterable[Isolation]) -> tuple[Isolation, ...]:
    """What counts of all that is known about isolated nodes, by node. Where two disagree, a node is rather out."""
    newest: dict[int, Isolation] = {}
    for isolation in (item for items in known for item in items):
        before = newest.get(isolation.node)
        if before is None or (isolation.number, isolation.out, isolation.reason) > (
            before.number,
            before.out,
            before.reason,
        ):
            newest[isolation.node] = isolation
    return tuple(newest[node] for node in sorted(newest))


def isolated(known: Iterable[Isolation]) -> Mapping[int, str]:
    """The nodes that are kept out, and why."""
    return {item.node: item.reason for item in known if item.out}
