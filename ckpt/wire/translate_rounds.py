"""Agents and rounds to wire messages and back. Whatever comes in is checked here; a bad value raises CorruptionError."""

from __future__ import annotations

import re
from typing import TypeVar

from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.rounds import (
    ENDED,
    ENDS,
    HOST_CHARS,
    LAST_CALL_MAX_S,
    NAME_CHARS,
    REASON_CHARS,
    STATES,
    WISHED_ENDS,
    Agent,
    Ended,
    Isolation,
    Member,
    Place,
    Round,
    Standing,
    Wish,
)
from ckptd.ckpt.tables import RANKS_MAX, STEP_MAX, number
from ckptd.ckpt.wire import ckptd_pb2 as pb

S = TypeVar("S", bound=str)
_NAME = re.compile(rf"[0-9A-Za-z._-]{{1,{NAME_CHARS}}}")
_HOST = re.compile(rf"[0-9A-Za-z._:%-]{{0,{HOST_CHARS}}}")
_PORTS = 1 << 16


def agent_out(agent: Agent | None) -> pb.Agent | None:
    if agent is None:
        return None
    return pb.Agent(
        name=agent.name,
        join=agent.join,
        host=agent.host,
        port=agent.port,
        minimum=agent.minimum,
        maximum=agent.maximum,
        last_call_s=agent.last_call_s,
        since=agent.since,
        place=place_out(agent.place),
        reason=agent.reason,
        ended=agent.ended,
    )


def agent_in(message: pb.Agent) -> Agent:
    minimum, maximum = number("minimum", message.minimum, RANKS_MAX), number("maximum", message.maximum, RANKS_MAX)
    if not 1 <= minimum <= maximum:
        raise CorruptionError(
            f"an agent for {minimum} to {maximum} nodes; expected 1 or more, and no more than the second"
        )
    if not 0.0 <= message.last_call_s <= LAST_CALL_MAX_S:  # also refuses NaN
        raise CorruptionError(f"last call of {message.last_call_s} s; expected 0 to {LAST_CALL_MAX_S:.0f}")
    return Agent(
        name=_name(message.name),
        join=number("join", message.join, STEP_MAX),
        host=_host(message.host),
        port=number("port", message.port, _PORTS),
        minimum=minimum,
        maximum=maximum,
        last_call_s=message.last_call_s,
        since=number("since", message.since, STEP_MAX),
        place=place_in(message.place) if message.HasField("place") else None,
        reason=reason_in(message.reason),
        ended=_one_of("ended", message.ended, ENDED),
    )


def place_out(place: Place | None) -> pb.Place | None:
    return pb.Place(number=place.number, key=place.key, rank=place.rank, size=place.size) if place else None


def place_in(message: pb.Place) -> Place:
    size, rank = number("size", message.size, RANKS_MAX), number("rank", message.rank, RANKS_MAX)
    if rank >= size:
        raise CorruptionError(f"group rank {rank} in a round of {size}")
    return Place(number("round", message.number, STEP_MAX), _name(message.key), rank, size)


def round_out(round_: Round | None) -> pb.Round | None:
    if round_ is None:
        return None
    return pb.Round(
        number=round_.number,
        key=round_.key,
        size=round_.size,
        members=[pb.Member(node=member.node, name=member.name, join=member.join) for member in round_.members],
        host=round_.host,
        port=round_.port,
        over=round_.over,
        end=round_.end,
    )


def round_in(message: pb.Round) -> Round:
    size = number("size", message.size, RANKS_MAX)
    members = tuple(
        Member(number("node", item.node, RANKS_MAX), _name(item.name), number("join", item.join, STEP_MAX))
        for item in message.members
    )
    if len(members) > size or len({member.node for member in members}) < len(members):
        raise CorruptionError(f"a round of {size} with {len(members)} members; expected each node once, and no more")
    return Round(
        number=number("round", message.number, STEP_MAX),
        key=_name(message.key),
        size=size,
        members=members,
        host=_host(message.host),
        port=number("port", message.port, _PORTS),
        over=reason_in(message.over),
        end=_one_of("end", message.end, ENDS),
    )


def isolation_out(isolation: Isolation) -> pb.Isolation:
    return pb.Isolation(node=isolation.node, number=isolation.number, out=isolation.out, reason=isolation.reason)


def isolation_in(message: pb.Isolation) -> Isolation:
    node = number("node", message.node, RANKS_MAX)
    return Isolation(node, number("isolation", message.number, STEP_MAX), message.out, reason_in(message.reason))


def wish_out(wish: Wish | None) -> pb.Wish | None:
    return pb.Wish(number=wish.number, key=wish.key, reason=wish.reason, end=wish.end) if wish else None


def wish_in(message: pb.Wish) -> Wish:
    end = _one_of("end", message.end, WISHED_ENDS)
    return Wish(number("round", message.number, STEP_MAX), _name(message.key), reason_in(message.reason), end)


def standing_out(standing: Standing) -> pb.TendReply:
    return pb.TendReply(
        state=standing.state,
        reason=standing.reason,
        place=place_out(standing.place),
        host=standing.host,
        port=standing.port,
        end=standing.end,
    )


def standing_in(message: pb.TendReply) -> Standing:
    return Standing(
        state=_one_of("state", message.state, STATES),
        reason=reason_in(message.reason),
        place=place_in(message.place) if message.HasField("place") else None,
        host=_host(message.host),
        port=number("port", message.port, _PORTS),
        end=_one_of("end", message.end, ENDS),
    )


def ended_in(text: str) -> Ended:
    return _one_of("ended", text, ENDED)


def reason_in(text: str) -> str:
    """A reason from outside: one line for people, cut where it is too long."""
    return "".join(char if char.isprintable() else " " for char in text[:REASON_CHARS])


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise CorruptionError(f"a name of {len(text)} characters; expected 1 to {NAME_CHARS} letters, digits, . _ -")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise CorruptionError(f"a host of {len(text)} characters; expected a name or address of at most {HOST_CHARS}")
    return text


def _one_of(what: str, text: str, known: tuple[S, ...]) -> S:
    for item in known:
        if item == text:
            return item
    raise CorruptionError(
        f"{what}: expected one of {', '.join(repr(str(item)) for item in known)}, found {text[:40]!r}"
    )
