"""Links that lose segments, by the count of the kernels that had to send them again.

The delay matrix does not show them: what a lost segment delays, by a timer of TCP's that is 200 ms at least, are a few
transfers among many that are as fast as ever. A probe is a few segments, so their loss is not of its own making, as the
losses of a transfer may be that fills a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_low

import numpy as np
import numpy.typing as npt

from ckptd.daemon.watch.fleet import joined
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import SAMPLE, Kind, NodeReport
from ckptd.daemon.watch.verdicts import Syndrome, Verdict

Wire = tuple[int, int]
"""A link in both directions: its two nodes, ascending. A lost answer is a lost segment of the other end's, and may have the
question sent again; so a direction can't be blamed alone."""


@dataclass(frozen=True, slots=True)
class _Loss:
    at: float
    probes: int
    """That had been made over the wire by then."""


class Losses:
    """When each wire has lost something lately. Pure."""

    def __init__(self, nodes: int, limits: Limits) -> None:
        self._nodes, self._limits = nodes, limits
        self._probes: npt.NDArray[np.int32] = np.zeros((nodes, nodes), np.int32)
        self._often = np.zeros((nodes, nodes), np.float32)
        """The probes of the last `frame_s`, about: each counts less the older it is."""
        self._often_at = np.full((nodes, nodes), -np.inf, np.float32)
        self._lost: dict[Wire, deque[_Loss]] = {}

    def hear(self, reports: Iterable[NodeReport], now: float) -> None:
        """Take the samples that are possible: of the node's own sending, to another node of the job."""
        new, source = joined([(report.node, report.samples) for report in reports], SAMPLE)
        if not len(new):
            return
        good = (new["kind"] == Kind.LOST) & (new["sender"] == source)
        good &= (new["receiver"] < self._nodes) & (new["receiver"] != new["sender"])
        good &= np.isfinite(new["cost"]) & (new["cost"] >= 0)
        new = new.compress(good)
        ends = np.sort(np.stack([new["sender"], new["receiver"]], axis=1).astype(np.int64), axis=1)
        places = (ends[:, 0], ends[:, 1])
        self._often[places] *= np.exp((self._often_at[places] - now) / self._limits.frame_s)
        self._often_at[places] = now
        for count in (self._probes, self._often):
            np.add.at(count, places, 1)
        for low, high in ends[new["cost"] > 0].tolist():
            losses = self._lost.setdefault((low, high), deque(maxlen=self._limits.lost_of))
            if not losses or now - losses[-1].at >= self._limits.lost_apart_s:
                losses.append(_Loss(now, int(self._probes[low, high])))

    def suspects(self, now: float) -> tuple[Wire, ...]:
        """The links, as (receiver, sender), that have lost anything lately."""
        return tuple(link for low, high in self._lately(now) for link in ((low, high), (high, low)))

    def verdicts(self, now: float) -> list[Verdict]:
        """The nodes most of whose wires lose, and the wires that these do not explain.

        A side that has become bad does not show in all of its wires at once. So a wire is blamed only where its ends' others
        have lost less than half as often.
        """
        lately = self._lately(now)
        bad = {wire for wire, losses in lately.items() if len(losses) >= self._limits.lost_of}
        if not bad:
            return []
        wires = self._measured(now) | bad
        found = []
        while (node := self._side(bad, wires)) is not None:
            own = {wire for wire in wires if node in wire}
            found.append(_of_node(node, len(own & bad), len(own)))
            wires, bad = wires - own, bad - own
        for wire in sorted(bad):
            others = [[len(lately.get(w, ())) for w in wires - {wire} if end in w] for end in wire]
            if all(2 * median_low(counts or [0]) < self._limits.lost_of for counts in others):
                found.append(self._of_wire(wire, lately[wire], now))
        return found

    def _lately(self, now: float) -> dict[Wire, list[_Loss]]:
        """The losses that still count, of each wire that has any; the others are forgotten."""
        since = now - self._limits.frame_s
        counted = {wire: [loss for loss in losses if loss.at >= since] for wire, losses in self._lost.items()}
        self._lost = {wire: self._lost[wire] for wire, losses in counted.items() if losses}
        return {wire: losses for wire, losses in counted.items() if losses}

    def _measured(self, now: float) -> set[Wire]:
        """The wires that are probed so often that they would show it, too."""
        often = self._often * np.exp((self._often_at - now) / self._limits.frame_s)
        return {(int(a), int(b)) for a, b in np.argwhere(often >= self._limits.link_window)}

    def _side(self, bad: set[Wire], wires: set[Wire]) -> int | None:
        """The node that explains most: one of whose wires more than a share is bad, and not just one."""
        best: tuple[float, int, int] | None = None
        for node in {end for wire in bad for end in wire}:
            hot, all_of = (sum(node in wire for wire in some) for some in (bad, wires))
            if hot >= 2 and hot / all_of > self._limits.hot_share:
                best = max(best or (0.0, 0, 0), (hot / all_of, hot, -node))
        return -best[2] if best else None

    def _of_wire(self, wire: Wire, losses: list[_Loss], now: float) -> Verdict:
        low, high = wire
        seconds = now - losses[0].at
        probes = int(self._probes[wire]) - losses[0].probes + 1
        return Verdict(
            Syndrome.COMMUNICATION_SLOW,
            f"of what nodes {low} and {high} send each other some is lost: {len(losses)} times in {seconds:.0f} s and "
            f"{probes} probes; the other links of both are well",
            nodes=wire,
            links=((low, high), (high, low)),
            evidence=(("lost", float(len(losses))), ("probes", float(probes)), ("seconds", seconds)),
        )


def _of_node(node: int, bad: int, wires: int) -> Verdict:
    return Verdict(
        Syndrome.COMMUNICATION_SLOW,
        f"of what node {node} sends and receives some is lost, over {bad} of its {wires} links: its own side, not one link",
        nodes=(node,),
        evidence=(("bad", float(bad)), ("links", float(wires))),
    )
