"""A job's agents as the daemons know them, without daemons: for tests of what becomes of rounds."""

from __future__ import annotations

from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.rounds import Agent, Round, Standing
from ckptd.daemon.launch import Launch
from ckptd.daemon.launch_events import AgentCame, BarAsked, RestartAsked
from ckptd.daemon.rounds import Rounds

LOST_AFTER_S = 2.0


class Job:
    """Some nodes' halves and one collector, without daemons: everybody hears everything at once."""

    def __init__(self, nodes: int, minimum: int = 0, maximum: int = 0, last_call_s: float = 30.0) -> None:
        self.nodes, self.now = nodes, 0.0
        self.minimum, self.maximum, self.last_call_s = minimum or nodes, maximum or minimum or nodes, last_call_s
        self.launches = [Launch(node, nodes) for node in range(nodes)]
        self.lost: set[int] = set()
        self.silent: set[int] = set()
        """Nodes that a new collector has not heard yet."""
        self.joins: dict[str, int] = {}
        self.rounds = Rounds("boot", LOST_AFTER_S)
        self.ledger: Ledger | None = None
        self.tell()

    def tell(self) -> None:
        """Reports go to the collector and its ledger to the nodes, twice, as places are told again."""
        for _ in range(2):
            reports = tuple(
                Report(
                    node,
                    f"boot-{node}",
                    1,
                    agent=half.agent,
                    wish=half.wish,
                    isolations=half.isolations,
                    barred=half.barred,
                )
                for node, half in enumerate(self.launches)
                if node not in self.lost | self.silent
            )
            facts = Ledger(0, "boot", 1, nodes=self.nodes, reports=reports, lost=tuple(sorted(self.lost)))
            self.ledger = self.rounds.advance(facts, self.now)
            self.rounds.check_invariants()
            for node, half in enumerate(self.launches):
                if node not in self.lost:
                    half.follow(self.ledger)
                    half.check_invariants()

    def join(self, node: int, name: str = "", reason: str = "", **other: int) -> CkptdError | None:
        """The node's agent asks for a round."""
        name = name or f"agent-{node}"
        self.joins[name] = self.joins.get(name, 0) + 1
        agent = Agent(
            name, self.joins[name], f"host-{node}", 1000 + node, other.get("minimum", self.minimum),
            other.get("maximum", self.maximum), self.last_call_s, reason=reason,
        )  # fmt: skip
        problem = self.launches[node].came(AgentCame(1, agent, pid=77), self.ledger, self.now)
        self.tell()
        return problem

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell()

    def stands(self, node: int, name: str = "") -> Standing:
        return self.launches[node].standing(name or f"agent-{node}", self.ledger)

    def states(self) -> list[str]:
        return [self.stands(node).state for node in range(self.nodes)]

    @property
    def round(self) -> Round:
        assert self.ledger is not None
        assert self.ledger.round is not None
        return self.ledger.round

    @property
    def members(self) -> list[int]:
        return [member.node for member in self.round.members]

    def ask(self, node: int, event: RestartAsked | BarAsked) -> str:
        """Somebody asks the node's daemon; why that was refused, '' if it was not."""
        if isinstance(event, BarAsked):
            self.launches[node].bar(event)
            return ""
        return str(self.launches[node].ask(event, self.ledger) or "")

    def restart(
        self, node: int, reason: str = "because", isolate: tuple[int, ...] = (), *, give_up: bool = False
    ) -> CkptdError | None:
        """Somebody asks the node's daemon for a restart."""
        problem = self.launches[node].ask(RestartAsked(0, reason, isolate, give_up=give_up), self.ledger)
        self.tell()
        return problem


def running(nodes: int, minimum: int = 0, maximum: int = 0) -> Job:
    """A job in which as many agents as may train do so."""
    job = Job(nodes, minimum, maximum)
    for node in range(nodes):
        job.join(node)
    assert job.round.runs
    return job
