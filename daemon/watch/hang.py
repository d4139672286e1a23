"""Hangs: who keeps the job waiting. Blame follows the waits through overlapping groups until nobody is waited for who waits.

Source: C4's syndromes 1 and 2, with the graph walk that the design adds: a rank that has not entered a collective because it
waits in another is a victim. Collectives are entered in one order everywhere, so the walk ends; if it goes in a circle, the
order was broken, and everybody in the circle is suspected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from ckptd.daemon.watch.delays import Delays
from ckptd.daemon.watch.fleet import Flags, Fleet, Floats
from ckptd.daemon.watch.layout import Ints
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.losses import Losses
from ckptd.daemon.watch.observations import NOWHERE, Phase, Process
from ckptd.daemon.watch.verdicts import Confidence, Syndrome, Verdict, several

ASK_S = 3.0
"""How long the judge waits for the probes that it asks for before it names a whole group."""
ASKED_MAX = 256
FEW = 8
"""Among so many nodes a collective may use any link (trees, all-to-all)."""
STUCK = (Process.STOPPED, Process.DEAF)
Links = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Waits:
    """Who waits for whom, as the counters say."""

    blocked: Flags
    """By rank: it has entered a collective that some member has not."""
    held: Flags
    """By membership: its rank is in a collective that all have entered, and that does not end."""
    missing: Flags
    """By rank: somebody waits for it."""
    edges: tuple[tuple[Ints, Ints], ...]
    """By group: the ranks that wait, and the ranks that they wait for."""


def waits(fleet: Fleet) -> Waits:
    """The waits of this moment. Only their standing still means anything: in a running job they come and go."""
    layout = fleet.layout
    blocked, missing = np.zeros(layout.world, bool), np.zeros(layout.world, bool)
    pending = fleet.pending()
    if not pending.any():
        return Waits(blocked, np.zeros(len(pending), bool), missing, ())
    least = np.minimum.reduceat(fleet.entered, layout.starts[:-1])[layout.group]
    waiting = pending & (fleet.completed >= least)
    edges = []
    for group in np.unique(layout.group[waiting]):
        span = slice(int(layout.starts[group]), int(layout.starts[group + 1]))
        ranks, entered = layout.rank[span], fleet.entered[span]
        behind = entered < int(entered[waiting[span]].max())
        edges.append((ranks[waiting[span]], ranks[behind]))
        blocked[ranks[waiting[span]]] = True
        missing[ranks[behind]] = True
    return Waits(blocked, pending & ~waiting, missing, tuple(edges))


def culprits(fleet: Fleet, seen: Waits) -> tuple[Flags, Flags]:
    """By rank: where the waits end, and who waits in a circle.

    A rank whose main thread is known to wait nowhere, or that holds the GIL, does not wait, whatever is under way in
    its name.
    """
    computes = (fleet.rows["waits"] == NOWHERE) | (fleet.rows["process"] == Process.HELD)
    gone = fleet.rows["process"] == Process.GONE
    in_stuck = np.zeros(fleet.layout.world, bool)
    in_stuck[fleet.layout.rank[seen.held]] = True
    stands = np.isin(fleet.rows["process"], STUCK)
    waits_on = (seen.blocked & ~computes & ~stands & ~gone) | (in_stuck & ~stands & ~gone)
    ends = (seen.missing & ~waits_on) | (in_stuck & stands) | (fleet.rows["process"] == Process.STOPPED)
    if ends.any() or in_stuck.any() or not seen.blocked.any():
        return ends, np.zeros_like(ends)
    circle = seen.blocked & seen.missing
    while True:  # whoever waits for nobody in the circle only leads to it
        inside = np.zeros_like(circle)
        for waiting, wanted in seen.edges:
            if circle[wanted].any():
                inside[waiting] = True
        if (circle & inside == circle).all():
            return ends, circle
        circle &= inside


class Hangs:
    """Judges a job that stands still. Remembers since when each rank is the one that all wait for."""

    def __init__(self, world: int, limits: Limits) -> None:
        self._limits = limits
        self._blamed: Floats = np.full(world, np.inf)

    def judge(
        self, fleet: Fleet, delays: Delays, losses: Losses, now: float, iteration_s: float
    ) -> tuple[list[Verdict], Links]:
        """The verdicts, and the links, as pairs (receiver, sender), that should be probed before there is one.

        Nothing while most ranks move, or while those who are waited for are in a phase that excuses them.
        """
        limit = max(self._limits.hang_s, self._limits.hang_iterations * iteration_s)
        stood = now - fleet.moved
        if 2 * int((stood > limit).sum()) <= fleet.layout.world:
            self._blamed[:] = np.inf
            return [], ()
        seen = waits(fleet)
        ends, circle = culprits(fleet, seen)
        excused = fleet.excused(now)
        self._blamed = np.where(ends & ~excused, np.minimum(self._blamed, now), np.inf)
        gone = fleet.rows["process"] == Process.GONE
        if (fleet.rows["exit"][gone] != 0).any():
            return [], ()  # who died first is said as soon as it is known
        unheard = (fleet.silence(now)[fleet.layout.node_of] > self._limits.fresh_s) & ~gone
        busy = now - self._blamed > self._limits.busy_hang * limit
        guilty = ends & ~excused & ~unheard & ((stood > limit) | busy)
        found = [_missing(fleet, guilty, now, limit)] if guilty.any() else []
        if circle.any() and not (circle & excused).any():
            found.append(_circle(fleet, circle, now))
        if found or (ends & (excused | unheard)).any():
            return found, ()  # a collective that others hold up is not judged on its own
        stuck = _stuck_groups(fleet, seen, excused | ~fleet.fresh(now), stood, limit)
        return _stuck(fleet, delays, losses, stuck, now, limit) if len(stuck) else ([], ())


def _missing(fleet: Fleet, guilty: Flags, now: float, limit: float) -> Verdict:
    ranks = tuple(map(int, np.flatnonzero(guilty)))
    first = ranks[0]
    others = int((now - fleet.moved > limit).sum()) - len(ranks)
    stood = float(now - fleet.moved[first])
    return Verdict(
        Syndrome.NON_COMMUNICATION_HANG,
        f"{several(ranks, 'rank')}: no movement for {stood:.1f} s, more than {limit:.1f} s, "
        f"and all waits of {max(0, others)} other ranks end there: {_state(fleet, first)}",
        ranks=ranks,
        nodes=_nodes(fleet, ranks),
        confidence=Confidence.LIKELY,
        evidence=(("stood_s", stood), ("limit_s", limit), ("waiting", max(0, others))),
    )


def _state(fleet: Fleet, rank: int) -> str:
    row = fleet.rows[rank]
    process, phase = Process(row["process"]), Phase(row["phase"])
    words = {
        Process.ALIVE: "it waits in no collective",
        Process.HELD: "its interpreter does not run, something holds the GIL",
        Process.STOPPED: "its process is stopped",
        Process.DEAF: "its process runs, but its handlers do not answer",
        Process.GONE: f"it has left with exit code {row['exit']}",
    }
    return f"{words[process]} (phase {phase.name.lower()}, step {row['step']})"


def _circle(fleet: Fleet, circle: Flags, now: float) -> Verdict:
    ranks = tuple(map(int, np.flatnonzero(circle)))
    return Verdict(
        Syndrome.NON_COMMUNICATION_HANG,
        f"{several(ranks, 'rank')} wait for each other in different groups: they have entered their collectives in "
        "different orders",
        ranks=ranks,
        nodes=_nodes(fleet, ranks),
        confidence=Confidence.LIKELY,
        evidence=(("stood_s", float(now - fleet.moved[list(ranks)].max())),),
    )


def _stuck_groups(fleet: Fleet, seen: Waits, excused: Flags, stood: Floats, limit: float) -> Ints:
    """The groups whose newest collective all have entered, whose members all stand still, none of them with an excuse
    or unheard."""
    layout = fleet.layout
    chosen = [
        group
        for group in np.unique(layout.group[seen.held])
        if not excused[layout.members(group)].any() and (stood[layout.members(group)] > limit).all()
    ]
    return np.array(chosen, np.int64)


def _stuck(
    fleet: Fleet, delays: Delays, losses: Losses, groups: Ints, now: float, limit: float
) -> tuple[list[Verdict], Links]:
    """Why a collective does not end: members that entered another one, links that are down or known to lose, or nothing that
    can be seen."""
    layout = fleet.layout
    members = np.unique(np.concatenate([layout.members(group) for group in groups]))
    stood = float((now - fleet.moved[members]).min())
    verdict = Verdict(
        Syndrome.COMMUNICATION_HANG,
        f"all {len(members)} members of {several(map(int, layout.ids[groups]), 'group')} have entered a collective that has "
        f"not ended for {stood:.1f} s, more than {limit:.1f} s",
        evidence=(("stood_s", stood), ("limit_s", limit), ("groups", float(len(groups)))),
    )
    odd = _out_of_step(fleet, groups)
    if odd:
        reason = f"{verdict.reason}: {several(odd, 'rank')} entered another one than the rest"
        return [replace(verdict, reason=reason, ranks=odd, nodes=_nodes(fleet, odd))], ()
    dead = delays.dead(np.unique(layout.node_of[members]), now)
    if dead:
        ends = sorted({node for link in dead for node in link})
        hub = [node for node in ends if len(ends) > 2 and all(node in link for link in dead)]
        shown = ", ".join(f"{sender} to {receiver}" for receiver, sender in dead[:4])
        reason = f"{verdict.reason}, and nothing comes over {len(dead)} of their links: node {shown}"
        return [replace(verdict, reason=reason, nodes=tuple(hub or ends), links=dead)], ()
    pairs = links_of(layout.node_of, [layout.members(group) for group in groups])
    unknown = [pair for pair in pairs if not delays.tried_since(*pair, now - stood + 1.0)]
    if unknown and stood < limit + ASK_S:
        return [], tuple(unknown[:ASKED_MAX])
    lossy = {link for found in losses.verdicts(now) for link in found.links}.intersection(pairs)
    if lossy:
        ends = sorted({node for link in lossy for node in link})
        told = f"of what {several(ends, 'node')} send each other some is lost, and waits to be sent again"
        return [replace(verdict, reason=f"{verdict.reason}; {told}", nodes=tuple(ends), links=tuple(sorted(lossy)))], ()
    ranks = tuple(map(int, members))
    reason = f"{verdict.reason}; no link of theirs is down, and no process stands"
    return [replace(verdict, reason=reason, ranks=ranks, nodes=_nodes(fleet, ranks), confidence=Confidence.GUESS)], ()


def _out_of_step(fleet: Fleet, groups: Ints) -> tuple[int, ...]:
    """Ranks whose newest collective differs from what most members of their group have entered under the same number."""
    layout = fleet.layout
    odd: set[int] = set()
    for group in groups:
        span = slice(int(layout.starts[group]), int(layout.starts[group + 1]))
        kinds, counts = np.unique(fleet.op[span], return_counts=True)
        same = len(np.unique(fleet.entered[span])) == 1
        if same and len(kinds) > 1 and 2 * counts.max() > counts.sum():
            odd.update(map(int, layout.rank[span][fleet.op[span] != kinds[counts.argmax()]]))
    return tuple(sorted(odd))


def links_of(node_of: Ints, groups: list[Ints]) -> list[tuple[int, int]]:
    """The links that the collectives of groups may use: first those of neighbours in a ring, then all others among a few
    nodes."""
    rings: set[tuple[int, int]] = set()
    others: set[tuple[int, int]] = set()
    for nodes in {tuple(dict.fromkeys(node_of[members].tolist())) for members in groups}:
        ring = [(a, b) for a, b in zip(nodes, nodes[1:] + nodes[:1], strict=True) if a != b]
        rings.update(ring, [(b, a) for a, b in ring])
        if len(nodes) <= FEW:
            others.update(permutations(nodes, 2))
    return sorted(rings) + sorted(others - rings)


def _nodes(fleet: Fleet, ranks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({int(fleet.layout.node_of[rank]) for rank in ranks}))
