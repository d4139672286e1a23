"""The local service: whatever is asked on the socket, the daemon answers it and goes on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cluster import daemon_here, fill, shm_dir, until
from tests.payload import JOB, bytes_of

from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, DaemonUnavailable, MemoryBudgetError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import Version
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.rpc import LOCAL, METHODS
from ckptd.daemon.driver import Driver
from ckptd.daemon.node import Node
from ckptd.daemon.segments import Segments

SIZE = 300_000


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    with shm_dir() as folder:
        yield Config(job=JOB, run_dir=tmp_path / "run", segment_dir=folder / "s", slots=2).validate()


@pytest.fixture
def daemon(config: Config) -> Iterator[Driver]:
    with daemon_here(config) as driver:
        yield driver


@pytest.fixture
def channel(config: Config, daemon: Driver) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{config.run_dir / 'ckptd.sock'}") as made:
        yield made


@pytest.fixture
def client(config: Config, daemon: Driver) -> Iterator[Client]:
    made = Client(config.run_dir, JOB)
    yield made
    made.close()


def capture(client: Client, step: int) -> Version:
    """A life with one snapshot."""
    client.attach(rank=0, world=1, local_world=1)
    version = Version(client.decide(world=1).epoch, step)
    client.join(version.epoch)
    slot = client.begin(version, SIZE)
    assert slot is not None
    fill(slot, bytes_of(version, 0, SIZE))
    client.commit(slot, version)
    assert client.wait(version, "sealed", 20.0) == "sealed"
    return version


def test_the_socket_is_private(config: Config, daemon: Driver) -> None:
    """Socket 0600 in a directory 0700; it is gone when the daemon is."""
    path = config.run_dir / "ckptd.sock"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_dead_socket_is_replaced(config: Config) -> None:
    """What a killed daemon left in the run directory does not hinder the next one; an orderly end leaves no socket."""
    config.run_dir.mkdir()
    path = config.run_dir / "ckptd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with daemon_here(config):
        client = Client(config.run_dir, JOB)
        until(lambda: client.document("Status")["ready"], "ready")
        client.close()
    assert not path.exists()


def test_health(channel: grpc.Channel) -> None:
    """The standard health service says that it serves."""
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20.0)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


numbers = st.sampled_from([0, 1, 2, 77, 2**20, 2**31, 2**32 - 1])
large = st.sampled_from([0, 1, 5, 2**31, 2**46, 2**53, 2**63, 2**64 - 1])
sizes = st.sampled_from([0, 5, 2**45, 2**46, 2**63, 2**64 - 1])
named = st.none() | st.builds(pb.Version, epoch=large, step=large)
jobs = st.sampled_from([JOB, "", "other", "../x", "\0"])
requests = st.one_of(
    st.tuples(
        st.just("Attach"),
        st.builds(pb.AttachRequest, job=jobs, rank=numbers, world=numbers, local_world=numbers, pid=large),
    ),
    st.tuples(st.just("Join"), st.builds(pb.JoinRequest, rank=numbers, epoch=large)),
    st.tuples(st.just("Decide"), st.builds(pb.DecideRequest, job=jobs, world=numbers, fresh=st.booleans())),
    st.tuples(st.just("Gather"), st.builds(pb.GatherRequest, version=named)),
    st.tuples(st.just("Release"), st.builds(pb.GatherRequest, version=named)),
    st.tuples(st.just("Begin"), st.builds(pb.BeginRequest, rank=numbers, version=named, size=sizes)),
    st.tuples(st.just("Commit"), st.builds(pb.CommitRequest, rank=numbers, slot=numbers, version=named)),
    st.tuples(
        st.just("Abort"),
        st.builds(pb.AbortRequest, rank=numbers, slot=numbers, version=named, reason=st.text(max_size=9)),
    ),
    st.tuples(
        st.just("Wait"),
        st.builds(
            pb.WaitRequest,
            version=named,
            level=st.sampled_from(["captured", "sealed", "", "x"]),
            timeout_s=st.sampled_from([0.0, -1.0, float("nan"), -float("inf")]),
        ),
    ),
    st.tuples(st.just("Reserve"), st.builds(pb.ReserveRequest, rank=numbers, size=st.sampled_from([0, 2**46, 2**63]))),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(request=requests)
def test_hostile_requests(channel: grpc.Channel, daemon: Driver, request: tuple[str, Any]) -> None:
    """Any numbers and names in any request are answered or refused in words; the node lives and keeps its rules."""
    name, message = request
    kinds: Any = METHODS[name]
    call = channel.unary_unary(f"/{LOCAL}/{name}", kinds[0].SerializeToString, kinds[1].FromString)
    known = True
    try:
        call(message, timeout=20.0)
    except grpc.RpcError as error:
        known = isinstance(error, grpc.Call) and error.code() != grpc.StatusCode.UNKNOWN and bool(error.details())
    assert known
    daemon.look(lambda node: node.check_invariants())


def test_bytes_that_are_no_message(channel: grpc.Channel, daemon: Driver) -> None:
    """A request that can't be parsed is refused, and the daemon goes on."""
    call = channel.unary_unary(f"/{LOCAL}/Begin", None, None)
    with pytest.raises(grpc.RpcError):
        call(b"\xff" * 100, timeout=20.0)
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{LOCAL}/Nothing", None, None)(b"", timeout=20.0)
    assert daemon.look(lambda node: node.scanned) in (True, False)


