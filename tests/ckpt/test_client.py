"""The client: every way in which a daemon can be missing, wrong or of another mind is one clear error."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.cluster import daemon_here, fill, shm_dir, until
from tests.payload import JOB, bytes_of

from ckptd.ckpt import errors
from ckptd.ckpt.client import Client, Stretch
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import AccessError, CkptdError, DaemonUnavailable, StaleStepError, Unrecoverable, UsageError
from ckptd.ckpt.model import Version
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.rpc import ERROR_KEY, LOCAL, status_of
from ckptd.daemon.driver import Driver

SIZE = 100_000


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    with shm_dir() as folder:
        yield Config(job=JOB, run_dir=tmp_path / "run", segment_dir=folder / "s", slots=2).validate()


@pytest.fixture
def daemon(config: Config) -> Iterator[Driver]:
    """A daemon of a single node in this process."""
    with daemon_here(config) as driver:
        yield driver


@pytest.fixture
def client(config: Config, daemon: Driver) -> Iterator[Client]:
    made = Client(config.run_dir, JOB)
    yield made
    made.close()


def begin_life(client: Client) -> int:
    client.attach(rank=0, world=1, local_world=1)
    epoch = client.decide(world=1).epoch
    client.join(epoch)
    return epoch


def capture(client: Client, version: Version) -> None:
    data = bytes_of(version, 0, SIZE)
    slot = client.begin(version, SIZE)
    assert slot is not None
    assert slot.path.stat().st_size == SIZE
    fill(slot, data)
    client.commit(slot, version)
    assert client.wait(version, "captured", 20.0) != "none"  # the daemon sums it yet


def test_a_life_with_a_daemon(client: Client) -> None:
    """Attach, decide, join, capture, wait, gather, release: each does what the channel promises."""
    attachment = client.attach(rank=0, world=1, local_world=1)
    assert (attachment.node, attachment.nodes, attachment.parity) == (0, 1, 0)
    decision = client.decide(world=1)
    assert (decision.version, decision.source, decision.world) == (None, "none", 0)
    client.join(decision.epoch)
    reserved = client.reserve(SIZE, 20.0)
    assert {path.stat().st_size for path in reserved} == {SIZE}
    version = Version(decision.epoch, 5)
    assert client.wait(version, "captured", 0.0) == "none"
    capture(client, version)
    assert client.wait(version, "sealed", 20.0) == "sealed"
    assert client.wait(Version(decision.epoch, 4), "captured", 0.0) == "sealed"
    assert client.wait(version, "persisted", 0.05) == "sealed"
    (found,) = client.gather(version)
    assert (found.rank, found.size, found.source) == (0, SIZE, "own")
    assert found.path.read_bytes() == bytes_of(version, 0, SIZE)
    client.release(version)
    again = client.decide(world=1)
    assert (again.version, again.source, again.epoch, again.world) == (version, "own", decision.epoch + 1, 1)
    assert client.decide(world=1, fresh=True).version is None


def test_images_are_opened_and_shut(client: Client) -> None:
    """What is held here can be read at once; bytes are brought of an open version alone, and of what it has."""
    client.attach(rank=0, world=1, local_world=1)
    decision = client.decide(world=1)
    client.join(decision.epoch)
    version = Version(decision.epoch, 5)
    capture(client, version)
    with pytest.raises(UsageError, match=r"step 5 .* is not open on this node"):
        client.bring(version, [Stretch(0, 0, 1)])
    (found,) = client.open(version)
    assert (found.rank, found.size, found.source) == (0, SIZE, "own")
    client.bring(version, [Stretch(0, 0, SIZE)])
    assert found.path.read_bytes() == bytes_of(version, 0, SIZE)
    with pytest.raises(UsageError, match="expected some of an image of"):
        client.bring(version, [Stretch(0, 0, SIZE + 1)])
    client.shut(version)
    with pytest.raises(UsageError, match="is not open on this node"):
        client.bring(version, [Stretch(0, 0, 1)])
    with pytest.raises(Unrecoverable, match="storage does not have it"):
        client.open(Version(decision.epoch, 6))


def test_a_later_life_opens_images_anew(client: Client, config: Config) -> None:
    """Who has mapped the files of an earlier opening is not told that bytes came which are in others, nor shuts these."""
    version = Version(begin_life(client), 5)
    capture(client, version)
    client.open(version)
    with closing(Client(config.run_dir, JOB)) as successor:
        begin_life(successor)
        successor.open(version)
        with pytest.raises(UsageError, match="a later life has opened it anew"):
            client.bring(version, [Stretch(0, 0, 1)])
        client.shut(version)
        successor.bring(version, [Stretch(0, 0, 1)])


def test_no_socket(tmp_path: Path) -> None:
    """Where no daemon ever ran, the message says what to start or set."""
    with pytest.raises(
        DaemonUnavailable, match=r"ckptd\.sock: No such file.*start `ckptd serve`, or set CKPTD_RUN_DIR"
    ):
        Client(tmp_path, JOB)


def test_a_socket_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that somebody else put there is refused before a word is said."""
    (tmp_path / "ckptd.sock").touch()
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(AccessError, match=f"belongs to user {mine}, you are {mine + 1}"):
        Client(tmp_path, JOB)


