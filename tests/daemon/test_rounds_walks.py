"""Whatever happens to agents, daemons and collectors, in whatever order: nobody shares a rank, and the job goes on."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from tests.agents import LOST_AFTER_S, Job

from ckptd.ckpt.rounds import Agent, Standing
from ckptd.daemon.launch import Launch
from ckptd.daemon.launch_events import AgentCame, AgentEnded, RestartAsked
from ckptd.daemon.rounds import STRAGGLER_S, Rounds

NODES, MINIMUM = 4, 2


class Walk:
    """A job, and what its agents themselves know: that is kept while their daemons come and go."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.job = Job(NODES, MINIMUM, self.rng.choice((3, 4)), last_call_s=0.0)
        self.agents: dict[int, Agent] = {}
        self.made = 0
        for node in range(NODES):
            self.start(node)

    def start(self, node: int) -> None:
        """A new agent, which joins."""
        self.made += 1
        agent = Agent(f"agent-{self.made}", 0, f"host-{node}", 1, MINIMUM, self.job.maximum)
        self.agents[node] = agent
        self.join(node)

    def join(self, node: int) -> None:
        agent = self.agents[node]
        self.agents[node] = replace(agent, join=agent.join + 1, place=None)
        self.call(node)

    def call(self, node: int) -> Standing:
        """The agent calls its daemon, and joins anew where it has to."""
        half, agent = self.job.launches[node], self.agents[node]
        assert half.came(AgentCame(0, agent, pid=1), self.job.ledger, self.job.now) is None
        self.job.tell()
        stands = half.standing(agent.name, self.job.ledger)
        if stands.state == "member":
            self.agents[node] = replace(agent, place=stands.place)
        return stands

    def poll(self, node: int) -> None:
        if node in self.agents and node not in self.job.lost and self.call(node).state == "over":
            self.join(node)

    def step(self) -> None:
        """One thing happens, and some agents notice what they should."""
        node = self.rng.randrange(NODES)
        self.rng.choice((self.kill, self.lose, self.restart_daemon, self.ask, self.forget, self.come_back))(node)
        self.job.passes(self.rng.choice((0.0, 0.5, LOST_AFTER_S)))
        for other in self.rng.sample(range(NODES), self.rng.randrange(NODES + 1)):
            self.poll(other)
        self.check()

    def kill(self, node: int) -> None:
        if node in self.agents and node not in self.job.lost:
            self.job.launches[node].ended(AgentEnded(self.agents.pop(node).name, "gone"))

    def lose(self, node: int) -> None:
        self.job.lost.add(node)
        self.agents.pop(node, None)

    def restart_daemon(self, node: int) -> None:
        self.job.launches[node] = Launch(node, NODES)

    def ask(self, node: int) -> None:
        self.job.launches[node].ask(RestartAsked(0, "why not"), self.job.ledger)

    def forget(self, _node: int) -> None:
        """A collector without any memory."""
        self.made += 1
        self.job.rounds = Rounds(f"boot-{self.made}", LOST_AFTER_S)

    def come_back(self, node: int) -> None:
        if node in self.job.lost:
            self.job.lost.discard(node)
            self.job.launches[node] = Launch(node, NODES)
        if node not in self.agents:
            self.start(node)

    def check(self) -> None:
        """No two agents have one rank of a round."""
        seats = [
            (agent.place.number, agent.place.key, agent.place.rank) for agent in self.agents.values() if agent.place
        ]
        assert len(set(seats)) == len(seats), seats

    def heal(self) -> None:
        """Everything comes back, and everybody does what it is told."""
        for node in range(NODES):
            self.come_back(node)
        for _ in range(8):
            for node in range(NODES):
                self.poll(node)
            self.job.passes(STRAGGLER_S / 4)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_nobody_shares_a_rank_and_in_the_end_all_seats_are_taken(first: int) -> None:
    """Seats: as many as --nnodes allows; the others are spares."""
    for seed in range(first, first + 10):
        walk = Walk(seed)
        for _ in range(25):
            walk.step()
        walk.heal()
        stands = [walk.call(node) for node in range(NODES)]
        places = [found.place for found in stands if found.state == "member"]
        assert sorted(place.rank for place in places if place) == list(range(walk.job.maximum)), (seed, stands)
        assert len({(place.number, place.key) for place in places if place}) == 1, seed
        assert [found.state for found in stands if found.state != "member"] == ["spare"] * (NODES - len(places)), seed
