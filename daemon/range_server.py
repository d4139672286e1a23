"""Serves ranges of what this node holds to the other daemons of the job, straight from the slots' mappings.

One thread a connection: it takes a request when it has answered the one before, so a reader that floods or does not read
waits in its own connection, and memory stays the same. The bytes go out unchecked, beside the sums of their capture: the
reader checks them anyway, and asks for a check here when a piece fails (`Verb.CHECK`). Who wants to know whether he has
the bytes already asks for the sums alone (`Verb.SUMS`).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections import Counter

from ckptd.ckpt.errors import AccessError, CkptdError, PeerError
from ckptd.ckpt.model import PIECE
from ckptd.daemon.channel import Channel, PlainChannel, receive
from ckptd.daemon.handshake import welcome
from ckptd.daemon.ranges import REQUEST, Asked, Limits, Member, Reply, Status, Verb, pack_numbers
from ckptd.daemon.segments import Stretch
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transfers import Transfers
from ckptd.daemon.transport import Holder

log = logging.getLogger(__name__)


class RangeServer:
    """Serves ranges to daemons that know the job's secret."""

    def __init__(
        self, host: str, holder: Holder, member: Member, *,
        limits: Limits | None = None, throttle: Throttle | None = None, transfers: Transfers | None = None,
    ) -> None:  # fmt: skip
        """Listen on a free port of `host`. Raises AccessError when that is not an address of this machine."""
        self._holder, self._member = holder, member
        self._limits = limits or Limits()
        self._throttle = throttle or Throttle()
        self._transfers = transfers or Transfers()
        try:
            self._listener = socket.create_server((host, 0), backlog=64)
        except OSError as error:
            raise AccessError(
                f"cannot listen on {host}: {error.strerror}; --nodes must name an address of this machine for this node"
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._channels: dict[PlainChannel, str] = {}
        """The open ones and the addresses at their other ends."""
        self._closing = False
        threading.Thread(target=self._accept, name="ranges", daemon=True).start()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._channels)

    def close(self) -> None:
        """End all connections, and listen no more."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            channels = list(self._channels)
        for channel in channels:
            channel.close()

    # ---- connections ------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            channel = self._admit(connection, address[0], f"{address[0]}:{address[1]}")
            if channel:
                threading.Thread(target=self._serve, args=(channel,), name="range", daemon=True).start()

    def _admit(self, connection: socket.socket, address: str, where: str) -> PlainChannel | None:
        limits = self._limits
        with self._lock:
            here = Counter(self._channels.values())[address]
            if len(self._channels) >= limits.connections or here >= limits.connections_per_address:
                log.debug("%s: refused, it has %d of %d connections", where, here, len(self._channels))
                connection.close()
                return None
            try:
                channel = PlainChannel(connection, where, send_s=limits.handshake_s, receive_s=limits.handshake_s)
            except (OSError, PeerError):  # gone already
                connection.close()
                return None
            self._channels[channel] = address
        return channel

    def _serve(self, channel: PlainChannel) -> None:
        limits = self._limits
        try:
            session = welcome(channel, self._member, channel.where)
            channel.where = f"node {session.node} ({channel.where})"
            channel.patience(send_s=limits.stall_s, receive_s=limits.idle_s)
            talk = self._member.wrapping.wrap(channel, session)
            while True:
                self._answer(talk, session.node)
        except _OutsideProtocol as error:
            log.warning("%s: %s; the connection is closed", channel.where, error)
        except (CkptdError, OSError, struct.error) as error:
            log.debug(
                "a connection ended: %s", error
            )  # the reader is gone or a stranger; it knows why, and may come again
        finally:
            channel.close()
            with self._lock:
                self._channels.pop(channel, None)

    # ---- requests ---------------------------------------------------------------------------------

    def _answer(self, talk: Channel, node: int) -> None:
        request = receive(talk, REQUEST.size)
        asked = Asked.unpack(request)
        if not asked.is_known():
            raise _OutsideProtocol(f"asked for verb {asked.verb} of kind {asked.kind}, which does not exist")
        with self._throttle.work():
            stretch = asked.find(self._holder)
            if stretch is None:
                talk.send(Reply(Status.NOT_HELD, 0, 0).pack(request))
            elif asked.verb == Verb.CHECK:
                self._check(talk, stretch, asked, request)
            elif asked.verb == Verb.SUMS:
                self._list(talk, stretch, asked, request)
            else:
                self._send(talk, stretch, asked, request, node)

    def _send(self, talk: Channel, stretch: Stretch, asked: Asked, request: bytes, node: int) -> None:
        sums = stretch.sums[asked.first : asked.first + asked.count]
        view = stretch.view[asked.first * PIECE : (asked.first + asked.count) * PIECE]
        head = Reply(Status.OK, asked.count, len(view)).pack(request) + struct.pack(f"<{len(sums)}Q", *sums)
        started, waited, step = time.monotonic(), 0.0, self._throttle.grain * PIECE
        for start in range(0, len(view), step):
            part = view[start : start + step]
            waited += self._throttle.bytes(len(part))
            if start == 0:
                talk.send(head, part)
            else:
                talk.send(part)
        self._transfers.sent(node, len(view), time.monotonic() - started - waited)

    def _check(self, talk: Channel, stretch: Stretch, asked: Asked, request: bytes) -> None:
        damaged = self._holder.check(stretch, asked.first, asked.count)
        if damaged is None:
            talk.send(Reply(Status.NOT_HELD, 0, 0).pack(request))
        else:
            talk.send(Reply(Status.OK, len(damaged), 0).pack(request) + pack_numbers("I", damaged))

    def _list(self, talk: Channel, stretch: Stretch, asked: Asked, request: bytes) -> None:
        sums = stretch.sums[asked.first : asked.first + asked.count]
        self._throttle.bytes(8 * len(sums))
        talk.send(Reply(Status.OK, len(sums), 0).pack(request) + pack_numbers("Q", sums))


class _OutsideProtocol(PeerError):
    """Somebody who knows the secret says what no daemon says."""
