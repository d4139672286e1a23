"""A synthetic training job: pipeline stages, data-parallel replicas and tensor-parallel shards over nodes, with its costs.

Nothing here knows the judge's thresholds: the numbers are those of real jobs (steps of a third of a second to ten seconds, a
few per cent of jitter, ranks that differ a little for good).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.observations import NO_GROUP

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
SLOTS = ("world", "tp", "dp", "fw_in", "fw_out", "bw_in", "bw_out")
"""The groups of a rank, in the order of its digest. A pipeline's channel is a group of two: its sender and its receiver."""
BLOCKING = ("world", "tp", "fw_in", "bw_in")
"""Who enters one of these waits at once; sends go their own way, gradients are reduced while backward goes on."""


@dataclass(frozen=True, slots=True)
class Job:
    """Rank = (stage * dp + replica) * tp + shard; node = rank // per_node. Times in seconds."""

    pp: int
    dp: int
    tp: int
    per_node: int = 8
    micro: int = 2
    buckets: int = 3
    fwd_s: float = 0.2
    bwd_s: float = 0.4
    load_s: float = 0.02
    opt_s: float = 0.05
    tp_s: float = 0.004
    dp_s: float = 0.03
    p2p_s: float = 0.003
    jitter: float = 0.02
    """Of each piece of work, as a standard deviation of its logarithm."""
    spread: float = 0.01
    """Between ranks, for good."""
    last_stage: float = 1.2
    """The loss makes the last stage's work longer."""
    has_world: bool = True
    """Whether each step ends with a collective of all ranks (the norm of the gradients)."""
    waits_known: bool = True
    """Whether the reports can say in which collective the main thread waits."""

    @property
    def ranks(self) -> int:
        return self.pp * self.dp * self.tp

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.per_node)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pp, self.dp, self.tp

    @property
    def node_of(self) -> npt.NDArray[np.int64]:
        return np.arange(self.ranks) // self.per_node

    @property
    def step_s(self) -> float:
        """About how long a step takes."""
        work = self.load_s + self.opt_s + (self.fwd_s + self.bwd_s) * self.last_stage * (self.micro + self.pp - 1)
        return work + 2 * self.micro * self.tp_s + self.dp_s

    def groups(self) -> dict[str, npt.NDArray[np.int64]]:
        """For each slot the group id of every rank; NO_GROUP where it has none."""
        pp, dp, tp = self.shape
        stage, replica, shard = np.indices(self.shape)
        channel = (stage * dp + replica) * tp + shard
        none = np.full(self.shape, NO_GROUP)
        base_dp, base_fw = 1 + pp * dp, 1 + pp * dp + pp * tp
        base_bw = base_fw + pp * dp * tp
        first, last = stage == 0, stage == pp - 1
        found = {
            "world": np.zeros(self.shape, np.int64) if self.has_world else none,
            "tp": 1 + stage * dp + replica if tp > 1 else none,
            "dp": base_dp + stage * tp + shard if dp > 1 else none,
            "fw_in": np.where(first, NO_GROUP, base_fw + channel - dp * tp),
            "fw_out": np.where(last, NO_GROUP, base_fw + channel),
            "bw_in": np.where(last, NO_GROUP, base_bw + channel),
            "bw_out": np.where(first, NO_GROUP, base_bw + channel - dp * tp),
        }
        return {slot: found[slot].reshape(-1).astype(np.int64) for slot in SLOTS}

    def layout(self) -> Layout:
        members: dict[int, list[int]] = {}
        for ids in self.groups().values():
            for rank, group in enumerate(map(int, ids)):
                if group != NO_GROUP:
                    members.setdefault(group, []).append(rank)
        return Layout(self.node_of.tolist(), members)

    def roles(self) -> npt.NDArray[np.uint32]:
        """What a hash over a step's collectives would tell apart: the first, the last and the stages between."""
        stage = np.indices(self.shape)[0].reshape(-1)
        kinds = np.where(stage == 0, 0, np.where(stage == self.pp - 1, 2, 1))
        codes = np.array([crc32(f"{kind}/{self.shape}".encode()) for kind in range(3)], np.uint32)
        return codes[kinds]


def draw_job(rng: Random, ranks_min: int = 8, ranks_max: int = 2048) -> Job:
    """A job of a power of two of ranks."""
    low, high = ranks_min.bit_length() - 1, ranks_max.bit_length() - 1
    size = min(rng.randint(low, high), rng.randint(low, high)) if rng.random() < 0.7 else rng.randint(low, high)
    tp = rng.randint(0, min(3, size))
    pp = rng.randint(0, min(3, size - tp))
    step = 0.35 * (25.0 ** rng.random())
    micro = rng.choice((1, 2, 4)) if pp else rng.choice((1, 1, 2))
    work = step / (micro + 2**pp - 1)
    return Job(
        pp=2**pp,
        dp=2 ** (size - tp - pp),
        tp=2**tp,
        per_node=rng.choice((2, 4)) if size == 3 else rng.choice((4, 8, 8)),
        micro=micro,
        buckets=rng.randint(1, 5),
        fwd_s=work * 0.33,
        bwd_s=work * 0.6,
        load_s=step * rng.uniform(0.005, 0.05),
        opt_s=step * rng.uniform(0.01, 0.05),
        tp_s=work * rng.uniform(0.01, 0.05),
        dp_s=step * rng.uniform(0.01, 0.15),
        p2p_s=work * rng.uniform(0.005, 0.03),
        jitter=rng.uniform(0.005, 0.04),
        spread=rng.uniform(0.002, 0.015),
        last_stage=rng.uniform(1.0, 1.3),
        has_world=rng.random() < 0.8,
        waits_known=rng.random() < 0.5,
    )
