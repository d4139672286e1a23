"""What an agent, and `ckptd restart`, are told by a real daemon on its socket."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster import daemon_here, fill, shm_dir, until
from tests.payload import JOB, bytes_of

from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import AccessError, CkptdError, UsageError
from ckptd.ckpt.model import Version
from ckptd.ckpt.rounds import Agent, Standing
from ckptd.daemon import cli
from ckptd.daemon.driver import Driver

Command = Callable[..., tuple[int, str]]
AGENT = Agent("a", 1, "127.0.0.1", 4321, 1, 1)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    with shm_dir() as folder:
        yield Config(job=JOB, run_dir=tmp_path / "run", segment_dir=folder / "s", slots=2).validate()


@pytest.fixture
def daemon(config: Config) -> Iterator[Driver]:
    with daemon_here(config) as driver:
        yield driver


@pytest.fixture
def client(config: Config, daemon: Driver) -> Iterator[Client]:
    made = Client(config.run_dir, JOB)
    until(lambda: made.document("Status")["ready"], "the daemon ready")
    yield made
    made.close()


@pytest.fixture
def command(
    config: Config, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`ckptd restart` in this process: exit code and what it said."""

    def call(*arguments: str) -> tuple[int, str]:
        where = ("--run-dir", str(config.run_dir), "--job", JOB)
        monkeypatch.setattr(sys, "argv", ["ckptd", "restart", *where, *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), " ".join((out + err).split())

    return call


def joined(client: Client, agent: Agent = AGENT) -> Standing:
    """How the agent stands once it has a seat."""
    found = client.tend(agent, wait_s=10.0)
    assert found.state == "member", found
    return found


def test_an_agent_gets_a_seat_its_store_and_no_second_one_beside_it(client: Client) -> None:
    """The store is where the first member listens."""
    stands = joined(client)
    assert stands.place is not None
    assert (stands.place.rank, stands.place.size, stands.host, stands.port) == (0, 1, "127.0.0.1", 4321)
    with pytest.raises(AccessError, match="has an agent already"):
        client.tend(replace(AGENT, name="b"))
    with pytest.raises(UsageError, match="this job's daemons are 1"):
        client.tend(replace(AGENT, minimum=2, maximum=2))


def test_who_has_left_is_not_let_in_under_the_same_name(client: Client) -> None:
    joined(client)
    client.leave("a", "done")
    with pytest.raises(AccessError, match="has left the job"):
        client.tend(AGENT)
    joined(client, replace(AGENT, name="b"))  # the next job


def test_a_restart_is_a_word_to_the_agent_and_a_new_round_when_it_joins_again(client: Client, command: Command) -> None:
    first = joined(client)
    assert command("--reason", "a test") == (0, "all trainers are restarted: a test")
    assert client.tend(replace(AGENT, place=first.place)) == Standing("over", "a test")
    second = joined(client, replace(AGENT, join=2))
    assert first.place is not None
    assert second.place is not None
    assert second.place.number == first.place.number + 1
    launch = client.document("Status")["launch"]
    assert (launch["round"], launch["state"], launch["members"]) == (second.place.number, "running", [0])


def test_a_restart_of_nothing_and_of_nodes_that_are_not_there_is_refused(client: Client, command: Command) -> None:
    """One line that says what is there."""
    code, said = command()
    assert code == 2
    assert "no agents train here" in said
    joined(client)
    for arguments, expected in (
        (("--isolate", "7"), "node 7 in a job of 1 nodes"),
        (("--isolate", "0"), "0 agents are left and 1 are needed"),
        (("--isolate", "0", "--admit", "0"), "can't be isolated and let in at once"),
        (("--isolate", "-1"), "0 or more"),
    ):
        code, said = command(*arguments)
        assert (code, expected in said) == (2, True), said
    assert client.tend(AGENT).state == "member"


def test_a_job_that_is_given_up_says_so_to_its_agent(client: Client, command: Command) -> None:
    first = joined(client)
    code, said = command("--give-up", "--reason", "no progress", "--json")
    assert (code, json.loads(said)["given_up"]) == (0, True)
    assert client.tend(replace(AGENT, place=first.place)) == Standing("closed", "no progress", end="given up")


def test_nonsense_from_an_agent_is_refused_by_name(client: Client) -> None:
    """The daemon goes on."""
    for agent, expected in (
        (replace(AGENT, name="no name"), "a name of 7 characters"),
        (replace(AGENT, minimum=2, maximum=1), "an agent for 2 to 1 nodes"),
        (replace(AGENT, host="a\nb"), "a host of 3 characters"),
    ):
        with pytest.raises(CkptdError, match=expected):
            client.tend(agent)
    with pytest.raises(CkptdError, match="wait_s 1000"):
        client.tend(AGENT, wait_s=1000.0)
    joined(client)


def capture(client: Client, *steps: int) -> None:
    """A life of one rank that captures these steps."""
    client.attach(rank=0, world=1, local_world=1)
    made = client.decide(world=1)
    client.join(made.epoch)
    for version in (Version(made.epoch, step) for step in steps):
        slot = client.begin(version, len(bytes_of(version, 0)))
        assert slot is not None
        fill(slot, bytes_of(version, 0))
        client.commit(slot, version)


def test_the_next_start_is_from_the_step_that_is_asked_for_until_it_is_the_newest_again(
    client: Client, command: Command
) -> None:
    """Without agents for the next start, with agents by a restart. A step that is not there is refused."""
    capture(client, 1, 2)
    until(lambda: client.document("Status")["sealed"] == {"epoch": 1, "step": 2}, "a seal")
    assert command("--from-step", "1", "--reason", "nan") == (0, "the next start is from step 1: nan")
    made = client.decide(world=1)
    assert (made.version, "passed over step 2" in made.reason) == (Version(1, 1), True)
    assert command("--from-newest", "--reason", "no nan") == (0, "no step is passed over any more: no nan")
    assert client.decide(world=1).version == Version(1, 2)

    first = joined(client)
    code, said = command("--from-step", "1", "--reason", "nan")
    assert (code, said) == (0, "the next start is from step 1; all trainers are restarted: nan")
    assert client.tend(replace(AGENT, place=first.place)) == Standing("over", "nan")
    for arguments, expected in (
        (("--from-step", "7"), "step 7 can't be restored"),
        (("--from-step", "1", "--from-newest"), "go alone"),
        (("--from-step", "1", "--give-up"), "go alone"),
    ):
        code, said = command(*arguments)
        assert (code, expected in said) == (2, True), said