def test_nobody_behind_the_socket(tmp_path: Path) -> None:
    """The socket of a daemon that was killed, or a file of that name, is a daemon that does not answer."""
    path = tmp_path / "ckptd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    for _ in range(2):
        client = Client(tmp_path, JOB)
        with pytest.raises(DaemonUnavailable, match="the daemon does not answer"):
            client.attach(rank=0, world=1, local_world=1)
        client.close()
        path.unlink()
        path.touch()


def test_a_closed_client(client: Client) -> None:
    """After close() every call says so."""
    client.attach(rank=0, world=1, local_world=1)
    client.close()
    for call in (
        lambda: client.decide(world=1),
        lambda: client.document("Status"),
        lambda: client.begin(Version(1, 1), 9),
    ):
        with pytest.raises(DaemonUnavailable, match="this client was closed"):
            call()


def test_a_bad_job_name(tmp_path: Path) -> None:
    """A job that could not be part of a path is refused at once."""
    with pytest.raises(UsageError, match="job name"):
        Client(tmp_path, "../other")


@pytest.mark.usefixtures("daemon")
def test_the_wrong_job(config: Config) -> None:
    """A daemon of another job refuses attach and decide, and names both jobs."""
    client = Client(config.run_dir, "other")
    for call in (lambda: client.attach(rank=0, world=1, local_world=1), lambda: client.decide(world=1)):
        with pytest.raises(AccessError, match=f"serves job {JOB!r}, not 'other'; set CKPTD_JOB or CKPTD_RUN_DIR"):
            call()
    client.close()


def test_before_attach(client: Client) -> None:
    """What only a rank may do is refused to a client that is none."""
    calls: list[Callable[[], object]] = [lambda: client.join(1), lambda: client.begin(Version(1, 1), SIZE)]
    for call in calls:
        with pytest.raises(UsageError, match=r"attach\(\) first"):
            call()


def test_wrong_steps_and_epochs(client: Client) -> None:
    """A step that does not grow, another epoch, a commit of what was not granted: refused, and the next one works."""
    epoch = begin_life(client)
    capture(client, Version(epoch, 5))
    for version in (Version(epoch, 5), Version(epoch, 4), Version(epoch - 1, 9), Version(epoch + 1, 9)):
        with pytest.raises(StaleStepError):
            client.begin(version, SIZE)
    with pytest.raises(StaleStepError, match="lives in"):
        client.join(epoch - 1)
    version = Version(epoch, 6)
    slot = client.begin(version, SIZE)
    assert slot is not None
    with pytest.raises(StaleStepError, match="was not granted for it"):
        client.commit(slot, Version(epoch, 7))
    client.abort(slot, version, "changed its mind")
    with pytest.raises(StaleStepError, match="was not granted for it"):
        client.commit(slot, version)
    capture(client, Version(epoch, 7))
    assert client.wait(Version(epoch, 7), "captured", 20.0) in ("captured", "sealed")


IMPOSSIBLE: list[Callable[[Client], object]] = [
    lambda client: client.begin(Version(1, -1), SIZE),
    lambda client: client.begin(Version(1, 2**64), SIZE),
    lambda client: client.begin(Version(1, 1), 0),
    lambda client: client.begin(Version(1, 1), -1),
    lambda client: client.begin(Version(1, 1), 2**50),
    lambda client: client.reserve(-1),
    lambda client: client.reserve(0),
    lambda client: client.attach(rank=-1, world=1, local_world=1),
    lambda client: client.attach(rank=1, world=1, local_world=1),
    lambda client: client.attach(rank=0, world=2**40, local_world=1),
    lambda client: client.wait(Version(1, 1), "finished", 1.0),
    lambda client: client.wait(Version(1, 1), "sealed", float("nan")),
    lambda client: client.wait(Version(1, 1), "sealed", -1.0),
    lambda client: client.gather(Version(-1, 1)),
]