def test_a_tmpfs_that_is_too_small(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that does not fit is refused with the numbers; the slot stays free and a smaller one works."""
    client.attach(rank=0, world=1, local_world=1)
    version = Version(client.decide(world=1).epoch, 1)
    client.join(version.epoch)
    for size in (2**45, 2**45):
        with pytest.raises(MemoryBudgetError, match=f"{2 * size} more are needed.* bytes free of .*--shm-size"):
            client.reserve(size)
        with pytest.raises(MemoryBudgetError, match=f"{size} are needed"):
            client.begin(version, size)
        version = Version(version.epoch, version.step + 1)
    capture(client, version.step)


def test_what_a_daemon_can_say_of_itself(client: Client, config: Config) -> None:
    """Status, list, verify and recover are JSON documents that agree with each other and with the event record."""
    version = capture(client, 7)
    name = {"epoch": version.epoch, "step": 7}
    status = client.document("Status")
    assert (status["captured"], status["sealed"], status["persisted"]) == (name, name, None)
    assert status["nodes"][0]["ranks"] == [0]
    assert status["bytes"]["payload"] >= SIZE
    assert client.document("List")["next_restore"] == name
    checked = client.document("Verify")
    assert checked["ok"]
    assert [(row["kind"], row["step"], row["bytes"]) for row in checked["checked"]] == [("slot", 7, SIZE)]
    assert client.document("Recover") == {
        "node": 0, "busy": False, "restorable": name, "missing": [], "ok": True, "reason": "",
    }  # fmt: skip
    client.gather(version)
    entries = [json.loads(line) for line in (config.run_dir / "events.jsonl").read_text().splitlines()]
    assert {"ready", "decided", "captured", "sealed", "gathered"} <= {entry["event"] for entry in entries}


def test_a_gather_waits_for_the_others(client: Client, daemon: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a new collector has not heard every node, a gather waits: what is not known yet is not lost."""
    version = capture(client, 1)
    whole = daemon.look(lambda node: node.ledger)
    assert whole is not None
    answers: list[Ledger | None] = [None, None, replace(whole, reports=()), replace(whole, reports=()), whole]

    def look(question: Callable[[Any], object]) -> object:
        ledger = answers.pop(0) if len(answers) > 1 else answers[0]
        return question(SimpleNamespace(ledger=ledger, epoch=1))

    monkeypatch.setattr(daemon, "look", look)
    assert [found.source for found in client.gather(version)] == ["own"]
    assert len(answers) == 1


def test_files_are_made_after_the_scan(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a restarted daemon reads what it found no file is made, which it would find a second time."""
    go_on, scan = threading.Event(), Segments.scan

    def slow(segments: Segments) -> Any:
        assert go_on.wait(20.0)
        return scan(segments)

    monkeypatch.setattr(Segments, "scan", slow)
    with daemon_here(config) as driver:
        client = Client(config.run_dir, JOB)
        client.attach(rank=0, world=1, local_world=1)
        reserving = threading.Thread(target=client.reserve, args=(SIZE, 20.0))
        reserving.start()
        until(lambda: driver.look(lambda node: bool(node.ranks)), "attached")
        assert not list(config.segment_dir.glob("*.safetensors"))
        go_on.set()
        reserving.join(20.0)
        assert len(driver._segments._files._spare) == len(set(driver._segments._files._spare)) == 2
        client.close()


def test_a_bug_in_a_job_ends_the_daemon(daemon: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that fails as it should not ends the process: a daemon never only looks alive."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    def bug(_: object) -> None:
        raise KeyError("x")

    with contextlib.suppress(UnboundLocalError):  # the end does not end this process, so it goes on a little
        daemon._run_job(bug, None)
    assert ended == [70]


def test_a_question_that_fails_hurts_nobody(daemon: Driver) -> None:
    """An error in what is asked of the node is raised where it was asked; the node goes on."""

    def wrong(_: Node) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        daemon.look(wrong)
    assert daemon.look(lambda node: node.config.job) == JOB


def test_a_question_to_a_stuck_daemon(daemon: Driver) -> None:
    """Who asks a node that does not answer is told so after a bounded time."""
    stuck = threading.Event()
    daemon._inbox.put(lambda: assert_set(stuck))
    with pytest.raises(DaemonUnavailable, match="no answer within"):
        daemon.look(lambda node: node.epoch, timeout_s=0.05)
    with pytest.raises(DaemonUnavailable, match="no answer within"):
        daemon.ask(_attach, timeout_s=0.05)
    stuck.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(20.0)


def _attach(ticket: int) -> Any:
    from ckptd.daemon.events import AttachAsked

    return AttachAsked(ticket, 0, 1, 1, os.getpid())


def test_numbers_that_cannot_be_kept(client: Client, daemon: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the tmpfs is too full for the daemon's own small record it goes on, and says so."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(daemon._segments, "remember", full)
    version = capture(client, 1)
    assert client.document("Status")["sealed"]["step"] == version.step
    record = daemon._record._path.read_text()
    assert "remember_failed" in record


def test_calls_after_the_end_are_refused(config: Config) -> None:
    """Who waits for an answer while the daemon is stopped gets an error, not a hang."""
    outcome: list[object] = []
    with daemon_here(config) as driver:
        until(lambda: driver.look(lambda node: node.scanned), "ready")
        client = Client(config.run_dir, JOB, timeout_s=20.0)
        client.attach(rank=0, world=1, local_world=1)

        def wait() -> None:
            try:
                outcome.append(client.wait(Version(9, 9), "sealed", 60.0))
            except CkptdError as error:
                outcome.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
    waiter.join(20.0)
    client.close()
    assert isinstance(outcome[0], DaemonUnavailable)
