"""The court's bailiff: asks the policy what to do about a verdict, and says what the agents have to be asked for. Pure.

It acts on a life only while the round of agents that this life belongs to goes on: what agents see by themselves (a rank
that dies, a node that is lost) they act on before a verdict is there, and the next round is none of its business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import Version
from ckptd.ckpt.rounds import GIVEN_UP_EXIT, REASON_CHARS, isolated
from ckptd.daemon.launch_events import BarAsked, RestartAsked
from ckptd.daemon.watch.policy import NOWHERE, Act, Costs, Decision, Facts, Policy
from ckptd.daemon.watch.verdicts import Syndrome, Verdict, several

AGENTS_S = 2.0
"""So long agents have to see a rank's death themselves: ckptd's do within 0.1 s, and they count whose failure it was."""
AGAIN_S = 5.0
"""After so long what was asked for, and has not come about, is asked for again."""
RESTARTS = frozenset({Act.RESTART, Act.ISOLATE})
ACTIVE = RESTARTS | {Act.GIVE_UP}


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The collector that this one has come after."""

    ledger: Ledger
    """The last one of it that came here."""
    heard: float
    """When that was, on the clock of the verdicts."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the collector's node knows of the job beside the sightings, at one moment."""

    ledger: Ledger | None = None
    breach: tuple[tuple[int, str], float] | None = None
    """The `order` of the last round that it found over, and when, on the clock of the verdicts."""
    lost_after_s: float = 2.0
    """A node that has been silent for so long counts as lost in the ledger."""
    before: Predecessor | None = None
    """None where this node has led from the start."""
    gone: Mapping[int, float] = field(default_factory=dict)
    """By node that counts as lost: since when it does, on the clock of the verdicts."""

    def ranks_lost(self, epoch: int) -> dict[int, int]:
        """By rank of that life, its node: of the nodes that are lost since the collector before this one named them."""
        if self.before is None or self.ledger is None:
            return {}
        lost = [report for report in self.before.ledger.reports if report.node in self.ledger.lost]
        return {
            captures.rank: report.node for report in lost for captures in report.captures if captures.epoch == epoch
        }


@dataclass(frozen=True, slots=True)
class Action:
    """What was decided about a verdict, and what is done about it."""

    decision: Decision
    done: str
    """In words."""
    ends_life: bool
    """Whether the life is at its end by that: another one is to come, or none."""


@dataclass(frozen=True, slots=True)
class Errand:
    """Something that is to be asked for on behalf of an incident (0: of none): of the agents, or of who decides what is
    restored."""

    incident: int
    event: RestartAsked | BarAsked
    due: float
    asked: bool = False
    """Whether it was asked for before."""

    @property
    def is_restart(self) -> bool:
        """Whether it is done when the round of its life is over, whoever has seen to that."""
        event = self.event
        return isinstance(event, RestartAsked) and not (event.admit or event.isolate or event.give_up)

    @property
    def outlives(self) -> bool:
        """Whether it is still to be asked for when the next life has begun."""
        return isinstance(self.event, RestartAsked) and bool(self.event.admit)


