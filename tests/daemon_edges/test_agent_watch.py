"""An agent's end is noticed, and the trainers that it leaves behind are ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import until

from ckptd.daemon.agent_watch import AgentWatch
from ckptd.daemon.launch_events import AgentEnded

Process = subprocess.Popen[bytes]


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """An agent and two trainers that live until they are killed."""
    made = [subprocess.Popen([sys.executable, "-S", "-E", "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    yield made
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def watch() -> Iterator[AgentWatch]:
    made = AgentWatch()
    yield made
    made.close()


def ended(watch: AgentWatch) -> list[AgentEnded]:
    return until(watch.gone, "the agent's end noticed", 10.0)


def test_trainers_end_with_their_agent(watch: AgentWatch, processes: list[Process]) -> None:
    """Also one that is stopped."""
    agent, *trainers = processes
    watch.add("a", agent.pid, [trainer.pid for trainer in trainers])
    assert watch.gone() == []
    trainers[1].send_signal(signal.SIGSTOP)
    agent.kill()
    assert ended(watch) == [AgentEnded("a", "gone", "its process has ended")]
    assert [trainer.wait(10.0) for trainer in trainers] == [-signal.SIGKILL] * 2
    assert watch.gone() == []


def test_trainers_that_were_replaced_are_let_alone(watch: AgentWatch, processes: list[Process]) -> None:
    """Only what the agent named last is its own."""
    agent, old, new = processes
    watch.add("a", agent.pid, [old.pid])
    watch.add("a", agent.pid, [new.pid])
    agent.kill()
    ended(watch)
    assert new.wait(10.0) == -signal.SIGKILL
    assert old.poll() is None


def test_a_new_agent_is_watched_in_place_of_the_old_one(watch: AgentWatch, processes: list[Process]) -> None:
    old, new, trainer = processes
    watch.add("a", old.pid, [trainer.pid])
    watch.add("b", new.pid, [])
    old.kill()
    old.wait(10.0)
    assert watch.gone() == []
    new.kill()
    assert [event.name for event in ended(watch)] == ["b"]
    assert trainer.poll() is None


def test_a_process_that_is_gone_already_is_no_trouble(watch: AgentWatch, processes: list[Process]) -> None:
    """As trainer it is left out; nothing is opened for it."""
    agent, gone, _ = processes
    gone.kill()
    gone.wait(10.0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    watch.add("a", agent.pid, [gone.pid, 0, -1])
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
