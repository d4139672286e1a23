"""The judge of one job: takes the nodes' reports, and says what is wrong with it now, with reasons. Pure; time is an
argument.

What stands the job still goes first, and of that the cause before its consequences: a node that is lost takes its ranks with
it, dead ranks keep the others waiting, and who waits is not slow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from ckptd.ckpt.errors import StaleStepError
from ckptd.daemon.watch.clocks import Clocks
from ckptd.daemon.watch.crash import crashes, lost_nodes
from ckptd.daemon.watch.delays import Delays, slow_links
from ckptd.daemon.watch.fleet import Fleet
from ckptd.daemon.watch.hang import Hangs, links_of
from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.losses import Losses
from ckptd.daemon.watch.observations import NodeReport
from ckptd.daemon.watch.slow import SlowRanks
from ckptd.daemon.watch.verdicts import Syndrome, Verdict

Pairs = tuple[tuple[int, int], ...]
"""Links, as (receiver, sender)."""

LINKS_EVERY_S = 2.0
"""How often the delay matrix is looked at: a cell has a new sample every few seconds."""

PROBES_MAX = 8
"""Links of a node that are probed for the judge: in turns, and all once a second while the job waits for something that they
may show."""
TURNS = 2
"""Looks until a link's turn comes again: so it has filled its window within `Limits.frame_s`."""
TURN_S = 0.7
"""A look that comes sooner after the one before takes no turn: what is asked for twice is still measured once."""


class Judge:
    """One job, over all its lives."""

    def __init__(self, layout: Layout, *, epoch: int, now: float, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.clocks = Clocks()
        self.probes: Pairs = ()
        """Links, as (receiver, sender), that should be measured as soon as can be."""
        self._know_links(layout.nodes)
        self._begin(layout, epoch, now)

    def begin(self, layout: Layout, epoch: int, now: float) -> None:
        """A new life begins: whatever is known of the ranks belongs to the earlier one. The links stay what they are.

        Raises StaleStepError when the epoch is not newer.
        """
        if epoch <= self.fleet.epoch:
            raise StaleStepError(
                f"epoch {epoch} begins after epoch {self.fleet.epoch}; each life needs a higher number"
            )
        if layout.nodes != self.fleet.layout.nodes:
            self._know_links(layout.nodes)
        self._begin(layout, epoch, now)

    @property
    def iteration_s(self) -> float:
        """How long a step takes lately, in seconds; 0 before the first ones."""
        return self._slow.pace.now_s or self._told_step_s()

    @property
    def remarks(self) -> dict[str, int]:
        """What was odd about the reports of this life, and how often."""
        return dict(self.fleet.remarks)

    def hear(self, reports: Sequence[NodeReport], now: float) -> None:
        """Take reports, in the order in which they came."""
        for report in reports:
            known = 0 <= report.node < self.fleet.layout.nodes
            if known and report.exchange is not None and not self.clocks.hear(report.node, report.exchange):
                self.fleet.remark(f"node {report.node} answers with stamps that can't be")
        taken = self.fleet.hear(reports, now, self.clocks)
        self._delays.hear(taken, now)
        self._losses.hear(taken, now)

    def judge(self, now: float) -> list[Verdict]:
        """What is wrong now; the same again as long as it lasts. Call it about once a second."""
        self.probes = ()
        limits, fleet = self.limits, self.fleet
        found = lost_nodes(fleet, self._delays, now, limits) or crashes(fleet, now, limits)
        if not found:
            found, self.probes = self._hangs.judge(fleet, self._delays, self._losses, now, self.iteration_s)
        if not found:
            found = self._slowness(now)
        self.probes = self.probes or tuple(dict.fromkeys(self._closer + self._turn(now)))
        return [replace(verdict, epoch=fleet.epoch) for verdict in found]

    def _know_links(self, nodes: int) -> None:
        self._delays, self._losses = Delays(nodes, self.limits), Losses(nodes, self.limits)

    def _begin(self, layout: Layout, epoch: int, now: float) -> None:
        self.fleet = Fleet(layout, epoch, now, self.limits)
        self._hangs = Hangs(layout.world, self.limits)
        self._slow = SlowRanks(layout.world, self.limits)
        self._used: tuple[Pairs, ...] = ()
        self._turns, self._turn_at = 0, -np.inf
        self._links: list[Verdict] = []
        self._hot: set[tuple[int, int]] = set()
        """Links that were hot when last looked at: a slow side shows in its first link before it shows in all."""
        self._links_at = -np.inf
        self._closer: Pairs = ()
        """Links that seem to be slow lately: they are measured at every look, so that it is soon known."""

    def _neighbours(self) -> tuple[Pairs, ...]:
        """The links that the job's collectives may use, at most PROBES_MAX of each node, dealt out to the turns."""
        if not self._used:
            layout, taken = self.fleet.layout, Counter[int]()
            turns: list[list[tuple[int, int]]] = [[] for _ in range(TURNS)]
            for receiver, sender in links_of(layout.node_of, [layout.members(g) for g in range(len(layout.ids))]):
                if taken[receiver] < PROBES_MAX:
                    turns[taken[receiver] % TURNS].append((receiver, sender))
                taken[receiver] += 1
            self._used = tuple(map(tuple, turns))
        return self._used

    def _turn(self, now: float) -> Pairs:
        """The job's own links whose turn it is. A slow one may cost less than steps differ by, or others may hide what it
        costs: so they are measured always, whatever the work reads."""
        if now - self._turn_at < TURN_S:
            return ()
        self._turns, self._turn_at = (self._turns + 1) % TURNS, now
        return self._neighbours()[self._turns]

    def _told_step_s(self) -> float:
        told = self.fleet.rows["step_s"][np.isfinite(self.fleet.rows["step_s"])]
        return float(np.median(told)) if len(told) else 0.0

    def _slowness(self, now: float) -> list[Verdict]:
        ranks = self._slow.judge(self.fleet, now)
        if now - self._links_at >= LINKS_EVERY_S:
            self._look_at_links(now)
        if not self._links:
            pace = self._slow.pace
            if not ranks or self._slow.waiting_s <= (self.limits.all_alike - 1.0) * pace.usual_s:
                return ranks
            self.probes = tuple(chain(*self._neighbours()))  # all wait, and no link is known to be slow: look closer
            return ranks
        named = [verdict for verdict in ranks if verdict.syndrome is not Syndrome.NOBODY]
        cost = 0.0 if named else max(0.0, self._slow.waiting_s)
        return named + [replace(verdict, loss_s=cost / len(self._links)) for verdict in self._links]

    def _look_at_links(self, now: float) -> None:
        """What is slow and what loses; a link or a side that loses is slow by that, and is said once."""
        cells = self._delays.cells(now)
        slow, lossy = slow_links(cells, self.fleet.layout.nodes, self.limits), self._losses.verdicts(now)
        hot = {link for verdict in slow for link in verdict.links}
        steady = [verdict for verdict in slow if not verdict.links or self._hot.intersection(verdict.links)]
        explained = [set(verdict.nodes) for verdict in lossy]
        self._links = lossy + [found for found in steady if not any(nodes <= set(found.nodes) for nodes in explained)]
        self._closer = cells.suspects() + self._losses.suspects(now)
        self._hot, self._links_at = hot, now
