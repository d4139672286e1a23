"""The questions of starting jobs: which snapshot to restore, and under which epoch to live. Rank 0 asks, once per life.

A question is answered only when every node has spoken or counts as lost, and dies with the trainer that asked it: a late
answer to nobody would still begin an epoch, and so end the life that has been decided elsewhere meanwhile.
"""

from __future__ import annotations

from ckptd.ckpt.client import Decision
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import StaleStepError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.recovery import Plan, is_settled, plan
from ckptd.daemon import events as ev

LEAP = 1000
"""More lives than a node is likely to have missed, or to have seen while it could not be heard."""
LEAPS_FROM_S, LEAPS_MAX = 1_704_067_200.0, 9_000_000_000
"""Leaps count tenths of seconds since 2024, and end in 2052: epochs have ten digits."""


class Decisions:
    """Who waits for a decision at this node. Pure."""

    def __init__(self, config: Config, boot: str) -> None:
        self._config, self._boot = config, boot
        self.asked = 0
        """How many questions there were."""
        self._waiting: list[tuple[ev.DecideAsked, int]] = []

    def ask(self, event: ev.DecideAsked, seq: int) -> None:
        """Remember a question, which needs a ledger that has seen this node's report `seq`."""
        self.asked += 1
        self._waiting.append((event, seq))

    def abandon(self, rank: int) -> list[ev.Effect]:
        """The trainer of a rank is gone or replaced: what it asked is of no use any more."""
        gone, self._waiting = (self._waiting, []) if rank == 0 else ([], self._waiting)
        reason = "the rank 0 that asked what to restore is gone; its successor asks again"
        return [ev.Answer(asked.ticket, StaleStepError(reason)) for asked, _ in gone]

    def settle(self, ledger: Ledger, epoch: int) -> list[tuple[ev.DecideAsked, Decision]]:
        """The questions that can be answered now; each answer begins an epoch of its own, after `epoch`.

        Node i of n gives the epochs i + 1, i + 1 + n, i + 1 + 2n, ..., as Paxos does with its ballots.
        """
        mine = ledger.report(self._config.node)
        if mine is None or mine.boot != self._boot or not is_settled(ledger):
            return []
        ready = [asked for asked, seq in self._waiting if mine.seq >= seq]
        self._waiting = [(asked, seq) for asked, seq in self._waiting if mine.seq < seq]
        answers = []
        for asked in ready:
            decision = self._decide(ledger, asked, epoch)
            epoch = decision.epoch
            answers.append((asked, decision))
        return answers

    def _decide(self, ledger: Ledger, asked: ev.DecideAsked, epoch: int) -> Decision:
        if asked.fresh:
            chosen = Plan(None, 0, "none", (), "a fresh start was asked for")
        else:
            chosen = plan(ledger, asked.stored, ledger.barred)
        known = [held.version.epoch for report in ledger.reports for held in report.held]
        known += [item.version.epoch for item in asked.stored]
        following = max([epoch, ledger.epoch, *known]) + 1
        if ledger.lost:
            # Who can't be heard may hold images of a later life than we know of, and come back with them. Two lives under
            # one epoch would be mixed, and one that began later under a smaller epoch could seal nothing any more. So this
            # one leaps ahead, to the time: greater than what was decided elsewhere until now.
            tenths = int((asked.clock_s - LEAPS_FROM_S) * 10)
            following = max(following + LEAP, min(tenths, LEAPS_MAX))
        # Two nodes may be asked at once (a rank 0 that was replaced elsewhere still runs): each has numbers of its own.
        following += (self._config.node + 1 - following) % len(self._config.nodes)
        return Decision(following, chosen.version, chosen.rung, _reason(chosen, asked.world), chosen.world)


def _reason(chosen: Plan, world: int) -> str:
    """Why this one. The number of ranks has no say in it: any number can read what any other has captured."""
    if chosen.version is None or chosen.world == world:
        return chosen.reason
    return f"{chosen.reason}; captured by {chosen.world} ranks, for {world} now"