class Bailiff:
    """Remembers what was done over all lives of the job while this node is the collector. Times of the verdicts' clock."""

    def __init__(self, act: str = "restart", policy: Policy | None = None) -> None:
        """`act`: `restart`, or `advise` to do nothing but say what should be done."""
        self._advises = act == "advise"
        self._policy = policy or Policy(Costs())
        self._life: tuple[int, tuple[int, str] | None] = (0, None)
        """The newest life, and the round that its trainers were started for; None without agents."""
        self._ended = 0
        """The newest life whose end was decided or advised."""
        self._errands: list[Errand] = []

    def begins(self, epoch: int, scene: Scene) -> None:
        """Ranks of this life were seen. The first time, the newest round is theirs; of a life that the collector before has
        seen, the one that was the newest then: the next one may have been formed already."""
        if epoch > self._life[0]:
            before = scene.before.ledger if scene.before else None
            ledger = before if before and epoch in before.lives() else scene.ledger
            round_ = ledger.round if ledger else None
            self._life = (epoch, round_.order if round_ else None)
            self._errands = [errand for errand in self._errands if errand.outlives]

    def lost(self, node_of: Sequence[int], epoch: int, scene: Scene, now: float) -> list[Verdict]:
        """The verdict that the daemons' own membership gives, sooner than the judge: members of the life's round are lost,
        and it is over for that. `node_of[r]` is the node of rank r."""
        nodes = sorted(set(node_of) & set(scene.ledger.lost if scene.ledger else ()))
        if not nodes or not self._agents(epoch, scene) or not self._over(epoch, scene):
            return []
        silent_s, what = self._silence(nodes, scene, now)
        reason = f"{what} for {silent_s:.1f} s, more than {scene.lost_after_s:g} s"
        ranks = tuple(rank for rank, node in enumerate(node_of) if node in nodes)
        evidence = (("silent_s", silent_s),)
        return [Verdict(Syndrome.NODE_LOST, reason, ranks=ranks, nodes=tuple(nodes), evidence=evidence, epoch=epoch)]

    def _silence(self, nodes: Sequence[int], scene: Scene, now: float) -> tuple[float, str]:
        """For how long lost nodes have been silent, and who says so."""
        before, me = scene.before, scene.ledger.collector if scene.ledger else 0
        if before and before.ledger.collector in nodes:
            gone = before.ledger.collector
            what = f"node {me} has taken over as collector: it has not heard node {gone}, the collector before,"
            others = [node for node in nodes if node != gone]
            return max(0.0, now - before.heard), f"{what} nor {several(others, 'node')}" if others else what
        since = max(0.0, now - min(scene.gone.get(node, now) for node in nodes))
        return scene.lost_after_s + since, f"the collector has not heard {several(nodes, 'node')}"

    def over_since(self, epoch: int, scene: Scene) -> float:
        """Since when the round of this life is over: who goes after that was ended by its agent. Infinity: it goes on."""
        of, at = scene.breach or (None, inf)
        return at if of is not None and self._life == (epoch, of) else inf

    def take(self, incident: int, verdict: Verdict, facts: Facts, scene: Scene, now: float) -> Action:
        """Decide about a verdict, and keep in mind what has to be asked for. Whatever it says, one restart a life."""
        decision = self._decide(verdict, facts, scene, now)
        agents, over = self._agents(verdict.epoch, scene), self._over(verdict.epoch, scene)
        if decision.retreat and not self._advises and scene.ledger and scene.ledger.round:
            # At once: the agents may begin the next life any moment.
            bar = Version(verdict.epoch, decision.retreat.step)
            self._errands.append(Errand(incident, BarAsked(0, decision.retreat.reason[:REASON_CHARS], bar), now))
        if verdict.syndrome is Syndrome.NODE_LOST and agents and over and decision.act not in (Act.IGNORE, Act.GIVE_UP):
            self._ended = verdict.epoch if decision.act in ACTIVE else self._ended
            return Action(decision, f"its place is free for who comes, and the agents restart: {over}", ends_life=True)
        if decision.act not in ACTIVE:
            return Action(decision, "nothing is done", ends_life=False)
        self._ended = verdict.epoch
        if self._advises or not agents:
            why = "this daemon is set to advise" if agents else "no agents of ckptd (`ckptd run`) launch this job"
            return Action(decision, f"advice only: {why}", ends_life=False)
        if decision.act is Act.GIVE_UP and decision.exit_code != GIVEN_UP_EXIT:
            return Action(decision, "nothing: its agents end when they have waited for join_timeout", ends_life=False)
        if decision.act is Act.RESTART and over:
            return Action(decision, f"the agents restart already: {over}", ends_life=True)
        waits = verdict.syndrome is Syndrome.CRASH and decision.act is Act.RESTART
        self._errands.append(Errand(incident, self._event(decision), now + AGENTS_S if waits else now))
        done = f"left to the agents, for {AGENTS_S:g} s" if waits else "the agents are asked"
        return Action(decision, done, ends_life=True)

    def errands(self, now: float) -> list[Errand]:
        """What has to be asked for now. What is not achieved is asked for again; what is, is forgotten."""
        found = [errand for errand in self._errands if errand.due <= now]
        self._errands = [replace(e, due=now + AGAIN_S, asked=True) if e in found else e for e in self._errands]
        return found

    def settled(self, scene: Scene) -> list[tuple[int, str]]:
        """The incidents whose restart needed no asking, and how it came about. Call it before `errands`."""
        over = self._over(self._life[0], scene)
        done = [errand for errand in self._errands if errand.is_restart and over]
        self._errands = [errand for errand in self._errands if errand not in done]
        return [(e.incident, f"the agents restart by themselves: {over}") for e in done if not e.asked]

    def heard(self, errand: Errand, problem: str, now: float) -> str:
        """How asking went ('' or why it was refused); returns that in words for the record."""
        asked = errand.event
        if errand.is_restart:  # it is asked for again until the round is over
            return f"refused: {problem}" if problem else "the agents were asked to restart"
        if isinstance(asked, BarAsked) and problem:  # and this until the next life begins
            return f"to bar {asked.bar} was refused: {problem}"
        self._errands = [other for other in self._errands if other.event != asked]
        if isinstance(asked, BarAsked):
            return f"no life begins from {asked.bar} or a later step of it any more"
        if problem and asked.isolate:
            plain = replace(asked, isolate=(), round=self._life[1])
            self._errands.append(Errand(errand.incident, plain, now))
            return f"to isolate {several(asked.isolate, 'node')} was refused ({problem}): a restart in place instead"
        if problem:
            return f"refused: {problem}"
        if asked.give_up:
            return f"the agents were asked to give up, with exit code {GIVEN_UP_EXIT}"
        return f"{several(asked.isolate or asked.admit, 'node')} {'isolated' if asked.isolate else 'let in again'}"

    def restarted(self, seconds: float) -> None:
        """A restart took so long, from the verdict to the first step: what the next one is held against."""
        self._policy.costs = replace(self._policy.costs, restart_s=max(1.0, seconds))

    # ---- inside -------------------------------------------------------------------------------------

    def _decide(self, verdict: Verdict, facts: Facts, scene: Scene, now: float) -> Decision:
        ledger = scene.ledger
        newest = max(ledger.lives(), default=0) if ledger else 0
        if verdict.epoch < newest:
            said = f"the life of epoch {verdict.epoch} is over; the job is in epoch {newest}"
            return Decision(Act.IGNORE, said, retreat=self._policy.witness(verdict, facts))
        if verdict.epoch <= self._ended:
            return Decision(Act.IGNORE, f"a restart of the life of epoch {verdict.epoch} is decided; one is enough")
        if verdict.syndrome is Syndrome.NODE_LOST and ledger:
            alive = [node for node in verdict.nodes if ledger.report(node)]
            if alive:
                said = f"the reports of {several(alive, 'node')} come as ever, so nobody restarts for that: {verdict.reason}"
                return Decision(Act.WARN, said)
        decision = self._policy.decide(verdict, facts, now)
        if decision.act is Act.ISOLATE and decision.isolate_s and verdict.syndrome is not Syndrome.NODE_LOST:
            self._let_in_later(decision, scene, verdict.epoch, now)
        return decision

    def _let_in_later(self, decision: Decision, scene: Scene, epoch: int, now: float) -> None:
        """An isolation has an end."""
        if not self._advises and self._agents(epoch, scene):
            admit = RestartAsked(0, f"its {decision.isolate_s:.0f} s of isolation are over", admit=decision.nodes)
            self._errands.append(Errand(0, admit, now + decision.isolate_s))

    def _event(self, decision: Decision) -> RestartAsked:
        reason = decision.reason[:REASON_CHARS]
        if decision.act is Act.ISOLATE:
            return RestartAsked(0, reason, isolate=decision.nodes)
        if decision.act is Act.GIVE_UP:
            return RestartAsked(0, reason, give_up=True)
        return RestartAsked(0, reason, round=self._life[1])

    def _agents(self, epoch: int, scene: Scene) -> bool:
        """Whether agents of ckptd launch this life."""
        return scene.ledger is not None and self._life[0] == epoch and self._life[1] is not None

    def _over(self, epoch: int, scene: Scene) -> str:
        """Why the round of this life is over; '' while it goes on."""
        round_ = scene.ledger.round if scene.ledger else None
        if round_ is None or self._life != (epoch, round_.order):
            return "another round is the newest"
        return round_.over if not round_.runs else ""


def facts_of(scene: Scene, step: int, world_nodes: tuple[int, ...], *, origin: int = NOWHERE, stood: int = 0) -> Facts:
    """What the policy must know. `world_nodes`: where the life's ranks are; the others are steps, as in `Facts`."""
    ledger = scene.ledger
    if ledger is None:
        return Facts(step, world_nodes, len(world_nodes), origin, stood)
    kept_out = isolated(ledger.isolations)
    agents = {r.node: r.agent for r in ledger.reports if r.agent and not r.agent.ended and r.node not in kept_out}
    if agents:
        return Facts(step, tuple(agents), max(agent.minimum for agent in agents.values()), origin, stood)
    left = tuple(r.node for r in ledger.reports if r.node not in kept_out)
    return Facts(step, left, len(world_nodes), origin, stood)
