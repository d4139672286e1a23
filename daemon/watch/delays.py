"""The delay matrix: what moving bytes costs between each two nodes, and whether a receiver, a sender or a link is slow.

Source: C4's communication latency matrix. Row = receiver, column = sender, cell = link; a cell is the cost relative to
the median of its kind. Faults that overlap are taken apart as a median polish does (Tukey, "Exploratory Data Analysis",
1977): what a row or column has in common is its own, what is left over is the link's. Cells that nobody has measured
are simply absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckptd.daemon.watch.fleet import Flags, Floats, joined
from ckptd.daemon.watch.layout import Ints
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import SAMPLE, Kind, NodeReport
from ckptd.daemon.watch.verdicts import Confidence, Syndrome, Verdict

VOTE_S = 5.0
"""For how long an attempt to reach a node says something about it."""
HEALTHY = 0.4
"""What is usual is taken from there, and how far links differ from the cheaper half: two slow nodes of four are half of
all."""
QUARTER_MAD = 1.11
"""Median absolute deviations between the first quarter and the first tenth of what is spread normally."""
LINE_SHARE = 0.6
"""What all cells of a line have in common is better known than one cell: it counts from this part of a hot cell on."""
COST_MAX = 1e3
"""So many times the usual stands for "nothing came"."""
APART_S = 0.5
"""A link has one sample of a kind in that time, whoever sends how many: a window is a time, not a moment's flood."""
DEAD_AFTER = 2
"""Attempts in a row that failed."""

LATELY = 5
"""So many of a link's newest samples say what it is like now: enough to wait or to look closer, not to name anybody."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Every link that was measured often enough."""

    receivers: Ints
    senders: Ints
    ratio: Floats
    """What most of the newest samples cost at least, relative to the usual."""
    lately: Floats
    """The median of the newest few, relative to the usual."""
    bound: float
    """From which cost on a link is slow."""

    def suspects(self) -> tuple[tuple[int, int], ...]:
        """The links, as (receiver, sender), that seem to be slow lately."""
        hot = self.lately > self.bound
        return tuple(zip(self.receivers[hot].tolist(), self.senders[hot].tolist(), strict=True))


