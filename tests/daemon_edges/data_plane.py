"""Both ends of a data connection by hand, to say what no daemon says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from tests.contract.wires import HOST, READER, SERVER

from ckptd.ckpt.errors import PeerError
from ckptd.daemon.channel import PlainChannel, receive
from ckptd.daemon.handshake import introduce, welcome
from ckptd.daemon.ranges import REQUEST, Member
from ckptd.daemon.transport import Endpoint

Talk = Callable[[PlainChannel], None]
PATIENCE_S = 20.0


@contextlib.contextmanager
def listening(talk: Talk) -> Iterator[Endpoint]:
    """A server that deals with each connection by `talk` and closes it."""
    with socket.create_server((HOST, 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    channel = PlainChannel(connection, "reader", send_s=PATIENCE_S, receive_s=PATIENCE_S)
                    with contextlib.closing(channel), contextlib.suppress(Exception):  # the reader hangs up on liars
                        talk(channel)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Endpoint(1, HOST, listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def welcomed(answer: Callable[[PlainChannel, bytes], None], member: Member = SERVER) -> Talk:
    """A server that knows the secret and says `answer` to each request."""

    def talk(channel: PlainChannel) -> None:
        welcome(channel, member, "reader")
        while True:
            answer(channel, receive(channel, REQUEST.size))

    return talk


@contextlib.contextmanager
def connected(port: int, member: Member | None = READER) -> Iterator[PlainChannel]:
    """A connection to a server, introduced as `member`, or not at all."""
    connection = socket.create_connection((HOST, port), timeout=PATIENCE_S)
    channel = PlainChannel(connection, "server", send_s=PATIENCE_S, receive_s=PATIENCE_S)
    with contextlib.closing(channel):
        if member:
            introduce(channel, member, Endpoint(1, HOST, port))
        yield channel


def is_closed(channel: PlainChannel) -> bool:
    """Whether the other side ends the connection, after whatever it still says."""
    try:
        while True:
            receive(channel, 1)
    except PeerError as error:
        return "timed out" not in str(error)
