"""What is seen of a job: a digest per rank, samples per pair of nodes, and the letter that carries a node's part of both.

A digest has a fixed size, whatever the rank does: `DIGEST` is its layout, little-endian and without holes, on the wire
and in memory alike, so that a thousand nodes' digests are read without a loop. `RankDigest` is the same for people and
tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptd.ckpt.errors import PeerError, UsageError

GROUPS_MAX = 8
"""Process groups that a digest has room for; of more, the ones that were entered last."""
OWN_KEPT = 32
"""Steps of which a digest tells the rank's own time: reports of different moments then overlap by the ten that are
compared."""
RANKS_MAX = 64
"""Ranks of one node."""
SAMPLES_MAX = 64
"""Samples in one report."""

Table = npt.NDArray[Any]
"""An array of `DIGEST` or `SAMPLE` records."""


class Phase(IntEnum):
    """What a rank is busy with, as the step counter's word in shared memory says."""

    TRAINING = 0
    START = 1
    COMPILE = 2
    EVALUATION = 3
    CHECKPOINT = 4


class Process(IntEnum):
    """What the operating system and the handlers inside the trainer say of its process."""

    ALIVE = 0
    HELD = 1
    """It answers, but its interpreter does not run: something holds the GIL."""
    STOPPED = 2
    """Stopped by a signal. (Uninterruptible sleep is ALIVE: writing a checkpoint may take long.)"""
    DEAF = 3
    """It runs, and its native handlers do not answer."""
    GONE = 4


class Kind(IntEnum):
    """What a sample measured. Only like is compared with like."""

    READ_NEAR = 0
    """Seconds per MiB of a range read inside a failure domain."""
    READ_FAR = 1
    """The same, between two of them."""
    PROBE_NEAR = 2
    """Seconds of a probe's round trip inside a failure domain."""
    PROBE_FAR = 3
    LOST = 4
    """Segments that were lost on the way to the receiver since the probe before, by the count of the sender's kernel; 0 of
    most probes."""


NOWHERE, UNKNOWN = -1, -2
"""For `waits`: the rank's main thread waits in no collective; nobody can say."""

GROUP = np.dtype([("group", "<u4"), ("entered", "<u4"), ("completed", "<u4"), ("op", "<u4")])
DIGEST = np.dtype(
    [
        ("rank", "<u4"),
        ("epoch", "<u4"),
        ("step", "<u4"),
        ("role", "<u4"),
        ("step_s", "<f4"),
        ("gone_s", "<f4"),
        ("exit", "<i2"),
        ("phase", "u1"),
        ("process", "u1"),
        ("waits", "<i4"),
        ("own_s", "<f4", (OWN_KEPT,)),
        ("groups", GROUP, (GROUPS_MAX,)),
    ]
)
SAMPLE = np.dtype([("receiver", "<u4"), ("sender", "<u4"), ("kind", "<u4"), ("cost", "<f4")])
DIGEST_BYTES = DIGEST.itemsize
NO_GROUP = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """Where a rank stands in one process group, as the status of torch's Flight Recorder tells it."""

    group: int
    """The number of the group in the job's `Layout`. The two ends of a pipeline's channel are a group of two."""
    entered: int = 0
    """Sequence number of the newest collective that the rank has begun: `last_started` where the backend tells it (a GPU's
    host may have enqueued more than the GPU has reached), else `last_enqueued`. 0 is none."""
    completed: int = 0
    """Of the newest one that has finished here; never beyond `entered`."""
    op: int = 0
    """32 bits of a hash over the newest collective's name and size: members that differ at one number are out of step."""


