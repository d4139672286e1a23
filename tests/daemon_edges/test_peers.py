"""Letters between daemons over real gRPC: they arrive, newest first, and only from who knows the secret."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.cluster import free_address, until

from ckptd.ckpt import auth
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import AccessError
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.rpc import PEER
from ckptd.ckpt.wire.translate import Letter, letter_out
from ckptd.daemon.peers import Peers, PeerServer

SECRET = b"s" * 32
SHAPE = (2, 1, 8)


class Post:
    """What arrived at a node; `hold` keeps the receiver busy with the first letter until it is set."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, letter: Letter) -> None:
        self.letters.append(letter)
        assert self.hold.wait(20.0)


@pytest.fixture
def configs(tmp_path: Path) -> list[Config]:
    """Two nodes of one job."""
    nodes = tuple(free_address(f"127.76.0.{index + 1}") for index in range(2))
    base = Config(job="j", nodes=nodes, run_dir=tmp_path, segment_dir=tmp_path, secret=SECRET)
    return [replace(base, node=index).validate() for index in range(2)]


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.fixture
def server(configs: list[Config], post: Post) -> Iterator[PeerServer]:
    """Node 1 listens."""
    made = PeerServer(configs[1], "b", post)
    yield made
    made.close()


@pytest.fixture
def opened() -> Iterator[Callable[[Config], Peers]]:
    """Makes senders that are closed at the end."""
    made: list[Peers] = []

    def open_(config: Config) -> Peers:
        made.append(Peers(config))
        return made[-1]

    yield open_
    for peers in made:
        peers.close()


def report(seq: int) -> Report:
    return Report(node=0, boot="b", seq=seq)


@pytest.mark.usefixtures("server")
def test_letters_arrive(configs: list[Config], post: Post, opened: Callable[[Config], Peers]) -> None:
    """A report and a ledger arrive as they were sent."""
    peers = opened(configs[0])
    ledger = Ledger(collector=0, boot="b", seq=9, nodes=2, reports=(report(3),))
    peers.send(1, report(1))
    peers.send(1, ledger)
    until(lambda: len(post.letters) == 2, "both letters")
    assert set(post.letters) == {report(1), ledger}


@pytest.mark.usefixtures("server")
def test_the_newest_letter_wins(configs: list[Config], post: Post, opened: Callable[[Config], Peers]) -> None:
    """While a peer is slow, only the newest letter of each kind waits for it."""
    peers = opened(configs[0])
    post.hold.clear()
    peers.send(1, report(1))
    until(lambda: post.letters, "the first letter")
    for seq in range(2, 50):
        peers.send(1, report(seq))
        peers.send(1, Ledger(collector=0, boot="b", seq=seq, nodes=2))
    post.hold.set()
    until(lambda: len(post.letters) >= 3, "the newest ones")
    assert set(post.letters) == {report(1), report(49), Ledger(collector=0, boot="b", seq=49, nodes=2)}


def test_a_dead_peer_delays_nobody(configs: list[Config], post: Post, opened: Callable[[Config], Peers]) -> None:
    """Letters to a node that does not listen are lost without a sound to the sender; later ones arrive when it is back."""
    peers = opened(configs[0])
    peers.send(1, report(1))
    server = PeerServer(configs[1], "b", post)

    def arrived() -> bool:
        peers.send(1, report(2))
        return report(2) in post.letters

    until(arrived, "a letter after the start")
    server.close()
    post.letters.clear()
    server = PeerServer(configs[1], "b", post)
    until(arrived, "a letter after the restart")
    server.close()


