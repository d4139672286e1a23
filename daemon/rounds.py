"""Which agents train together, and when they have to join anew. Pure; a part of the collector.

A round ends when a member is lost, gone, isolated or joins anew, when somebody wishes it, or when a spare can be let in.
The next one is formed as soon as every member that is left has joined again. Everything follows from the reports, so a
collector may crash, be replaced, or exist twice: what agents say of their places brings a round back that it had no part in,
and where two sides of a cut made a round each, the greater `order` stays and the agents of the other one join anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from ckptd.ckpt import barred as bars
from ckptd.ckpt.barred import Barred
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.rounds import Agent, Isolation, Member, Place, Round, Standing, isolated, merged, newer
from ckptd.daemon.events import Note, note
from ckptd.daemon.machine import Transitions, follow

STRAGGLER_S = 40.0
"""A member that has not joined again for so long is left behind, if enough others have. torchrun by itself takes 30 s to
end a worker that is stopped."""

State = Literal["gathering", "running", "ended"]

TRANSITIONS: Transitions[State] = {
    "gathering": {"form": "running", "end": "ended"},
    "running": {"break": "gathering", "end": "ended"},
    "ended": {"form": "running"},
}


def state_of(round_: Round | None) -> State:
    if round_ is None or (round_.over and not round_.end):
        return "gathering"
    return "ended" if round_.end else "running"


class Rounds:
    """The newest round, who is kept out, and what the next life is not to begin from. The time is an argument."""

    def __init__(self, boot: str, lost_after_s: float) -> None:
        self._boot, self._lost_after_s = boot, lost_after_s
        self.round: Round | None = None
        self.isolations: tuple[Isolation, ...] = ()
        self.barred = Barred()
        self.breach: tuple[tuple[int, str], float] | None = None
        """The `order` of the last round that this collector found over, and when."""
        self._since: dict[str, tuple[object, float]] = {}
        """Since when something has been so, as this collector saw it."""

    def follow(self, ledger: Ledger) -> None:
        """Another collector leads: keep what it has announced, for the case that this one has to go on."""
        self.round = newer(self.round, ledger.round)
        self.isolations = merged(self.isolations, ledger.isolations)
        self.barred = bars.merged(self.barred, ledger.barred)
        self._since.clear()

    def advance(self, facts: Ledger, now: float) -> Ledger:
        """The facts with the round that follows from them."""
        self.isolations = merged(self.isolations, *(report.isolations for report in facts.reports))
        self.barred = bars.merged(self.barred, *(report.barred for report in facts.reports))
        self.round = newer(self.round, recalled(facts, self.round))
        facts = replace(facts, round=self.round, isolations=self.isolations, barred=self.barred)
        if self.round is not None and not self.round.end:
            self._judge(facts, self.round, now)
        if state_of(self.round) != "running":
            self._form(replace(facts, round=self.round), now)
        return replace(facts, round=self.round)

    def _judge(self, facts: Ledger, round_: Round, now: float) -> None:
        over = round_.over or _breach(facts, round_) or self._unsure(facts, round_, now)
        end = _end(facts, round_, over)
        if end is not None:
            self._note_breach(round_, now)
            self._move("end", end)
        elif over and not round_.over:
            self._note_breach(round_, now)
            self._move("break", replace(round_, over=over))

    def _note_breach(self, round_: Round, now: float) -> None:
        if self.breach is None or self.breach[0] != round_.order:
            self.breach = (round_.order, now)

    def _unsure(self, facts: Ledger, round_: Round, now: float) -> str:
        """Why the round is over because of members of whom nothing is known, by now.

        A daemon that was restarted knows its agent again as soon as that one calls, which it does all the time.
        """
        reports = {report.node: report for report in facts.reports}
        unknown = [m.node for m in round_.members if m.node in reports and reports[m.node].agent is None]
        missing = round_.size - len(round_.members)
        all_spoke = len(facts.reports) + len(facts.lost) >= facts.nodes
        if not unknown and not (missing and all_spoke):
            self._since.pop("unsure", None)
            return ""
        if self._lasts("unsure", (), now) < self._lost_after_s:
            return ""
        if unknown:
            return f"the agent of node {unknown[0]} has not called since its daemon was restarted"
        return f"{missing} of the {round_.size} agents are not to be found"

    def _form(self, facts: Ledger, now: float) -> None:
        """Form the next round, if all who should be in it have joined."""
        who, round_ = candidates(facts), facts.round
        if not who or _shortage(who):
            return
        size = min(len(who), _maximum(who))
        if expected(facts):
            if self._lasts("over", round_.order if round_ else (), now) < STRAGGLER_S:
                return
        elif (round_ is None or round_.end) and size < _maximum(who):
            last_call_s = max(agent.last_call_s for agent in who.values())
            if self._lasts("came", frozenset(who), now) < last_call_s:
                return
        chosen = _seated(round_, who)[:size]
        first = who[chosen[0]]
        number = max([round_.number if round_ else 0, *(agent.since - 1 for agent in who.values()), 0]) + 1
        members = tuple(Member(node, who[node].name, who[node].join) for node in chosen)
        self._move("form", Round(number, self._boot, size, members, first.host, first.port))

    def _lasts(self, what: str, so: object, now: float) -> float:
        """For how long it has been `so`."""
        before = self._since.get(what)
        if before is None or before[0] != so:
            before = self._since[what] = (so, now)
        return now - before[1]

    def _move(self, act: str, round_: Round) -> None:
        """Take the act that leads to this round. Raises IllegalAct when the table has none."""
        after = follow(TRANSITIONS, state_of(self.round), act, f"round {round_.number}")
        assert state_of(round_) == after, f"round {round_.number}: {act} leads to {after}, not to {state_of(round_)}"
        self.round = round_
        self._since.clear()

    def check_invariants(self) -> None:
        """A node has one place in a round, and a round no more members than its size."""
        if self.round is not None:
            nodes = [member.node for member in self.round.members]
            assert len(set(nodes)) == len(nodes) <= self.round.size, f"a round of {self.round.size}: {nodes}"


def recalled(facts: Ledger, known: Round | None) -> Round | None:
    """The round that the agents say they have a place in, where that says more than what is known; else None."""
    placed = [(report.node, report.agent, report.agent.place) for report in facts.reports if report.agent]
    newest = max(((place.number, place.key) for _, _, place in placed if place), default=None)
    if newest is None:
        return None
    if known is not None and (newest < known.order or (newest == known.order and len(known.members) == known.size)):
        return None
    seats = {
        place.rank: (Member(node, agent.name, agent.join), place.size)
        for node, agent, place in placed
        if place and (place.number, place.key) == newest
    }
    members = tuple(seats[rank][0] for rank in sorted(seats))
    if known is not None and known.order == newest:
        return replace(known, members=members)
    return Round(newest[0], newest[1], max(size for _, size in seats.values()), members)


def candidates(facts: Ledger) -> Mapping[int, Agent]:
    """The agents that wait for a round, by node."""
    kept_out, round_ = isolated(facts.isolations), facts.round
    members = set(round_.members) if round_ else set()
    return {
        report.node: report.agent
        for report in facts.reports
        if report.agent
        and not report.agent.ended
        and report.node not in kept_out
        and Member(report.node, report.agent.name, report.agent.join) not in members
        and not (round_ and round_.end and report.agent.since <= round_.number)
    }


def expected(facts: Ledger) -> list[int]:
    """The members of the last round that live and have not joined again."""
    round_ = facts.round
    if round_ is None or round_.end:
        return []
    kept_out, reports = isolated(facts.isolations), {report.node: report for report in facts.reports}
    return [
        member.node
        for member in round_.members
        if member.node not in facts.lost
        and member.node not in kept_out
        and _still_there(member, reports.get(member.node))
    ]


def standing(ledger: Ledger | None, node: int, agent: Agent) -> Standing:
    """How the node's agent stands after this ledger."""
    if ledger is None:  # a daemon that has just started keeps nobody from training
        return Standing("member", place=agent.place) if agent.place else Standing("wait", "no collector was heard yet")
    kept_out, round_ = isolated(ledger.isolations), ledger.round
    if node in kept_out:
        return Standing("isolated", kept_out[node])
    if round_ is not None and round_.end and agent.since <= round_.number:
        return Standing("closed", round_.over, end=round_.end)
    me, place = Member(node, agent.name, agent.join), agent.place
    if round_ is not None and me in round_.members:
        if not round_.runs:
            return Standing("over", round_.over)
        if place is None or (place.number, place.key) != round_.order:
            if len(round_.members) < round_.size:  # found again in part: who is before us is not known
                return Standing("wait", f"the members of round {round_.number} to be found again")
            place = Place(round_.number, round_.key, round_.members.index(me), round_.size)
        return Standing("member", place=place, host=round_.host, port=round_.port)
    if place is None:
        return Standing("spare" if round_ is not None and round_.runs else "wait", waits_for(ledger))
    if round_ is None or (place.number, place.key) == round_.order:
        over = round_.over if round_ is not None else ""
        return Standing("over", over) if over else Standing("member", place=place)
    return Standing("over", f"round {round_.number} goes on without node {node}")


