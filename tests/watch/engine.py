"""The job's time, with real waiting: a collective ends for all when the last has entered and the bytes have moved.

Each step is computed for all ranks at once; never is infinity, and spreads as waits do. What is recorded is who entered
and left which collective when: everything that reports show is read off that record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tests.watch.faults import FREEZES, HANGS, INF, LINKS, SLOWS, Calm, Fault, Ill
from tests.watch.job import SLOTS, Array, Job, Mask

WARM = (8.0, 3.0)
"""How much longer the first steps take: compiling, connecting."""


@dataclass(slots=True)
class Iteration:
    """One step of all ranks, flattened to (operations, ranks); infinity is never."""

    begin: Array
    end: Array
    own: Array
    enter: dict[str, Array]
    done: dict[str, Array]
    reduced: Array
    """When each rank begins to wait for its gradients."""
    paused: Array
    """Until when each rank is in `phase` (from `begin` on)."""
    phase: Array


class Engine:
    """Computes step after step under faults. `now` holds where each rank is in time."""

    def __init__(self, job: Job, faults: list[Fault], calm: Calm, rng: np.random.Generator, start: Array) -> None:
        self.job, self.faults, self.calm, self.rng = job, faults, calm, rng
        self.now = start.reshape(job.shape).copy()
        self.step = 0
        self._tilt = np.exp(rng.normal(0.0, job.spread, job.shape))
        self._work = [(fault, fault.mask(job)) for fault in faults if fault.ill in SLOWS | HANGS | FREEZES]
        for fault in faults:
            if fault.ill in FREEZES:
                fault.struck_s = fault.at_s
        self._links = {slot: self._touched(slot) for slot in ("world", "tp", "dp", "fw", "bw")}

    def iterate(self) -> Iteration:
        """The next step."""
        job = self.job
        self._costs()
        self._enter = {slot: np.full((self.count(slot), *job.shape), INF) for slot in SLOTS}
        self._done = {slot: np.full((self.count(slot), *job.shape), INF) for slot in SLOTS}
        begin = self.now.copy()
        self._waited = np.zeros(job.shape)
        paused, phase = self._pause()
        stages = slice(0, 1) if job.pp > 1 else slice(None)
        self.now[stages] = self._compute(0, "load", self.now[0], self._load[0])
        sent: dict[tuple[int, int], Array] = {}
        for micro in range(job.micro):
            for stage in range(job.pp):
                self._receive("fw", micro, stage, stage - 1, sent)
                self.now[stage] = self._compute(stage, "fwd", self.now[stage], self._fwd[micro, stage])
                self._shard(micro, stage)
                sent[micro, stage] = self.now[stage].copy()
        sent = {}
        ready = np.full((job.buckets, *job.shape), INF)
        for turn in range(job.micro):
            for stage in reversed(range(job.pp)):
                self._receive("bw", turn, stage, stage + 1, sent)
                self._backward(turn, stage, ready)
                self._shard(job.micro + turn, stage)
                sent[turn, stage] = self.now[stage].copy()
        reduced = self._reduce(ready)
        self._all()
        for stage in range(job.pp):
            self.now[stage] = self._compute(stage, "opt", self.now[stage], self._opt[stage])
        self.step += 1
        with np.errstate(invalid="ignore"):
            own = self.now - begin - self._waited
        flat = {slot: value.reshape(len(value), job.ranks) for slot, value in self._enter.items()}
        done = {slot: value.reshape(len(value), job.ranks) for slot, value in self._done.items()}
        begin, end, own, reduced = (part.reshape(-1) for part in (begin, self.now.copy(), own, reduced))
        return Iteration(begin, end, own, flat, done, reduced, paused, phase)

    def count(self, slot: str) -> int:
        job = self.job
        counts = {
            "world": int(job.has_world),
            "tp": 2 * job.micro if job.tp > 1 else 0,
            "dp": job.buckets if job.dp > 1 else 0,
        }
        return counts.get(slot, job.micro if job.pp > 1 else 0)

    def _costs(self) -> None:
        """Draw what each piece of work costs in this step."""
        job, m = self.job, self.job.micro
        noise = np.exp(self.rng.normal(0.0, job.jitter, (2 * m + 2, *job.shape))) * self._tilt
        stages = np.ones((job.pp, 1, 1))
        stages[-1] = job.last_stage
        warm = WARM[self.step] if self.step < len(WARM) else 1.0
        self._fwd = noise[:m] * stages * (job.fwd_s * warm)
        self._bwd = noise[m : 2 * m] * stages * (job.bwd_s * warm)
        self._opt = noise[2 * m] * job.opt_s
        self._load = noise[2 * m + 1] * job.load_s
        for first, steps, seconds in self.calm.stalls:
            if first <= self.step < first + steps:
                self._load += seconds
        if self.calm.collections:
            hit = self.rng.random(job.shape) < self.calm.collections
            self._opt += hit * self.rng.uniform(0.05, 0.3, job.shape)

    def _pause(self) -> tuple[Array, Array]:
        until, phase = np.full(self.job.ranks, -INF), np.zeros(self.job.ranks)
        flat = self.now.reshape(-1)
        for pause in self.calm.pauses:
            if pause.step == self.step:
                ranks = list(pause.ranks)
                flat[ranks] += pause.seconds
                until[ranks], phase[ranks] = flat[ranks], pause.phase
        return until, phase

    def _compute(self, stage: int, segment: str, begin: Array, cost: Array) -> Array:
        end: Array = begin + cost
        for fault, mask in self._work:
            if not mask[stage].any() or (fault.segments and segment not in fault.segments):
                continue
            if fault.ill in SLOWS:
                hit = mask[stage] & (begin >= fault.at_s)
                end = end + np.where(hit, fault.delay_s + cost * (fault.factor - 1.0), 0.0)
            else:
                hit = mask[stage] & (end > fault.at_s) & np.isfinite(end)
                end = np.where(hit, INF, end)
            if hit.any() and fault.struck_s == INF:
                fault.struck_s = max(fault.at_s, float(begin[hit].min()))
        return end

    def _transfer(self, slot: str, stage: int, last: Array, cost: float) -> Array:
        """When a collective ends whose last member entered at `last`; one for each group of the stage."""
        done: Array = last + cost * np.exp(self.rng.normal(0.0, 0.05, np.shape(last)))
        for fault, masks in self._links[slot]:
            mask = masks[stage]
            if not mask.any():
                continue
            if fault.ill in FREEZES or fault.ill is Ill.CUT:
                hit = mask & (done > fault.at_s) & np.isfinite(last)
                done = np.where(hit, INF, done)
            elif fault.ill is Ill.STUCK:
                hit = mask & (last >= fault.at_s) & np.isfinite(last)
                done = np.where(hit, INF, done)
            else:
                hit = mask & (last >= fault.at_s)
                times = fault.factor * (
                    np.exp(self.rng.normal(0.0, 0.8, np.shape(last))) if fault.ill is Ill.LOSSY else 1.0
                )
                done = np.where(hit, last + (done - last) * np.maximum(1.0, times), done)
            if hit.any() and fault.struck_s == INF:
                fault.struck_s = max(fault.at_s, float(np.min(last, where=hit, initial=INF)))
        return done

    def _receive(self, way: str, number: int, stage: int, source: int, sent: dict[tuple[int, int], Array]) -> None:
        if not 0 <= source < self.job.pp:
            return
        enter, given = self.now[stage].copy(), sent[number, source]
        done = self._transfer(way, min(stage, source), np.maximum(enter, given), self.job.p2p_s)
        self._note(f"{way}_in", number, stage, enter, done)
        self._note(f"{way}_out", number, source, given, done)
        self._wait(stage, done)

    def _shard(self, number: int, stage: int) -> None:
        if self.job.tp > 1:
            enter = self.now[stage].copy()
            done = self._transfer("tp", stage, enter.max(axis=1), self.job.tp_s)
            self._note("tp", number, stage, enter, done[:, None])
            self._wait(stage, np.broadcast_to(done[:, None], enter.shape))

    def _backward(self, turn: int, stage: int, ready: Array) -> None:
        """The last backward pass hands over its gradients in buckets, while it goes on."""
        cost, job = self._bwd[turn, stage], self.job
        if turn < job.micro - 1:
            self.now[stage] = self._compute(stage, "bwd", self.now[stage], cost)
            return
        for bucket in range(job.buckets):
            segment = "bwd" if bucket == 0 else "tail"
            self.now[stage] = self._compute(stage, segment, self.now[stage], cost / job.buckets)
            ready[bucket, stage] = self.now[stage]

    def _reduce(self, ready: Array) -> Array:
        begin: Array = self.now.copy()
        if self.job.dp == 1:
            return begin
        for stage in range(self.job.pp):
            done = np.full(self.job.tp, -INF)
            for bucket in range(self.job.buckets):
                enter = ready[bucket, stage]
                done = self._transfer(
                    "dp", stage, np.maximum(done, enter.max(axis=0)), self.job.dp_s / self.job.buckets
                )
                self._note("dp", bucket, stage, enter, done[None, :])
            self._wait(stage, np.maximum(self.now[stage], done[None, :]))
        return begin

    def _all(self) -> None:
        if not self.job.has_world:
            return
        enter = self.now.copy()
        done = self._transfer("world", 0, np.array([enter.max()]), self.job.p2p_s)[0]
        for stage in range(self.job.pp):
            self._note("world", 0, stage, enter[stage], done)
            self._wait(stage, np.full(enter[stage].shape, done))

    def _note(self, slot: str, number: int, stage: int, enter: Array, done: Array | float) -> None:
        self._enter[slot][number, stage] = enter
        self._done[slot][number, stage] = np.where(np.isfinite(enter), done, INF)

    def _wait(self, stage: int, done: Array) -> None:
        with np.errstate(invalid="ignore"):
            self._waited[stage] += done - self.now[stage]
        self.now[stage] = np.where(np.isfinite(self.now[stage]), done, INF)

    def _touched(self, slot: str) -> list[tuple[Fault, list[Mask]]]:
        """For each fault that touches transfers: which groups of a slot, by stage."""
        touching = [fault for fault in self.faults if fault.ill in FREEZES | LINKS or fault.ill is Ill.STUCK]
        found = []
        for fault in touching:
            masks = [self._groups_touched(slot, stage, fault) for stage in range(self.job.pp)]
            if any(mask.any() for mask in masks):
                found.append((fault, masks))
        return found

    def _groups_touched(self, slot: str, stage: int, fault: Fault) -> Mask:
        ranks = np.arange(self.job.ranks).reshape(self.job.shape)
        if slot == "world":
            members = ranks.reshape(1, -1) if stage == 0 and self.job.has_world else np.zeros((0, 1), np.int64)
            return np.array([touches(fault, self.job, slot, row) for row in members], bool)
        if slot in {"fw", "bw"}:
            if stage + 1 >= self.job.pp:
                return np.zeros(self.job.shape[1:], bool)
            pairs = np.stack([ranks[stage].reshape(-1), ranks[stage + 1].reshape(-1)], axis=1)
            return np.array([touches(fault, self.job, slot, row) for row in pairs], bool).reshape(self.job.shape[1:])
        groups = ranks[stage] if slot == "tp" else ranks[stage].T
        return np.array([touches(fault, self.job, slot, row) for row in groups], bool)


def touches(fault: Fault, job: Job, slot: str, members: np.ndarray) -> bool:
    """Whether a fault touches the transfers of a group: its ranks, its node, or a link between neighbours of its ring."""
    if fault.ill in FREEZES:
        return bool(np.isin(members, fault.ranks).any())
    if fault.ill is Ill.STUCK:
        return fault.slot == slot and set(map(int, members)) == set(fault.ranks)
    nodes = members // job.per_node
    ring = [(int(a), int(b)) for a, b in zip(nodes, np.roll(nodes, -1), strict=True) if a != b]
    return uses(fault, ring)


def uses(fault: Fault, ring: Iterable[tuple[int, int]]) -> bool:
    """Whether the traffic of a ring, as (sender, receiver) in one direction, goes through what is slow, lossy or cut."""
    if fault.ill is Ill.SLOW_RX:
        return any(receiver == fault.nodes[0] for _, receiver in ring)
    if fault.ill is Ill.SLOW_TX:
        return any(sender == fault.nodes[0] for sender, _ in ring)
    receiver, sender = fault.nodes
    both = fault.ill is Ill.CUT
    return any((a, b) == (sender, receiver) or (both and (b, a) == (sender, receiver)) for a, b in ring)
