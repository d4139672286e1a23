"""What a node knows of its own agent, and what it was asked to have restarted or barred. Pure; a part of the node."""

from __future__ import annotations

from dataclasses import replace

from ckptd.ckpt import barred as bars
from ckptd.ckpt.barred import Barred
from ckptd.ckpt.errors import AccessError, CkptdError, UsageError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.rounds import Agent, Isolation, Standing, Wish, isolated, merged
from ckptd.daemon import rounds
from ckptd.daemon.launch_events import AgentCame, AgentEnded, BarAsked, RestartAsked

SILENT_S = 40.0
"""An agent whose process can't be watched counts as gone when it has not called for so long."""


class Launch:
    """The agent of a node in a job of `nodes`, and what was asked here. Methods that may refuse return the error."""

    def __init__(self, node: int, nodes: int) -> None:
        self._node, self._nodes = node, nodes
        self.agent: Agent | None = None
        self.wish: Wish | None = None
        self.isolations: tuple[Isolation, ...] = ()
        self.barred = Barred()
        self._watched = False
        self._heard = 0.0

    def came(self, event: AgentCame, ledger: Ledger | None, now: float) -> CkptdError | None:
        """The agent has called. What only the daemon knows of it is kept from before."""
        said, before = event.agent, self.agent
        if said.minimum > self._nodes:
            return UsageError(
                f"an agent for {said.minimum} nodes or more, but this job's daemons are {self._nodes}; "
                "correct torchrun's --nnodes, or start the daemons with all --nodes"
            )
        if before and before.name == said.name:
            if before.ended:
                return AccessError("this agent has left the job already; start a new one")
            # A place lasts until another round is asked for, so an agent that comes late with an old request is ignored.
            if said.join >= before.join:
                place = before.place if said.join == before.join and not said.place else said.place
                self.agent = replace(said, since=before.since, place=place)
        else:
            if before and not before.ended and self._watched:
                return AccessError(
                    f"node {self._node} has an agent already ({before.name}); end it before you start another"
                )
            if ledger is None and said.place is None:
                return None  # what it has to do with is known once a collector was heard; it calls again
            self.agent = replace(said, since=said.place.number if said.place else _first_of(ledger))
        self._watched, self._heard = event.watched, now
        return None

    def admits(self, name: str) -> bool:
        """Whether an agent of this name may be the node's: it is already, or the last one has ended."""
        before = self.agent
        return before is None or before.name == name or bool(before.ended) or not self._watched

    def ended(self, event: AgentEnded) -> None:
        """The agent has left, or its process is gone."""
        if self.agent and self.agent.name == event.name and not self.agent.ended:
            self.agent = replace(self.agent, ended=event.ended, reason=event.reason)

    def tick(self, now: float) -> None:
        """An agent that can't be watched is gone when it is silent."""
        if self.agent and not self.agent.ended and not self._watched and now - self._heard >= SILENT_S:
            self.agent = replace(self.agent, ended="gone", reason=f"nothing was heard from it for {SILENT_S:.0f} s")

    def follow(self, ledger: Ledger) -> None:
        """Take what the collector says: the agent's place, who is kept out, and what is not to be restored."""
        self.isolations = merged(self.isolations, ledger.isolations)
        self.barred = bars.merged(self.barred, ledger.barred)
        if self.agent and not self.agent.ended:
            stands = rounds.standing(ledger, self._node, self.agent)
            if stands.state == "member":
                self.agent = replace(self.agent, place=stands.place)

    def standing(self, name: str, ledger: Ledger | None) -> Standing:
        """How an agent of this name stands."""
        if self.agent is None or self.agent.name != name:
            return Standing("wait", "no collector was heard yet")
        return rounds.standing(ledger, self._node, self.agent)

    def ask(self, event: RestartAsked, ledger: Ledger | None) -> CkptdError | None:
        """Somebody wants the agents to join anew, or the job to end."""
        problem = self._refuses(event, ledger)
        if problem:
            return UsageError(problem)
        number = max((item.number for item in self.isolations), default=0) + 1
        changed = [Isolation(node, number, True, event.reason) for node in event.isolate]
        changed += [Isolation(node, number, False, event.reason) for node in event.admit]
        self.isolations = merged(self.isolations, changed)
        round_ = ledger.round if ledger else None
        # To isolate a member ends its round by itself; and no round has to end because a spare is isolated or let in.
        if round_ is not None and (event.give_up or not changed):
            self.wish = Wish(round_.number, round_.key, event.reason, "given up" if event.give_up else "")
        return None

    def bar(self, event: BarAsked) -> None:
        """Somebody wants the next life to begin from an older step, or from the newest one again."""
        self.barred = self.barred.lifting() if event.lift else self.barred
        self.barred = self.barred.adding(event.bar, event.reason, alone=event.alone) if event.bar else self.barred

    def _refuses(self, event: RestartAsked, ledger: Ledger | None) -> str:
        """Why what is asked can't be done; '' when it can."""
        named = {*event.isolate, *event.admit}
        if named and max(named) >= self._nodes:
            return f"node {max(named)} in a job of {self._nodes} nodes"
        if set(event.isolate) & set(event.admit):
            return "a node can't be isolated and let in at once"
        if ledger is None:
            return "no collector was heard yet; try again in a moment"
        if event.round is not None and (ledger.round is None or ledger.round.order != event.round):
            return f"round {event.round[0]} is not the newest any more, so its trainers have been restarted already"
        if not event.isolate and not event.admit and ledger.round is None:
            return "no agents train here; they come with `ckptd run` or torchrun --rdzv-backend ckptd"
        out = {*isolated(ledger.isolations), *event.isolate} - {*event.admit}
        left = [r.agent for r in ledger.reports if r.agent and not r.agent.ended and r.node not in out]
        least = max((agent.minimum for agent in left), default=1)
        if event.isolate and len(left) < least:
            return (
                f"without the isolated nodes {len(left)} agents are left and {least} are needed (--nnodes), so nothing "
                "was done; start an agent on a spare node first"
            )
        return ""

    def check_invariants(self) -> None:
        """An agent has to do with nothing that is newer than its place."""
        if self.agent and self.agent.place:
            assert self.agent.since <= self.agent.place.number, f"{self.agent}: a place before its time"


def _first_of(ledger: Ledger | None) -> int:
    """The first round that an agent which comes now may have to do with."""
    round_ = ledger.round if ledger else None
    if round_ is None:
        return 0
    return round_.number + 1 if round_.end else round_.number