def test_impossible_arguments(client: Client) -> None:
    """Numbers that cannot be, and levels that do not exist, are usage errors, whichever side finds them."""
    client.attach(rank=0, world=1, local_world=1)
    for call in IMPOSSIBLE:
        with pytest.raises(UsageError):
            call(client)
    capture(client, Version(begin_life(client), 1))


def test_all_slots_in_use(client: Client) -> None:
    """Where no slot is free the answer is None, it is counted, and training goes on."""
    client.attach(rank=0, world=2, local_world=1)  # rank 1 captures nothing: nothing is ever sealed
    epoch = client.decide(world=2).epoch
    client.join(epoch)
    for step in (1, 2):
        capture(client, Version(epoch, step))
        client.wait(Version(epoch, step), "captured", 20.0)
    assert client.begin(Version(epoch, 3), SIZE) is None
    assert client.document("Status")["skipped"] == 1


def test_a_restarted_daemon_is_joined_again(config: Config) -> None:
    """When the daemon was restarted, the next begin introduces the rank anew by itself and the images are still there."""
    with daemon_here(config, clean=False):
        client = Client(config.run_dir, JOB)
        epoch = begin_life(client)
        capture(client, Version(epoch, 1))
        client.wait(Version(epoch, 1), "sealed", 20.0)
    with pytest.raises(DaemonUnavailable):
        client.begin(Version(epoch, 2), SIZE)
    with daemon_here(config):
        until(lambda: _ready(config), "the restarted daemon")
        capture(client, Version(epoch, 3))
        assert client.document("Status")["nodes"][0]["ranks"] == [0]
        assert [found.source for found in client.gather(Version(epoch, 1))] == ["own"]
        client.close()


def _ready(config: Config) -> bool:
    client = Client(config.run_dir, JOB)
    try:
        return bool(client.document("Status")["ready"])
    except DaemonUnavailable:
        return False
    finally:
        client.close()


# ---- against a server that answers as it is told --------------------------------------------------------


class Told:
    """A server of the local service that answers Status by `answer`."""

    def __init__(self, run_dir: Path, answer: Callable[[grpc.ServicerContext], bytes]) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_send_message_length", -1)])

        handler = grpc.unary_unary_rpc_method_handler(lambda _, context: answer(context))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(LOCAL, {"Status": handler}),))
        self._server.add_insecure_port(f"unix:{run_dir / 'ckptd.sock'}")
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait(10.0)


def ask(run_dir: Path, answer: Callable[[grpc.ServicerContext], bytes]) -> Any:
    """What `document` returns, or raises, when the server answers so."""
    server = Told(run_dir, answer)
    client = Client(run_dir, JOB, timeout_s=10.0)
    try:
        return client.document("Status")
    finally:
        client.close()
        server.close()


CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, CkptdError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_keep_their_class(tmp_path: Path, cls: type[CkptdError]) -> None:
    """What the daemon raises is raised here, with its class and its words."""

    def answer(context: grpc.ServicerContext) -> bytes:
        error = cls("what it was")
        context.set_trailing_metadata(((ERROR_KEY, cls.__name__),))
        context.abort(status_of(error), str(error))
        raise AssertionError

    with pytest.raises(cls, match="what it was") as caught:
        ask(tmp_path, answer)
    assert type(caught.value) is cls


@pytest.mark.parametrize("name", ["SystemExit", "annotations", "__doc__", "", "nothing"])
def test_other_errors_are_ours_too(tmp_path: Path, name: str) -> None:
    """A class that is none of ours is never made, and what is unknown says where it came from."""

    def answer(context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(((ERROR_KEY, name),))
        context.abort(grpc.StatusCode.INTERNAL, "odd")
        raise AssertionError

    with pytest.raises(CkptdError, match=r"status at .*ckptd\.sock: internal: odd") as caught:
        ask(tmp_path, answer)
    assert type(caught.value) is CkptdError


def test_long_documents_arrive(tmp_path: Path) -> None:
    """What a job of many ranks and steps has to show is longer than gRPC's usual limit."""
    document = pb.Document(json='{"rows": "' + "x" * 6_000_000 + '"}').SerializeToString()
    assert len(ask(tmp_path, lambda _: document)["rows"]) == 6_000_000


@pytest.mark.parametrize("document", ["", "{", "[1]", "NaN"])
def test_a_document_that_is_none(tmp_path: Path, document: str) -> None:
    """A daemon that answers nonsense is said to, by an error of ours."""
    with pytest.raises(CkptdError, match="status at"):
        ask(tmp_path, lambda _: pb.Document(json=document).SerializeToString())
