"""What the daemons of a synthetic job would report: read off the engine's record, a moment ago, with noise and losses."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from random import Random

import numpy as np
import numpy.typing as npt
from tests.watch.engine import Engine, Iteration
from tests.watch.faults import FREEZES, INF, LINKS, Calm, Fault, Ill
from tests.watch.job import BLOCKING, SLOTS, Array, Job

from ckptd.daemon.watch.observations import (
    DIGEST,
    NO_GROUP,
    NOWHERE,
    OWN_KEPT,
    SAMPLE,
    UNKNOWN,
    Exchange,
    Kind,
    NodeReport,
    Phase,
    Process,
    Table,
    empty_samples,
)

PROCESSES = {Ill.STOP: Process.STOPPED, Ill.KILL: Process.GONE, Ill.HANG_GIL: Process.HELD}
HISTORY = 64
TIMER_S, PROBE_S = 0.2, 2.0
"""How long TCP waits at least before it sends again, twice as long each next time; and how long a probe may take."""
QUESTIONS = 4
"""Segments of a probe, each with an answer."""
STRAYS, BUSY_STRAYS = 1e-5, 0.01
"""The part of the segments that is lost on a healthy link, and on one that others' traffic fills."""
MEASURING = 0.002
"""The error of a measured time, as a part of it."""