def waits_for(ledger: Ledger) -> str:
    """What the agents that have joined are waiting for, in words."""
    who = candidates(ledger)
    if not who:
        return "no agent has joined"
    if ledger.round is not None and ledger.round.runs:
        return f"a place: round {ledger.round.number} has all {ledger.round.size} that it takes"
    late = expected(ledger)
    if late:
        return f"{_nodes(late)} to join again"
    shortage = _shortage(who)
    without = [report.node for report in ledger.reports if report.node not in who]
    said = shortage or f"more than the {len(who)} that have come, for the last call"
    parts = [said, *([f"no agent waits at {_nodes(without)}"] if without else [])]
    parts += [f"{_nodes(ledger.lost)} lost"] if ledger.lost else []
    return "; ".join(parts)


def news_of_rounds(before: Ledger | None, after: Ledger) -> list[Note]:
    """The collector's entries about rounds that were formed or are over since the last ledger."""
    old, new = before.round if before else None, after.round
    if new is None or new == old:
        return []
    same = old is not None and old.order == new.order
    notes = [] if same else [note("round", number=new.number, members=[member.node for member in new.members])]
    if not new.runs and not (same and old is not None and (old.over, old.end) == (new.over, new.end)):
        notes.append(note("round_over", number=new.number, reason=new.over, end=new.end))
    return notes


