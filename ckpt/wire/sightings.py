"""Sightings and the answers to them, as messages and back. Whatever comes in is bounded here, before anybody looks at it."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from ckptd.ckpt import sighting as limits
from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.recovery import RUNGS
from ckptd.ckpt.sighting import Answer, Decided, Group, Sighting, Stamps, is_time
from ckptd.ckpt.tables import RANKS_MAX, STEP_MAX, number
from ckptd.ckpt.wire import ckptd_pb2 as pb


def sighting_out(seen: Sighting) -> pb.Sighting:
    message = pb.Sighting(
        node=seen.node,
        boot=seen.boot,
        epoch=seen.epoch,
        world=seen.world,
        at=seen.at,
        digests=seen.digests,
        samples=seen.samples,
        groups=[
            pb.WatchedGroup(number=group.number, runs=[pb.Run(first=f, stride=s, count=c) for f, s, c in group.runs])
            for group in seen.groups
        ],
        stacks=[pb.Stack(rank=rank, text=text) for rank, text in seen.stacks],
        remarks=seen.remarks,
        sick=seen.sick,
    )
    if seen.stamps is not None:
        stamps = seen.stamps
        message.stamps.CopyFrom(pb.Stamps(answered=stamps.answered, heard=stamps.heard, sent=stamps.sent))
    if seen.decided is not None:
        made = seen.decided
        message.decided.CopyFrom(pb.Decided(epoch=made.epoch, step=made.step, source=made.source))
    return message


def sighting_in(message: pb.Sighting) -> Sighting:
    """Raises CorruptionError for more than a node may say, and for numbers that can't be."""
    _bounded("digests", len(message.digests), limits.DIGESTS_MAX)
    _bounded("samples", len(message.samples), limits.SAMPLES_MAX)
    _bounded("stacks", len(message.stacks), limits.STACKS_MAX)
    _bounded("remarks", len(message.remarks), limits.REMARKS_MAX)
    if not 1 <= len(message.boot) <= 64 or not is_time(message.at):
        raise CorruptionError(f"boot of {len(message.boot)} characters, clock {message.at}")
    for what, size, most in (
        *(("stack", len(stack.text), limits.STACK_CHARS) for stack in message.stacks),
        *(("remark", len(text), limits.REMARK_CHARS) for text in (*message.remarks, message.sick)),
    ):
        _bounded(what, size, most)
    world = number("world", message.world, RANKS_MAX)
    stamps = (message.stamps.answered, message.stamps.heard, message.stamps.sent)
    if not all(map(is_time, stamps)):
        raise CorruptionError(f"stamps {stamps}")
    return Sighting(
        node=number("node", message.node, RANKS_MAX),
        boot=message.boot,
        epoch=number("epoch", message.epoch, STEP_MAX),
        world=world,
        at=message.at,
        digests=message.digests,
        samples=message.samples,
        groups=_groups_in(message, world),
        stamps=Stamps(*stamps) if message.HasField("stamps") else None,
        decided=_decided_in(message.decided) if message.HasField("decided") else None,
        stacks=tuple((number("rank", stack.rank, RANKS_MAX), stack.text) for stack in message.stacks),
        remarks=tuple(message.remarks),
        sick=message.sick,
    )


def answer_out(answer: Answer) -> bytes:
    return pb.Answer(at=answer.at, probe=answer.probe, explain=answer.explain).SerializeToString()


def answer_in(data: bytes, nodes: int) -> Answer:
    """Raises PeerError for anything that no daemon of this job would answer."""
    try:
        message = pb.Answer.FromString(data)
        _bounded("nodes to probe", len(message.probe), limits.WANTED_MAX)
        _bounded("ranks to explain", len(message.explain), limits.WANTED_MAX)
        if not is_time(message.at) or any(node >= nodes for node in message.probe):
            raise CorruptionError(f"clock {message.at}, nodes {list(message.probe)[:8]} in a job of {nodes}")
        return Answer(message.at, tuple(message.probe), tuple(message.explain))
    except (DecodeError, CorruptionError) as error:
        raise PeerError(f"an answer that can't be read: {error}") from error


def _groups_in(message: pb.Sighting, world: int) -> tuple[Group, ...]:
    _bounded("groups", len(message.groups), limits.GROUPS_MAX)
    groups = []
    for group in message.groups:
        _bounded("runs", len(group.runs), limits.RUNS_MAX)
        for run in group.runs:
            if not 0 < run.count <= world or run.stride == 0 or run.first + run.stride * (run.count - 1) >= world:
                raise CorruptionError(
                    f"a group with ranks {run.first} + i * {run.stride}, {run.count} of them, of {world}"
                )
        groups.append(Group(group.number, tuple((run.first, run.stride, run.count) for run in group.runs)))
    return tuple(groups)


def _decided_in(message: pb.Decided) -> Decided:
    if message.source not in RUNGS:
        raise CorruptionError(f"source {message.source[:40]!r}: expected one of {', '.join(RUNGS)}")
    epoch, step = number("epoch", message.epoch, STEP_MAX), number("step", message.step, STEP_MAX)
    return Decided(epoch, step, message.source)


def _bounded(what: str, found: int, most: int) -> None:
    if found > most:
        raise CorruptionError(f"{what}: found {found}, expected {most} at most")
