"""The newest digest of every rank, as columns, and since when each stands still. Checks what comes in before it counts.

Nothing here grows with what is sent: a rank has one row, a node a number of reports a second, and remarks are counted
per rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptd.daemon.watch.clocks import Clocks
from ckptd.daemon.watch.layout import Ints, Layout
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import DIGEST, GROUPS_MAX, NO_GROUP, OWN_KEPT, NodeReport, Phase, Process, Table

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

REPORTS_PER_S = 5
"""A node reports once a second, and once more when a process has gone; what is beyond this in a second is a flood."""
STEPS_PER_S, CALLS_PER_S = 10_000.0, 1_000_000.0
"""Faster than any trainer: a counter that leaps further is nonsense."""
REMARKS_MAX = 256
UNKNOWN_AGE_S = 1.0
"""How old a report may be that does not say when it was made, or by a clock that is not known."""
DANGLING_STEPS = 2
"""A collective that was entered so many steps ago and is not completed was abandoned: its group is gone, or nobody asked."""


class Fleet:
    """One life of a job, as it was heard. Times are the judge's clock unless said otherwise."""

    def __init__(self, layout: Layout, epoch: int, now: float, limits: Limits) -> None:
        self.layout, self.epoch, self.born = layout, epoch, now
        self._limits = limits
        world, memberships = layout.world, len(layout.rank)
        self.rows: Table = np.zeros(world, DIGEST)
        self.rows["own_s"] = np.nan
        self.rows["step_s"] = np.nan
        self.rows["groups"]["group"] = NO_GROUP
        self.heard: Floats = np.full(world, -np.inf)
        self.moved: Floats = np.full(world, now)
        """When something of the rank's last went on: its step, its phase or a collective."""
        self.phased: Floats = np.full(world, now)
        """When the rank entered the phase that it is in."""
        self.died: Floats = np.full(world, np.inf)
        self.doubt: Floats = np.zeros(world)
        """By how much `died` may be wrong, in seconds."""
        self.over_at = np.inf
        """When this life was declared over, and agents began to end its ranks."""
        self.first_step = -1
        self.node_heard: Floats = np.full(layout.nodes, now)
        self.node_read: Floats = np.full(layout.nodes, -np.inf)
        """When each node looked at its ranks for its newest report, at the latest."""
        self.entered: Ints = np.zeros(memberships, np.int64)
        self.completed: Ints = np.zeros(memberships, np.int64)
        self.op: Ints = np.zeros(memberships, np.int64)
        self._entered_at_step: Ints = np.zeros(memberships, np.int64)
        self._looked_up: Ints = np.full((world, GROUPS_MAX), -1)
        self._places: Ints = np.full((world, GROUPS_MAX), -1)
        """The memberships of the groups that were last looked up for each rank: they seldom change."""
        self.remarks: Counter[str] = Counter()
        self._quota: dict[int, tuple[float, int]] = {}

    def hear(self, reports: Sequence[NodeReport], now: float, clocks: Clocks) -> list[NodeReport]:
        """Take what the nodes say; returns the reports that were not dropped as a flood."""
        taken = [report for report in reports if self._is_welcome(report, now)]
        if not taken:
            return taken
        for report in taken:
            self.node_heard[report.node] = now
            known = clocks.ours(report.node, report.at, now) if report.at is not None else None
            self.node_read[report.node] = now - UNKNOWN_AGE_S if known is None else min(now, known[0] - known[1])
        digests, source = joined([(report.node, report.digests) for report in taken], DIGEST)
        self._take(digests, source, now)
        self._bury(digests, source, {report.node: report.at for report in taken}, now, clocks)
        return taken

    def fresh(self, now: float) -> Flags:
        """Of which ranks the newest digest says something about now."""
        is_fresh: Flags = now - self.heard <= self._limits.fresh_s
        return is_fresh

    def silence(self, now: float) -> Floats:
        """For how long nothing has come from each node, in seconds."""
        return now - self.node_heard

    def pending(self) -> Flags:
        """Of each membership: whether its rank has a collective under way there, not counting abandoned ones."""
        since = self.rows["step"].astype(np.int64)[self.layout.rank] - self._entered_at_step
        under_way: Flags = (self.entered > self.completed) & (since < DANGLING_STEPS)
        return under_way

    def excused(self, now: float) -> Flags:
        """Which ranks are in a phase in which they may stand still, and not for too long."""
        phase = self.rows["phase"]
        grace = np.zeros(len(Phase))
        for known, seconds in self._limits.grace_s.items():
            grace[known] = seconds
        start = self._limits.grace_s[Phase.START]
        starting = (self.rows["step"] < max(0, self.first_step) + self._limits.first_steps) & (now - self.born < start)
        in_phase: Flags = (now - self.phased < grace[phase]) | starting
        in_phase &= self.rows["process"] != Process.STOPPED
        return in_phase

    def remark(self, text: str) -> None:
        """Remember something odd, for people; counted, and bounded."""
        if text in self.remarks or len(self.remarks) < REMARKS_MAX:
            self.remarks[text] += 1

    def _is_welcome(self, report: NodeReport, now: float) -> bool:
        if not 0 <= report.node < self.layout.nodes:
            self.remark(f"a report of node {report.node}, which is not in the job")
            return False
        since, count = self._quota.get(report.node, (now, 0))
        if now - since >= 1.0:
            since, count = now, 0
        self._quota[report.node] = (since, count + 1)
        if count >= REPORTS_PER_S:
            self.remark(
                f"node {report.node} floods: more than {REPORTS_PER_S} reports in a second; the rest is dropped"
            )
            return False
        return True

    def _take(self, new: Table, source: Ints, now: float) -> None:
        new = new.compress(self._known(new, source))
        ranks = new["rank"].astype(np.int64)
        if len(ranks) and np.bincount(ranks).max() > 1:  # of several digests of a rank the last one counts
            last = {int(rank): place for place, rank in enumerate(ranks)}
            new = new.take(sorted(last.values()))
            ranks = new["rank"].astype(np.int64)
        same = (_as_words(new) == _as_words(self.rows.take(ranks))).all(axis=1) & np.isfinite(self.heard[ranks])
        self.heard[ranks[same]] = now
        if same.all():
            return
        new, ranks = new.compress(~same), ranks[~same]
        old = self.rows.take(ranks)
        plausible = self._plausible(new, old, self.heard[ranks], now)
        for rank in ranks[~plausible]:
            self.remark(f"rank {rank} reports what can't be: counters that go back or leap, or impossible times")
        new, old, ranks = new.compress(plausible), old.compress(plausible), ranks[plausible]
        if not len(ranks):
            return
        changed = (new["step"] != old["step"]) | (new["phase"] != old["phase"]) | np.isneginf(self.heard[ranks])
        for name in ("group", "entered", "completed"):
            changed |= (new["groups"][name] != old["groups"][name]).any(axis=1)
        phased = (new["phase"] != old["phase"]) | np.isneginf(self.heard[ranks])
        self.moved[ranks[changed]] = now
        self.phased[ranks[phased]] = now
        self.heard[ranks] = now
        _as_words(self.rows)[ranks] = _as_words(new)
        if self.first_step < 0:
            made = np.isfinite(new["own_s"]).sum(axis=1)  # a fast life has made many steps before it is first heard of
            self.first_step = max(0, int((new["step"].astype(np.int64) - made).min()))
        self._place(new.compress(changed), ranks[changed])

    def _known(self, new: Table, source: Ints) -> Flags:
        """Which records are of this life and of a rank of the node that sent them."""
        ranks = new["rank"].astype(np.int64)
        inside = ranks < self.layout.world
        mine = inside & (self.layout.node_of[np.where(inside, ranks, 0)] == source)
        if not mine.all():
            for node in np.unique(source[~mine]):
                self.remark(f"node {node} reports ranks that are not its own")
        later = mine & (new["epoch"] > self.epoch)
        if later.any():
            for node in np.unique(source[later]):
                self.remark(f"node {node} reports a later life than epoch {self.epoch}")
        known: Flags = mine & (new["epoch"] == self.epoch)
        return known

    def _plausible(self, new: Table, old: Table, heard: Floats, now: float) -> Flags:
        """Which records can follow what their ranks said before."""
        ok: Flags = (new["phase"] < len(Phase)) & (new["process"] < len(Process))
        with np.errstate(invalid="ignore"):
            ok &= ~((new["step_s"] < 0) | np.isinf(new["step_s"]) | (new["gone_s"] < 0) | ~np.isfinite(new["gone_s"]))
            ok &= ~((new["own_s"] < 0) | np.isinf(new["own_s"])).any(axis=1)
        groups, before = new["groups"], old["groups"]
        ok &= (groups["completed"] <= groups["entered"]).all(axis=1)
        known = np.isfinite(heard)
        elapsed = np.where(known, now - np.where(known, heard, 0.0), 0.0) + 1.0
        same = (groups["group"] == before["group"]) & (groups["group"] != NO_GROUP)
        entered = groups["entered"].astype(np.int64) - before["entered"]
        completed = groups["completed"].astype(np.int64) - before["completed"]
        leaps = same & ((entered < 0) | (completed < 0) | (entered > CALLS_PER_S * elapsed[:, None]))
        step = new["step"].astype(np.int64) - old["step"]
        begins = (old["phase"] == Phase.START) & (old["step"] == 0)  # until its state is there
        fast = (step > STEPS_PER_S * elapsed) & ~begins
        ok &= ~known | ~(leaps.any(axis=1) | (step < 0) | fast)
        ok &= ~known | (old["process"] != Process.GONE) | (new["process"] == Process.GONE)
        return ok

    def _place(self, new: Table, ranks: Ints) -> None:
        """Sort the groups of the records into the memberships. A group that is not in the layout is of another life."""
        groups = new["groups"]
        other = (groups["group"] != self._looked_up[ranks]).any(axis=1)
        if other.any():
            asked = groups["group"][other].astype(np.int64)
            self._looked_up[ranks[other]] = asked
            self._places[ranks[other]] = self.layout.find(asked, np.broadcast_to(ranks[other, None], asked.shape))
        places = self._places[ranks]
        given = places >= 0
        places, entered = places[given], groups["entered"][given].astype(np.int64)
        advanced = entered != self.entered[places]
        steps = np.broadcast_to(new["step"].astype(np.int64)[:, None], groups.shape)[given]
        self._entered_at_step[places[advanced]] = steps[advanced]
        self.entered[places] = entered
        self.completed[places] = groups["completed"][given]
        self.op[places] = groups["op"][given]

    def _bury(
        self, digests: Table, source: Ints, read_at: Mapping[int, float | None], now: float, clocks: Clocks
    ) -> None:
        """Note when the processes that have ended since died, on our clock. `read_at`: when each node looked, on its own."""
        ended = np.flatnonzero((digests["process"] == Process.GONE) & (digests["rank"] < self.layout.world))
        ranks = digests["rank"][ended].astype(np.int64)
        ended = ended[(self.rows["process"][ranks] == Process.GONE) & np.isinf(self.died[ranks])]
        for place in ended.tolist():
            node, rank = int(source[place]), int(digests["rank"][place])
            at = read_at[node]
            known = clocks.ours(node, at, now) if at is not None else None
            when, doubt = known if known is not None else (now, UNKNOWN_AGE_S)
            self.died[rank] = min(now, when) - float(digests["gone_s"][place])
            self.doubt[rank] = doubt


