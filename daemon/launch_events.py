"""What comes into the node's pure core about agents and rounds. Part of `ckptd.daemon.events`; plain values."""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.ckpt.model import Version
from ckptd.ckpt.rounds import Agent, Ended


@dataclass(frozen=True, slots=True)
class AgentCame:
    """The node's agent calls: for the first time, for another round, or to say that it is still there."""

    ticket: int
    agent: Agent
    pid: int = 0
    """Its process; 0 where it is of another pid namespace, so that only its silence can be noticed."""
    workers: tuple[int, ...] = ()
    """The processes of its trainers."""

    @property
    def watched(self) -> bool:
        return self.pid != 0


@dataclass(frozen=True, slots=True)
class AgentEnded:
    """The agent has left, or its process is gone."""

    name: str
    ended: Ended
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """All agents are to join anew, because of `reason`, without the nodes that are isolated (ticket 0: nobody waits).

    This is how a verdict acts. A round that is over already stays so: asking twice restarts once.
    """

    ticket: int
    reason: str
    isolate: tuple[int, ...] = ()
    admit: tuple[int, ...] = ()
    """Nodes that are let in again."""
    give_up: bool = False
    """End the job instead: a restart would only fail again."""
    round: tuple[int, str] | None = None
    """The round that is meant, by its `order`: refused when another one is the newest by now. None: whichever is."""


@dataclass(frozen=True, slots=True)
class BarAsked:
    """No life is to begin from this version's step or a later one, of lives up to its epoch, because of `reason`.

    It ends no round. None: nothing more is barred.
    """

    ticket: int
    reason: str
    bar: Version | None
    lift: bool = False
    """What was barred before may be restored again."""
    alone: bool = False
    """Only that version is meant: its bytes are not what they were."""
