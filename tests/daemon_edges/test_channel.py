"""The plain channel: exactly the bytes that were asked for, in bounded time, however they come."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import sys
import termios
import threading
from collections.abc import Iterator

import pytest
from tests.cluster import until
from tests.payload import bytes_of

from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.model import Version
from ckptd.daemon.channel import PlainChannel, receive
from ckptd.daemon.demo import wires

KIB = 1024
MIB = 1024 * KIB


@contextlib.contextmanager
def pair(**patience: float) -> Iterator[tuple[PlainChannel, PlainChannel]]:
    """Both ends of a connection; each names the other 'peer'."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = socket.create_connection(listener.getsockname()), listener.accept()[0]
    left, right = (PlainChannel(end, "peer", **{"send_s": 20.0, "receive_s": 20.0} | patience) for end in ends)
    with contextlib.closing(left), contextlib.closing(right):
        yield left, right


def unread(channel: PlainChannel) -> int:
    """Bytes that the kernel holds for it."""
    count = array.array("i", [0])
    fcntl.ioctl(channel._connection, termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize("size", [1, 4096, MIB, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 3 * MIB + 7])
@pytest.mark.parametrize("left_over", [1, 300 * KIB, MIB - 1, MIB + 1])
def test_a_tail_that_comes_late(size: int, left_over: int) -> None:
    """However a message is cut by pauses: when its last byte has come it is there, and nobody waits for more than it has."""
    data, cut = bytes_of(Version(1, 1), 0, size), max(0, size - left_over)
    with pair() as (sender, receiver):
        into = bytearray(size)
        thread = threading.Thread(target=receiver.receive_into, args=(memoryview(into),))
        thread.start()
        sender.send(data[:cut])
        until(lambda: unread(receiver) < MIB, "what has come was taken")
        sender.send(data[cut:])
        thread.join(5.0)
        assert not thread.is_alive()
        assert into == data


def test_buffers_arrive_in_order() -> None:
    """Several buffers of any kind are one stream, whatever the receiver's messages are."""
    with pair() as (sender, receiver):
        sender.send(b"one", bytearray(b"two"), memoryview(b"three"))
        sender.send(b"four")
        assert [receive(receiver, size) for size in (1, 9, 0, 5)] == [b"o", b"netwothre", b"", b"efour"]


def test_the_end_in_the_middle() -> None:
    """A connection that ends before the message does is an error that names the other side; so is one that is reset."""
    with pair() as (sender, receiver):
        sender.send(b"12")
        sender.close()
        with pytest.raises(PeerError, match="peer: the connection was closed in the middle"):
            receive(receiver, 3)
        with pytest.raises(PeerError, match="peer: "):
            sender.send(b"x")


def test_time_is_bounded() -> None:
    """Nothing to receive, and nobody who takes what is sent, both end after the time that was agreed on."""
    with pair(send_s=0.05, receive_s=0.05) as (sender, receiver):
        with pytest.raises(PeerError, match="peer timed out"):
            receive(receiver, 1)
        with pytest.raises(PeerError, match="peer timed out"):
            sender.send(bytes(64 * MIB))


def test_closing_wakes_who_waits() -> None:
    """A thread that receives ends when the channel is closed under it; closing twice is nothing."""
    errors: list[str] = []

    def work(channel: PlainChannel) -> None:
        try:
            receive(channel, 1)
        except PeerError as error:
            errors.append(str(error))

    with pair() as (_, receiver):
        thread = threading.Thread(target=work, args=(receiver,))
        thread.start()
        receiver.close()
        receiver.close()
        thread.join(20.0)
    assert len(errors) == 1


@pytest.mark.slow
def test_what_did_not_arrive_is_counted_once() -> None:
    """A segment is dropped where it arrives, until the kernel has sent it again, which takes it 200 ms."""
    with pair() as (sender, receiver):
        wires.spoil(receiver._connection, "cut")
        sender.send(b"lost")
        until(lambda: sent_again(sender), "sent again")
        wires.spoil(receiver._connection, None)
        assert receive(receiver, 4) == b"lost"
        assert sender.newly_lost() > 0
        assert (sender.newly_lost(), receiver.newly_lost()) == (0, 0)


@pytest.mark.slow
def test_what_did_arrive_is_not_counted_though_it_was_sent_again() -> None:
    """An answer is lost, and with it the word that the question has come: that is a loss of who answers."""
    with pair() as (asker, answerer):
        asker.send(b"well?")
        assert receive(answerer, 5) == b"well?"
        wires.spoil(asker._connection, "cut")
        answerer.send(b"well")
        wires.spoil(asker._connection, None)
        assert receive(asker, 4) == b"well"
        asker.send(b"!")
        assert receive(answerer, 1) == b"!"
        assert answerer.newly_lost() == 1
        assert asker.newly_lost() == 0


def test_the_losses_of_a_closed_connection_are_not_known() -> None:
    with pair() as (sender, _):
        sender.close()
        with pytest.raises(PeerError, match="peer"):
            sender.newly_lost()


def sent_again(channel: PlainChannel) -> int:
    """How many segments of its were, as the kernel tells."""
    info = channel._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[100:104], sys.byteorder)