class Timeline:
    """The steps that somebody may still be in, and the own times of the last ones."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: deque[Iteration] = deque()
        self._dropped = 0
        self._own = np.full((HISTORY, engine.job.ranks), np.nan)
        self._took = np.full((HISTORY, engine.job.ranks), np.nan)
        self._counts = {slot: engine.count(slot) for slot in SLOTS}
        self._told_of: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._told: tuple[Array, Array] = (self._own, self._took)
        """What was last told, of how many steps of each rank: between two steps it is the same."""

    def advance(self, until: float) -> None:
        """Compute steps until nobody's present is missing."""
        while True:
            now = self._engine.now[np.isfinite(self._engine.now)]
            if self._kept and (not len(now) or now.min() > until):
                return
            step = self._engine.step
            iteration = self._engine.iterate()
            self._kept.append(iteration)
            self._own[step % HISTORY] = iteration.own * (
                1.0 + self._engine.rng.normal(0.0, MEASURING, len(iteration.own))
            )
            with np.errstate(invalid="ignore"):
                self._took[step % HISTORY] = iteration.end - iteration.begin

    def forget(self, before: float) -> None:
        while len(self._kept) > 1 and self._kept[0].end.max() < before:
            self._kept.popleft()
            self._dropped += 1

    def steps(self, when: Array) -> npt.NDArray[np.int64]:
        """How many steps each rank has finished at its moment."""
        finished = np.full(len(when), self._dropped, np.int64)
        for iteration in self._kept:
            finished += iteration.end <= when
        return finished

    def counts(self, slot: str, when: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """How many collectives of a slot each rank has entered and left."""
        entered = np.full(len(when), self._dropped * self._counts[slot], np.int64)
        left = entered.copy()
        for iteration in self._kept:
            entered += (iteration.enter[slot] <= when).sum(axis=0)
            left += (iteration.done[slot] <= when).sum(axis=0)
        return entered, left

    def reducing(self, when: Array) -> npt.NDArray[np.bool_]:
        """Who waits for gradients."""
        waits = np.zeros(len(when), bool)
        if self._counts["dp"]:
            for iteration in self._kept:
                waits |= (iteration.reduced <= when) & (iteration.done["dp"].max(axis=0) > when)
        return waits

    def phases(self, when: Array) -> Array:
        phase = np.zeros(len(when))
        for iteration in self._kept:
            phase = np.where((iteration.begin <= when) & (when < iteration.paused), iteration.phase, phase)
        if not self._dropped:
            phase = np.where(self._kept[0].begin > when, Phase.START, phase)
        return phase

    def times(self, steps: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """The own seconds of the newest steps (ranks, OWN_KEPT), and how long the newest one took."""
        if np.array_equal(steps, self._told_of):
            return self._told
        ranks = np.arange(len(steps))
        numbers = steps[:, None] - 1 - np.arange(OWN_KEPT)
        own = np.where(numbers >= 0, self._own[numbers % HISTORY, ranks[:, None]], np.nan)
        took = np.where(steps > 0, self._took[(steps - 1) % HISTORY, ranks], np.nan)
        self._told_of, self._told = steps, (own, took)
        return own, took


class Reporter:
    """Makes the reports of each second. The judge's clock is the true one; each node's is off by something."""

    def __init__(self, job: Job, timeline: Timeline, faults: list[Fault], calm: Calm, rng: Random) -> None:
        self.job, self._timeline, self._faults, self._calm = job, timeline, faults, calm
        self._rng, self._noise = rng, np.random.default_rng(rng.getrandbits(32))
        self._age = self._noise.uniform(0.0, 0.9, job.nodes)
        self._offset = self._noise.uniform(-calm.offsets_s, calm.offsets_s, job.nodes).tolist()
        self._groups = job.groups()
        self._first = rng.randint(0, 5000)
        self.epoch = rng.randint(1, 9)
        self._base = self._make_base()
        self._starts = np.searchsorted(job.node_of, np.arange(job.nodes + 1)).tolist()
        self._unmeasured = empty_samples()

    def _make_base(self) -> Table:
        table = np.zeros(self.job.ranks, DIGEST)
        table["rank"], table["epoch"], table["role"] = np.arange(self.job.ranks), self.epoch, self.job.roles()
        table["groups"]["group"] = NO_GROUP
        for place, slot in enumerate(SLOTS):
            table["groups"]["group"][:, place] = self._groups[slot]
            table["groups"]["op"][:, place] = place
        return table

    def reports(self, now: float, samples: Mapping[int, Table]) -> list[NodeReport]:
        """What reaches the judge in the second before `now`, with the samples of each node."""
        age = self._age.copy()
        deaths = self._deaths(now)
        for rank in deaths:
            age[rank // self.job.per_node] = 0.0  # a process that has gone is reported at once
        when = np.repeat(now - age, self.job.per_node)[: self.job.ranks]
        state = self._frozen(when)
        table = self._digests(state, when)
        for rank, (died, code) in deaths.items():
            row = table[rank]
            row["process"], row["exit"], row["gone_s"] = Process.GONE, code, max(0.0, when[rank] - died)
        self._babble(table, now)
        lost = {
            fault.nodes[0]
            for fault in self._faults
            if fault.ill is Ill.NODE_LOST and now - age[fault.nodes[0]] > fault.at_s
        }
        found = []
        for node in range(self.job.nodes):
            urgent = age[node] == 0.0
            if node in lost or (not urgent and self._rng.random() < self._calm.loss):
                continue
            at = now - float(age[node]) + self._offset[node]
            rows = table[self._starts[node] : self._starts[node + 1]]
            links = samples.get(node, self._unmeasured)
            found.append(NodeReport(node, rows, links, at=at, exchange=self._exchange(node, now)))
        if self._calm.flood >= 0:
            found += [report for report in found if report.node == self._calm.flood] * 20
        if self._calm.ghosts and found:
            found.append(self._ghost(table, found[0].node))
        return found

    def _exchange(self, node: int, now: float) -> Exchange:
        there, back = self._rng.uniform(1e-4, 2e-2), self._rng.uniform(1e-4, 2e-2)
        heard = now - back - 0.001 + self._offset[node]
        return Exchange(now - back - there - 0.001, heard, heard + 0.001, now)

    def _deaths(self, now: float) -> dict[int, tuple[float, int]]:
        """Who has gone: when, and how."""
        found: dict[int, tuple[float, int]] = {}
        for fault in self._faults:
            if fault.ill is Ill.KILL and fault.at_s <= now:
                found.update(dict.fromkeys(fault.ranks, (fault.at_s, -9)))
            for rank, after in fault.deaths:
                if fault.at_s + after <= now and rank not in fault.ranks:
                    found.setdefault(rank, (fault.at_s + after, 1))
        return found

    def _frozen(self, when: Array) -> Array:
        """The moment that each rank's counters show: that of the report, or that at which it ceased."""
        state: Array = when.copy()
        for fault in self._faults:
            if fault.ill in FREEZES:
                ranks = list(fault.ranks)
                state[ranks] = np.minimum(state[ranks], fault.at_s)
        for rank, (died, _) in self._deaths(float(when.max())).items():
            state[rank] = min(state[rank], died)
        return state

    def _digests(self, state: Array, when: Array) -> Table:
        timeline, job = self._timeline, self.job
        table: Table = self._base.copy()
        steps = timeline.steps(state)
        table["step"] = self._first + steps
        table["phase"] = timeline.phases(state)
        own, took = timeline.times(steps)
        table["own_s"] = own
        table["step_s"] = took
        waits = np.full(job.ranks, NOWHERE, np.int64)
        for place, slot in enumerate(SLOTS):
            entered, left = timeline.counts(slot, state)
            table["groups"]["entered"][:, place], table["groups"]["completed"][:, place] = entered, left
            inside = (entered > left) if slot in BLOCKING else timeline.reducing(state) if slot == "dp" else None
            if inside is not None:
                waits = np.where(inside, self._groups[slot], waits)
        table["waits"] = waits if job.waits_known else UNKNOWN
        for fault in self._faults:
            process = PROCESSES.get(fault.ill)
            if process is not None and process is not Process.GONE:
                table["process"][[rank for rank in fault.ranks if when[rank] >= fault.struck_s]] = process
        return table

    def _babble(self, table: Table, now: float) -> None:
        if self._calm.babbler >= 0:
            row = table[self._calm.babbler]
            row["step"] = self._rng.getrandbits(32)
            row["phase"] = self._rng.randrange(256)
            row["own_s"] = self._rng.choice((-1.0, INF, 1e30))
            row["groups"]["entered"] = [self._rng.getrandbits(32) for _ in range(len(row["groups"]))]

    def _ghost(self, table: Table, node: int) -> NodeReport:
        """What an earlier life's rank still says: it waits in a collective that nobody will enter."""
        row = table[self._starts[node] : self._starts[node] + 1].copy()
        row["epoch"] = self.epoch - 1
        row["groups"]["entered"] += 1
        row["process"], row["exit"] = Process.GONE, -15
        return NodeReport(node, row)


class Network:
    """Reads among the members of protection groups and a random probe, each second."""

    def __init__(self, job: Job, faults: list[Fault], calm: Calm, rng: Random) -> None:
        self._job, self._calm = job, calm
        self._faults = [f for f in faults if f.ill in LINKS or f.ill is Ill.NODE_LOST]
        self._rng = np.random.default_rng(rng.getrandbits(32))
        nodes = job.nodes
        self._static = np.exp(self._rng.normal(0.0, 0.1, (nodes, nodes)))
        self._noise = rng.uniform(0.05, 0.25)
        rack = np.arange(nodes) // rng.choice((2, 4, 8))
        self._far = rack[:, None] != rack[None, :]
        size = min(nodes, rng.choice((4, 5, 6)))
        group = np.arange(nodes) // size
        pairs = np.argwhere((group[:, None] == group[None, :]) & ~np.eye(nodes, dtype=bool))
        self._pairs = pairs
        self._unit = (0.0008, 0.0015, 0.0001, 0.0003)

    def samples(self, now: float, asked: tuple[tuple[int, int], ...]) -> dict[int, Table]:
        """By node: what it has measured in the last second, and what it was asked to probe."""
        nodes = self._job.nodes
        if nodes < 2:
            return {}
        receivers = np.arange(nodes)
        senders = (receivers + 1 + self._rng.integers(0, nodes - 1, nodes)) % nodes
        probes = np.stack([receivers, senders], axis=1)
        if asked:
            probes = np.concatenate([probes, np.repeat(np.array(asked), 2, axis=0)])
        pairs = np.concatenate([self._pairs, probes])
        is_probe = np.arange(len(pairs)) >= len(self._pairs)
        kind = np.where(is_probe, int(Kind.PROBE_NEAR), int(Kind.READ_NEAR)) + self._far[pairs[:, 0], pairs[:, 1]]
        cost = np.array(self._unit)[kind] * self._static[pairs[:, 0], pairs[:, 1]]
        cost = cost * np.exp(self._rng.normal(0.0, self._noise, len(pairs)))
        cost *= self._burdens(pairs, now, is_probe)
        asking, answering = self._losing(pairs[:, ::-1], now), self._losing(pairs, now)
        again = self._rng.geometric(1.0 - asking) + self._rng.geometric(1.0 - answering) - 2
        waited = TIMER_S * (2.0**again - 1.0)
        cost = np.where(is_probe, np.where(waited > PROBE_S, INF, cost + waited), cost)
        lies = (pairs[:, 0] == self._calm.liar) & (now >= self._calm.liar_from_s)
        probed = np.flatnonzero(is_probe & (np.isfinite(cost) | lies))
        table = np.zeros(len(pairs) + len(probed), SAMPLE)
        came, lost = table[: len(pairs)], table[len(pairs) :]
        came["receiver"], came["sender"], came["kind"], came["cost"] = pairs[:, 0], pairs[:, 1], kind, cost
        lost["receiver"], lost["sender"], lost["kind"] = pairs[probed, 1], pairs[probed, 0], Kind.LOST
        lost["cost"] = np.where(lies[probed], QUESTIONS, self._rng.binomial(QUESTIONS, asking[probed]))
        source = np.concatenate([pairs[:, 0], pairs[probed, 0]])
        order = np.argsort(source, kind="stable")
        table = table.take(order)
        bounds = np.searchsorted(source[order], np.arange(nodes + 1)).tolist()
        return {node: table[bounds[node] : bounds[node + 1]] for node in range(nodes)}

    def _losing(self, pairs: npt.NDArray[np.int64], now: float) -> Array:
        """How likely a segment from sender to receiver is lost."""
        part = np.full(len(pairs), STRAYS)
        for start, seconds, node in self._calm.bursts:
            if start <= now < start + seconds:
                part[(pairs == node).any(axis=1)] = BUSY_STRAYS
        for fault in self._faults:
            if fault.ill is Ill.LOSSY and now >= fault.at_s:
                part[(pairs == fault.nodes).all(axis=1)] = fault.lost
        return part

    def _burdens(self, pairs: npt.NDArray[np.int64], now: float, is_probe: npt.NDArray[np.bool_]) -> Array:
        """By what the cost of each sample is multiplied."""
        times = np.ones(len(pairs))
        receiver, sender = pairs[:, 0], pairs[:, 1]
        for fault in self._faults:
            if now < fault.at_s:
                continue
            node = fault.nodes[0]
            if fault.ill is Ill.NODE_LOST:
                times[sender == node] = INF
            elif fault.ill is Ill.SLOW_RX:
                times[receiver == node] *= fault.factor
            elif fault.ill is Ill.SLOW_TX:
                times[sender == node] *= fault.factor
            elif fault.ill is Ill.CUT:
                times[np.isin(receiver, fault.nodes) & np.isin(sender, fault.nodes)] = INF
            else:
                hit = (receiver == node) & (sender == fault.nodes[1])
                noise = np.ones(len(pairs))
                if fault.ill is Ill.LOSSY:  # what a probe waits for is no part of what it takes else
                    hit &= ~is_probe
                    noise = np.exp(self._rng.normal(0.0, 0.8, len(pairs)))
                times[hit] *= np.maximum(1.0, fault.factor * noise[hit])
        for start, seconds, node in self._calm.bursts:
            if start <= now < start + seconds:
                times[(receiver == node) | (sender == node)] *= 3.0
        if self._calm.liar >= 0 and now >= self._calm.liar_from_s:
            times[receiver == self._calm.liar] = INF
        return times