def _as_words(table: Table) -> npt.NDArray[np.uint64]:
    """The records as rows of whole words: not a number equals itself there. (Also, numpy copies records that it picks by an
    index field by field, ten times as long; `take` and `compress` don't.)"""
    return np.ascontiguousarray(table).view(np.uint64).reshape(len(table), DIGEST.itemsize // 8)


def joined(tables: Sequence[tuple[int, Table]], record: np.dtype[Any]) -> tuple[Table, Ints]:
    """The records of all tables, each with the number of its table. (As bytes: numpy would compare each table's fields with
    the others'.)"""
    whole = np.frombuffer(b"".join([table.tobytes() for _, table in tables]), record)
    numbers = np.repeat(np.array([number for number, _ in tables], np.int64), [len(table) for _, table in tables])
    return whole, numbers


def newest_own(fleet: Fleet, told: Flags, window: int) -> int:
    """The newest step of which all these ranks have told their own seconds; who lags by more than what is kept beside a
    window is not waited for.

    A rank whose recorder is slow to answer tells of its steps some looks later: on a busy machine that is the slow one.
    """
    known = np.isfinite(fleet.rows["own_s"][told])
    steps = fleet.rows["step"][told].astype(np.int64)
    newest = int(steps.min())
    measured = (steps - known.argmax(axis=1))[known.any(axis=1)]
    lately = measured[measured > newest - (OWN_KEPT - window)]
    return min(newest, int(lately.min())) if len(lately) else newest


def recent_own(fleet: Fleet, newest: int, window: int) -> Floats:
    """The own seconds of every rank in the steps `newest - window + 1` to `newest`; shape (window, world), newest first.

    NaN where a rank has not told, or tells only of steps that are newer or older.
    """
    ahead = fleet.rows["step"].astype(np.int64) - newest
    places = ahead[None, :] + np.arange(window)[:, None]
    inside = (places >= 0) & (places < OWN_KEPT)
    own = fleet.rows["own_s"].astype(np.float64)
    values: Floats = np.take_along_axis(own.T, np.clip(places, 0, OWN_KEPT - 1), axis=0)
    values[~inside] = np.nan
    return values