def _shortage(who: Mapping[int, Agent]) -> str:
    """Why these agents make no round yet."""
    least, most = max(agent.minimum for agent in who.values()), _maximum(who)
    if least > most:
        return (
            f"agents that agree: one wants {least} nodes or more, another {most} or fewer; give all the same --nnodes"
        )
    return f"at least {least} agents, {len(who)} have come" if len(who) < least else ""


def _maximum(who: Mapping[int, Agent]) -> int:
    return min(agent.maximum for agent in who.values())


def _seated(round_: Round | None, who: Mapping[int, Agent]) -> list[int]:
    """The candidates in the order of their group ranks: whoever had one keeps it, so that snapshots are where they were.

    The seats of those who are gone go to the same node's next agent, else to spares; what stays empty is closed up.
    """
    seats: list[int | None] = (
        [member.node if member.node in who else None for member in round_.members] if round_ else []
    )
    spares = [node for node in sorted(who) if node not in seats]
    filled = [seat if seat is not None else (spares.pop(0) if spares else None) for seat in seats]
    return [seat for seat in filled if seat is not None] + spares


def _breach(facts: Ledger, round_: Round) -> str:
    """Why the round can't go on; '' when it can."""
    kept_out, reports = isolated(facts.isolations), {report.node: report for report in facts.reports}
    for report in facts.reports:
        if report.wish and (report.wish.number, report.wish.key) == round_.order:
            return report.wish.reason
    for member in round_.members:
        node, known = member.node, reports.get(member.node)
        if node in kept_out:
            return f"node {node} is isolated: {kept_out[node]}"
        if node in facts.lost:
            return f"node {node} is lost"
        agent = known.agent if known else None
        if agent is None:
            continue  # not heard yet, by this collector or by a restarted daemon
        if agent.name != member.name:
            return f"node {node} has a new agent"
        if agent.ended == "gone":
            return f"the agent of node {node} is gone"
        if agent.join != member.join:
            return f"node {node}: {agent.reason or 'its agent asks for another round'}"
    return _room(facts, round_, reports)


def _room(facts: Ledger, round_: Round, reports: Mapping[int, Report]) -> str:
    """Which spares the round would take in if its agents joined anew; '' when there are none or no room is left."""
    spares = candidates(facts)
    if not spares or len(round_.members) < round_.size:
        return ""
    seated = [reports[member.node].agent for member in round_.members if member.node in reports]
    everybody = [*spares.values(), *(agent for agent in seated if agent)]
    least, most = max(agent.minimum for agent in everybody), min(agent.maximum for agent in everybody)
    fits = round_.size < most and least <= min(most, round_.size + len(spares))
    return f"{_nodes(spares)} can be let in" if fits else ""


def _end(facts: Ledger, round_: Round, over: str) -> Round | None:
    """The round as the one that the job ended with, if it did."""
    for report in facts.reports:
        if report.wish and report.wish.end and (report.wish.number, report.wish.key) == round_.order:
            return replace(round_, over=report.wish.reason, end=report.wish.end)
    agents = {report.node: report.agent for report in facts.reports if report.agent}
    mine = {m.node: agents[m.node] for m in round_.members if m.node in agents and agents[m.node].name == m.name}
    for node, agent in mine.items():
        if agent.ended == "failed" and node not in isolated(facts.isolations):
            return replace(round_, over=f"the agent of node {node} gave up: {agent.reason}", end="failed")
    done = [node for node, agent in mine.items() if agent.ended == "done"]
    left = [m.node for m in round_.members if m.node not in done and m.node not in facts.lost]
    if not done or (left and not over) or len(round_.members) < round_.size:
        return None
    return replace(
        round_, over=f"{_nodes(done)} had finished the job: {over}" if left else "the job is done", end="done"
    )


def _still_there(member: Member, report: Report | None) -> bool:
    """Whether the member may join again; so it may as long as nothing else is known."""
    agent = report.agent if report else None
    return agent is None or (agent.name == member.name and agent.join == member.join and not agent.ended)


def _nodes(nodes: Iterable[int]) -> str:
    names = [str(node) for node in sorted(nodes)]
    return f"node {names[0]}" if len(names) == 1 else f"nodes {', '.join(names[:-1])} and {names[-1]}"