@pytest.mark.usefixtures("server")
def test_a_wrong_secret_is_refused_and_logged(
    configs: list[Config], post: Post, opened: Callable[[Config], Peers], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of a node with another secret arrives, and the log says what to do, once."""
    caplog.set_level(logging.INFO)
    stranger = opened(replace(configs[0], secret=b"x" * 32))

    def complaints() -> list[str]:
        return [
            line for line in caplog.messages if "knows another secret; give every node the same --secret-file" in line
        ]

    stranger.send(1, report(1))
    until(complaints, "the complaint")
    stranger.send(1, report(2))
    friend = opened(configs[0])
    friend.send(1, report(3))
    until(lambda: post.letters, "the friend's letter")
    assert post.letters == [report(3)]
    assert len(complaints()) == 1


@pytest.mark.usefixtures("server")
def test_another_job_is_refused_and_logged(
    configs: list[Config], post: Post, opened: Callable[[Config], Peers], caplog: pytest.LogCaptureFixture
) -> None:
    """A daemon of another job at this address is told which job is served here."""
    caplog.set_level(logging.INFO)
    opened(replace(configs[0], job="other")).send(1, report(1))
    until(lambda: "this daemon serves job 'j', not 'other'" in caplog.text, "the complaint")
    assert not post.letters


class Stranger:
    """Speaks to the server by hand."""

    def __init__(self, config: Config) -> None:
        self._channel = grpc.insecure_channel(config.nodes[1])
        self.introduce = self._channel.unary_unary(
            f"/{PEER}/Challenge", pb.ChallengeRequest.SerializeToString, pb.ChallengeReply.FromString
        )
        self._deliver = self._channel.unary_unary(f"/{PEER}/Deliver", None, None)

    def session(self) -> tuple[str, bytes]:
        """A session, made as a daemon makes it."""
        mine = auth.nonce()
        reply = self.introduce(pb.ChallengeRequest(job="j", shape=SHAPE, nonce=mine, node=0), timeout=20.0)
        return reply.session, auth.proof(SECRET, "session", "j", mine, reply.nonce)

    def deliver(self, body: bytes, name: str, key: bytes, counter: str, tag: bytes | None = None) -> None:
        proof = auth.proof(key, "letter", "j", counter.encode(), body) if tag is None else tag
        metadata = (("ckptd-session", name), ("ckptd-counter", counter), ("ckptd-tag-bin", proof))
        self._deliver(body, timeout=20.0, metadata=metadata)

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def stranger(configs: list[Config], server: PeerServer) -> Iterator[Stranger]:
    made = Stranger(configs[0])
    yield made
    made.close()


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    """The details of the refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() in (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    return str(error.details())


def test_a_letter_is_taken_once(stranger: Stranger, post: Post) -> None:
    """The same letter again, an older counter, and a letter under a session that does not exist are refused."""
    name, key = stranger.session()
    body = letter_out(report(1))
    stranger.deliver(body, name, key, "5")
    assert "repeated" in refused(stranger.deliver, body, name, key, "5")
    assert "repeated" in refused(stranger.deliver, body, name, key, "4")
    assert "no such session" in refused(stranger.deliver, body, "other", key, "6")
    stranger.deliver(letter_out(report(2)), name, key, "6")
    assert post.letters == [report(1), report(2)]


def test_a_forged_letter_is_refused(stranger: Stranger, post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """A changed body, counter or tag, and counters that are no numbers: all refused, and logged with what to do."""
    name, key = stranger.session()
    body, counter = letter_out(report(1)), "1"
    tag = auth.proof(key, "letter", "j", counter.encode(), body)
    assert "does not know this job's secret" in refused(
        stranger.deliver, letter_out(report(9)), name, key, counter, tag
    )
    assert "does not know this job's secret" in refused(stranger.deliver, body, name, key, "2", tag)
    assert "does not know this job's secret" in refused(stranger.deliver, body, name, key, counter, bytes(32))
    assert "does not know this job's secret" in refused(stranger.deliver, body, name, b"x" * 32, counter)
    for bad in ("", "-1", "one", "1.5"):
        assert "no such session" in refused(stranger.deliver, body, name, key, bad)
    assert not post.letters
    assert (
        "letter refused: the sender does not know this job's secret; give every node the same --secret-file"
        in caplog.text
    )
    stranger.deliver(body, name, key, counter)  # none of this has spoiled the session
    assert post.letters == [report(1)]


@pytest.mark.parametrize("body", [b"", b"\xff" * 50, letter_out(Report(node=2, boot="b", seq=1))])
def test_a_signed_letter_is_checked_too(stranger: Stranger, post: Post, body: bytes) -> None:
    """Who knows the secret and sends nonsense, or speaks for a node that does not exist, is refused."""
    name, key = stranger.session()
    assert "a letter that can't be read" in refused(stranger.deliver, body, name, key, "1")
    assert not post.letters


def test_a_challenge_is_checked(stranger: Stranger) -> None:
    """Another job or a challenge of another length begins no session."""
    challenge = pb.ChallengeRequest(job="other", nonce=bytes(32))
    assert "serves job 'j'" in refused(stranger.introduce, challenge)
    assert "32 bytes" in refused(stranger.introduce, pb.ChallengeRequest(job="j", shape=SHAPE, nonce=b"short"))


@pytest.mark.usefixtures("server")
def test_an_address_that_is_taken(configs: list[Config], post: Post) -> None:
    """A second daemon at the same address is refused by name."""
    with pytest.raises(AccessError, match=f"cannot listen on {configs[1].nodes[1]}.*is another daemon there"):
        PeerServer(configs[1], "b", post)


def test_only_the_daemon_at_its_address_counts(
    configs: list[Config], post: Post, opened: Callable[[Config], Peers], caplog: pytest.LogCaptureFixture
) -> None:
    """Two daemons claim one place: whoever answers at its address does, also when that changes."""
    peers = opened(configs[0])

    def admit(boot: str, seq: int) -> None:
        letter = Report(node=1, boot=boot, seq=seq)
        peers.admit(letter, lambda: post(letter))

    first = PeerServer(configs[1], "first", post)
    admit("first", 1)
    until(lambda: len(post.letters) == 1, "the letter of the one that is there")
    with caplog.at_level(logging.WARNING):
        admit("other", 1)
        until(lambda: "another daemon than the one at" in caplog.text, "the warning")
    first.close()
    second = PeerServer(configs[1], "second", post)
    try:

        def arrives() -> bool:
            admit("second", 1)  # reports are repeated; the address answers again within moments
            time.sleep(0.1)
            return len(post.letters) > 1

        until(arrives, "the letter of its successor")
        admit("first", 2)
        admit("second", 3)
        until(lambda: getattr(post.letters[-1], "seq", 0) == 3, "the successor's next one")
        assert {letter.boot for letter in post.letters[1:]} == {"second"}
    finally:
        second.close()


def test_another_shape_is_refused_and_logged(
    server: PeerServer,
    configs: list[Config],
    opened: Callable[[Config], Peers],
    caplog: pytest.LogCaptureFixture,
    post: Post,
) -> None:
    """Nodes that were started with different parity would place it differently: they say so, and don't talk."""
    with caplog.at_level(logging.INFO):
        opened(replace(configs[0], parity=0)).send(1, report(1))
        until(lambda: "node 0 was started with nodes 2, parity 0, group_size 8" in caplog.text, "the complaint")
    assert "this daemon with nodes 2, parity 1, group_size 8; give all the same" in caplog.text
    assert not post.letters


def test_nobody_else_is_this_node(
    configs: list[Config], opened: Callable[[Config], Peers], caplog: pytest.LogCaptureFixture
) -> None:
    """A letter in one's own name is somebody else's."""
    opened(configs[0]).admit(report(1), lambda: pytest.fail("it was believed"))
    assert "sends letters as node 0, which is this one" in caplog.text