class Delays:
    """The newest samples of every link, at most `link_window` of each kind. Pure."""

    def __init__(self, nodes: int, limits: Limits) -> None:
        self._nodes, self._limits = nodes, limits
        self._place: npt.NDArray[np.int32] = np.full((Kind.LOST, nodes, nodes), -1, np.int32)
        self._cost = np.zeros((0, limits.link_window), np.float32)
        self._at = np.zeros((0, limits.link_window), np.float64)
        self._count = np.zeros(0, np.int64)
        self._key = np.zeros((0, 3), np.int64)
        self._last = np.zeros(0)
        self._used = 0
        self._tried = np.full((nodes, nodes), -np.inf, np.float32)
        self._fails = np.zeros((nodes, nodes), np.int16)

    def hear(self, reports: Iterable[NodeReport], now: float) -> None:
        """Take the samples that are possible: of the node's own reads, from another node of the job, with a positive
        cost."""
        new, source = joined([(report.node, report.samples) for report in reports], SAMPLE)
        if not len(new):
            return
        with np.errstate(invalid="ignore"):
            good = new["receiver"] == source
            good &= (new["sender"] < self._nodes) & (new["sender"] != new["receiver"])
            good &= (new["kind"] < Kind.LOST) & (new["cost"] > 0)
        new = new.compress(good)
        receivers, senders, kinds = (new[name].astype(np.int64) for name in ("receiver", "sender", "kind"))
        cost = new["cost"]
        self._tried[receivers, senders] = now
        came = np.isfinite(cost)
        self._fails[receivers[came], senders[came]] = 0
        np.add.at(self._fails, (receivers[~came], senders[~came]), 1)
        np.minimum(self._fails, 1000, out=self._fails)
        places, first = np.unique(self._places(kinds, receivers, senders), return_index=True)
        due = now - self._last[places] >= APART_S
        places, first = places[due], first[due]
        slot = self._count[places] % self._limits.link_window
        self._cost[places, slot], self._at[places, slot] = cost[first], now
        self._last[places] = now
        self._count[places] += 1

    def votes(self, node: int, speaking: Flags, now: float) -> tuple[int, int]:
        """How many of the speaking nodes have reached this one lately, and how many have tried in vain; one vote each."""
        tried = (now - self._tried[:, node] <= VOTE_S) & speaking
        tried[node] = False
        failed = tried & (self._fails[:, node] > 0)
        return int(tried.sum() - failed.sum()), int(failed.sum())

    def dead(self, nodes: Ints, now: float) -> tuple[tuple[int, int], ...]:
        """The links among these nodes over which nothing has come lately, though it was tried more than once."""
        block = np.ix_(nodes, nodes)
        is_dead = (self._fails[block] >= DEAD_AFTER) & (now - self._tried[block] <= 2 * VOTE_S)
        return tuple((int(nodes[i]), int(nodes[j])) for i, j in np.argwhere(is_dead))

    def tried_since(self, receiver: int, sender: int, when: float) -> bool:
        """Whether a link was measured after a moment."""
        return bool(self._tried[receiver, sender] >= when)

    def cells(self, now: float) -> Cells:
        """Every link with enough samples, compared with the others of its kind."""
        used = self._used
        oldest = self._at[
            np.arange(used), self._count[:used] % self._limits.link_window
        ]  # the next one to be forgotten
        enough = np.flatnonzero(now - oldest <= self._limits.frame_s)
        if not len(enough):
            return Cells(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0), self._limits.hot)
        low, middle = self._limits.link_window - self._limits.link_of, self._limits.link_window // 2
        key, kept = self._key[enough], self._cost[enough].astype(np.float64)
        ordered = np.partition(kept, (low, middle), axis=1)
        newest = (self._count[enough, None] - 1 - np.arange(LATELY)) % self._limits.link_window
        lately = np.partition(np.take_along_axis(kept, newest, axis=1), LATELY // 2, axis=1)[:, LATELY // 2]
        cost, typical = ordered[:, low], ordered[:, middle]
        scale = np.full(len(key), np.inf)
        for kind in np.unique(key[:, 0]):
            same = key[:, 0] == kind
            costs = np.sort(typical[same])
            scale[same] = costs[int(HEALTHY * (len(costs) - 1))]
        ratio, lately = _relative(cost, scale), _relative(lately, scale)
        level = np.log(ratio)
        tenth, quarter = np.quantile(level, (0.10, 0.25))
        spread = QUARTER_MAD * float(quarter - tenth)
        code = key[:, 1] * self._nodes + key[:, 2]
        links, inverse = np.unique(code, return_inverse=True)
        worst, worst_lately = np.zeros(len(links)), np.zeros(len(links))
        np.maximum.at(worst, inverse.ravel(), ratio)
        np.maximum.at(worst_lately, inverse.ravel(), lately)
        bound = max(self._limits.hot, float(np.exp(self._limits.link_mads * spread)))
        return Cells(links // self._nodes, links % self._nodes, worst, worst_lately, bound)

    def _places(self, kinds: Ints, receivers: Ints, senders: Ints) -> Ints:
        """Where the samples of each (kind, link) are kept; new ones get a place."""
        fresh = np.flatnonzero(self._place[kinds, receivers, senders] < 0)
        for sample in fresh:
            key = (kinds[sample], receivers[sample], senders[sample])
            if self._place[key] < 0:
                if self._used == len(self._count):
                    self._grow()
                self._place[key], self._key[self._used] = self._used, key
                self._used += 1
        return self._place[kinds, receivers, senders].astype(np.int64)

    def _grow(self) -> None:
        more = max(64, len(self._count))
        window = self._limits.link_window
        self._cost = np.concatenate([self._cost, np.zeros((more, window), np.float32)])
        self._at = np.concatenate([self._at, np.full((more, window), -np.inf)])
        self._count = np.concatenate([self._count, np.zeros(more, np.int64)])
        self._last = np.concatenate([self._last, np.full(more, -np.inf)])
        self._key = np.concatenate([self._key, np.zeros((more, 3), np.int64)])


def slow_links(cells: Cells, nodes: int, limits: Limits) -> list[Verdict]:
    """Hot rows, hot columns, and the hot cells that these do not explain; both directions of a link make one verdict.

    Links are measured at different rates, so a side that has become slow shows in some of its cells before it shows in most.
    Therefore a cell is hot only by what it costs more than the others of its row and of its column do lately.
    """
    receivers, senders = cells.receivers, cells.senders
    if not (cells.ratio > cells.bound).any():
        return []
    hot = float(np.log(cells.bound))
    rows, columns, left = _polish(receivers, senders, np.log(cells.ratio), nodes, hot, limits)
    found = [_line(int(node), rows, columns) for node in np.flatnonzero((rows > 0) | (columns > 0))]
    both = (rows[receivers] > 0) & (columns[senders] > 0)
    lately = np.log(cells.lately) - rows[receivers] - columns[senders]
    wires: dict[tuple[int, int], list[int]] = {}
    for cell in map(int, np.flatnonzero((left > hot) & ~both)):
        others = [_median_of_others(line, lately, cell) for line in (receivers, senders)]
        if left[cell] - max(0.0, *others) > hot:
            ends = sorted((int(receivers[cell]), int(senders[cell])))
            wires.setdefault((ends[0], ends[1]), []).append(cell)
    for nodes_of, dear in wires.items():
        links = tuple((int(receivers[cell]), int(senders[cell])) for cell in dear)
        reason = _link(links, float(np.exp(left[dear].max())))
        evidence = (("times", float(cells.ratio[dear].max())),)
        found.append(Verdict(Syndrome.COMMUNICATION_SLOW, reason, nodes=nodes_of, links=links, evidence=evidence))
    return found


def _link(links: tuple[tuple[int, int], ...], times: float) -> str:
    """One link, in one direction or in both."""
    receiver, sender = links[0]
    way = f"from node {sender} to node {receiver}" if len(links) == 1 else f"between nodes {receiver} and {sender}"
    return f"what goes {way} {_times(times)}; the other links of both are well"


def _line(node: int, rows: Floats, columns: Floats) -> Verdict:
    times = float(np.exp(max(rows[node], columns[node])))
    side = "receives and sends" if rows[node] > 0 < columns[node] else "receives" if rows[node] > 0 else "sends"
    return Verdict(
        Syndrome.COMMUNICATION_SLOW,
        f"whatever node {node} {side} {_times(times)}: its own side, not one link",
        nodes=(node,),
        confidence=Confidence.LIKELY,
        evidence=(("receiving", float(np.exp(rows[node]))), ("sending", float(np.exp(columns[node])))),
    )


def _relative(cost: Floats, usual: Floats) -> Floats:
    """Each cost by its usual; 1 where nothing is usual but that nothing comes."""
    with np.errstate(invalid="ignore"):
        times = np.where(np.isfinite(usual), cost / usual, 1.0)
    return np.clip(times, 1.0 / COST_MAX, COST_MAX)


def _median_of_others(line: Ints, value: Floats, cell: int) -> float:
    """The median of the other cells of a cell's line; 0 if there are none."""
    others = line == line[cell]
    others[cell] = False
    return _median(value[others]) if others.any() else 0.0


def _times(times: float) -> str:
    return "does not arrive at all" if times >= COST_MAX / 2 else f"takes {times:.1f} times the usual"


def _polish(
    receivers: Ints, senders: Ints, value: Floats, nodes: int, hot: float, limits: Limits
) -> tuple[Floats, Floats, Floats]:
    """What hot rows and hot columns add to the logarithm of the cost, 0 for the others, and what is left in each cell.

    A line is hot when most of its cells are warm, halfway to hot, and their median is nearly hot. The most evident one
    is swept first: of two slow senders among four nodes, every receiver's row is mostly warm too, but not as a whole.
    """
    effects, lines, left = (np.zeros(nodes), np.zeros(nodes)), (receivers, senders), value.copy()
    for _ in range(2 * nodes):
        best: tuple[float, float, int, int] | None = None
        for side, line in enumerate(lines):
            cells = np.bincount(line, minlength=nodes)
            warm = np.bincount(line, weights=left > hot / 2, minlength=nodes)
            share = warm / np.maximum(cells, 1)
            able = (cells >= 2) & (share > limits.hot_share) & (effects[side] == 0)
            for node in map(int, np.flatnonzero(able)):
                if _median(left[line == node]) > LINE_SHARE * hot:
                    best = max(best or (0.0, 0.0, 0, 0), (float(share[node]), float(cells[node]), side, node))
        if best is None:
            break
        _, _, side, node = best
        effect = _median(left[lines[side] == node])
        effects[side][node] = effect
        left[lines[side] == node] -= effect
    return effects[0], effects[1], left


def _median(values: Floats) -> float:
    """The lower one of two, so that one fault in two cells is not the line's."""
    return float(np.sort(values)[(len(values) - 1) // 2])