@dataclass(frozen=True, slots=True)
class RankDigest:
    """One rank, about once a second, in `DIGEST_BYTES` bytes."""

    rank: int
    epoch: int = 1
    """The training life: what an earlier one has left behind is not counted."""
    step: int = 0
    """Finished optimizer updates."""
    phase: Phase = Phase.TRAINING
    process: Process = Process.ALIVE
    exit: int = 0
    """Once gone: the exit code, or minus the signal."""
    gone_s: float = 0.0
    """How long before the report it went, in seconds."""
    waits: int = UNKNOWN
    """The group in which the main thread waits, NOWHERE or UNKNOWN. A collective that is under way while the thread computes
    is not waited for."""
    role: int = 0
    """32 bits of a hash over a step's sequence of collectives (op, size, number of members): ranks of one role do the same
    work, so their times can be compared."""
    step_s: float = math.nan
    """How long the newest finished step took, in seconds."""
    own_s: tuple[float, ...] = ()
    """Of the newest finished steps, newest first: the seconds that the rank did not wait for others in. NaN: not known."""
    groups: tuple[GroupProgress, ...] = ()


@dataclass(frozen=True, slots=True)
class PairSample:
    """What one read or probe between two nodes has shown. Whoever receives the bytes measures and reports; of what was LOST
    whoever sent it."""

    receiver: int
    sender: int
    kind: Kind
    cost: float
    """In the kind's unit; infinity when nothing came."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The four stamps of a letter and its answer, in seconds: sent and heard back by us, heard and answered by the node."""

    sent: float
    heard: float
    answered: float
    back: float


def empty_digests() -> Table:
    return np.zeros(0, DIGEST)


def empty_samples() -> Table:
    return np.zeros(0, SAMPLE)


@dataclass(frozen=True, slots=True, eq=False)
class NodeReport:
    """What a node's daemon sends to the collector, once a second, and at once when a process has gone."""

    node: int
    digests: Table = field(default_factory=empty_digests)
    samples: Table = field(default_factory=empty_samples)
    at: float | None = None
    """The node's own clock at the reading."""
    exchange: Exchange | None = None
    """From which the collector learns what that clock shows."""


def pack(digests: Sequence[RankDigest]) -> Table:
    """The digests as records. Raises UsageError for what has no room in one: too many groups."""
    table = np.zeros(len(digests), DIGEST)
    table["own_s"] = np.nan
    table["groups"]["group"] = NO_GROUP
    for row, digest in zip(table, digests, strict=True):
        if len(digest.groups) > GROUPS_MAX:
            raise UsageError(
                f"rank {digest.rank} is in {len(digest.groups)} groups; a digest has room for {GROUPS_MAX}: "
                "take those that were entered last"
            )
        for name in ("rank", "epoch", "step", "role", "step_s", "gone_s", "exit", "phase", "process", "waits"):
            row[name] = getattr(digest, name)
        own = digest.own_s[:OWN_KEPT]
        row["own_s"][: len(own)] = own
        for place, group in enumerate(digest.groups):
            row["groups"][place] = (group.group, group.entered, group.completed, group.op)
    return table


def pack_samples(samples: Sequence[PairSample]) -> Table:
    """The samples as records; of more than SAMPLES_MAX the newest, which stand last."""
    kept = samples[-SAMPLES_MAX:]
    return np.array([(s.receiver, s.sender, int(s.kind), s.cost) for s in kept], SAMPLE)


def read_digests(data: bytes) -> Table:
    """The digests of a report's bytes. Raises PeerError when they are not whole records or too many of them.

    What the records say is checked where the job is known (`ckptd.daemon.watch.fleet`).
    """
    return _read(data, DIGEST, RANKS_MAX, "digests")


def read_samples(data: bytes) -> Table:
    """The samples of a report's bytes; as `read_digests`."""
    return _read(data, SAMPLE, SAMPLES_MAX, "samples")


def _read(data: bytes, record: np.dtype[Any], most: int, what: str) -> Table:
    if len(data) % record.itemsize or len(data) > most * record.itemsize:
        raise PeerError(
            f"{len(data)} bytes of {what}; expected at most {most} records of {record.itemsize} bytes: "
            "does the node run this version of ckptd?"
        )
    return np.frombuffer(data, record)
