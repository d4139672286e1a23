"""Crash and lost node: who was the first to die. The others die of it, or are ended by their agent.

Source: C4 leaves both to the operating system and the heartbeat; the design, section 8: process gone, node silent.
"""

from __future__ import annotations

import signal

import numpy as np

from ckptd.daemon.watch.delays import Delays
from ckptd.daemon.watch.fleet import Flags, Fleet
from ckptd.daemon.watch.layout import Ints
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import Process
from ckptd.daemon.watch.verdicts import Confidence, Syndrome, Verdict, several

FIRST_HAND = frozenset({signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
"""Nobody dies of these because a peer did: an error on a broken connection raises or aborts. (An agent that ends its
workers by SIGKILL does so after somebody has died.)"""


def lost_nodes(fleet: Fleet, delays: Delays, now: float, limits: Limits) -> list[Verdict]:
    """Nodes that are silent, and that most of those who tried lately do not reach. One witness's word is one vote."""
    silence = fleet.silence(now)
    silent = np.flatnonzero(silence > limits.silent_s)
    if 2 * len(silent) > fleet.layout.nodes:
        fleet.remark("fewer than half of the nodes are heard: it may be the judge that is cut off, so it waits longer")
        silent = np.flatnonzero(silence > limits.silent_alone_s)
    speaking = silence <= limits.fresh_s
    found: list[Verdict] = []
    still = bool((now - fleet.moved[speaking[fleet.layout.node_of]] > limits.fresh_s).all())
    for node in map(int, silent):
        reached, missed = delays.votes(node, speaking, now)
        if missed > reached or (not reached + missed and still and silence[node] > limits.silent_alone_s):
            witnesses = f"{missed} of {reached + missed} nodes that tried do not reach it"
            found.append(
                Verdict(
                    Syndrome.NODE_LOST,
                    f"node {node} has been silent for {silence[node]:.1f} s, more than {limits.silent_s:g} s, and "
                    + (witnesses if missed else "the job stands still"),
                    ranks=tuple(map(int, np.flatnonzero(fleet.layout.node_of == node))),
                    nodes=(node,),
                    confidence=Confidence.LIKELY if missed else Confidence.GUESS,
                    evidence=(("silent_s", float(silence[node])), ("missed", missed), ("reached", reached)),
                )
            )
        elif reached:
            fleet.remark(f"node {node} does not report, but others reach it: its daemon can't reach the judge")
    return found


def crashes(fleet: Fleet, now: float, limits: Limits) -> list[Verdict]:
    """The first to die of a life; nothing until it is sure that no node went before them. Whom its agent has ended, as the
    life was over or a sibling had died, has not died of itself; in doubt it has."""
    gone = fleet.rows["process"] == Process.GONE
    dead = np.flatnonzero(gone & (fleet.rows["exit"] != 0) & (fleet.died - fleet.doubt <= fleet.over_at))
    if not len(dead):
        return []
    ended = _ended_for_a_sibling(fleet, dead, limits)
    all_dead, dead = len(dead), dead[~ended]
    when = fleet.died[dead]
    first = int(dead[np.argmin(when)])
    at_once = -int(fleet.rows["exit"][first]) in FIRST_HAND
    if not at_once and (fleet.node_read <= fleet.died[first] + fleet.doubt[first]).any():
        return []  # a node that has not spoken since may have died before, and the others of it
    near = when <= fleet.died[first] + limits.close_s
    if at_once:
        near &= np.isin(-fleet.rows["exit"][dead].astype(np.int64), [int(number) for number in FIRST_HAND])
    else:
        near &= when <= fleet.died[first] + fleet.doubt[first] + fleet.doubt[dead]
    suspects = tuple(map(int, dead[near]))
    others = len(dead) - len(suspects)
    return [
        Verdict(
            Syndrome.CRASH,
            f"{several(suspects, 'rank')} went first, {_ending(int(fleet.rows['exit'][first]))}, "
            f"{now - fleet.died[first]:.1f} s ago"
            + (f"; {others} more went after" if others else "")
            + (f"; {ended.sum()} more were ended by SIGTERM, as torch ends the siblings" if ended.any() else ""),
            ranks=suspects,
            nodes=_nodes(fleet, suspects),
            confidence=Confidence.CERTAIN if at_once or len(suspects) == all_dead else Confidence.LIKELY,
            evidence=(
                ("exit", int(fleet.rows["exit"][first])),
                ("dead", all_dead),
                ("ago_s", now - fleet.died[first]),
            ),
        )
    ]


def _ended_for_a_sibling(fleet: Fleet, dead: Ints, limits: Limits) -> Flags:
    """Which of the dead have ended by SIGTERM when another one of their node had died otherwise: torch sends it to the
    siblings within milliseconds, so a daemon that looks a little later can't put these deaths in order."""
    terminated: Flags = fleet.rows["exit"][dead] == -signal.SIGTERM
    node, died = fleet.layout.node_of[dead], fleet.died[dead]
    otherwise = np.full(fleet.layout.nodes, np.inf)
    np.minimum.at(otherwise, node[~terminated], died[~terminated])
    return terminated & (died >= otherwise[node] - limits.close_s)


def _ending(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    known = {number.value: number.name for number in signal.Signals}
    return f"by {known.get(-code, f'signal {-code}')}"


def _nodes(fleet: Fleet, ranks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({int(fleet.layout.node_of[rank]) for rank in ranks}))
