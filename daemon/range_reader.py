"""Reads ranges from other nodes over TCP, straight into the destination's mapping; checks every piece on arrival.

A few requests are under way on a connection at any time: while the bytes of one are checked, those of the next arrive.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import digest_of, piece_sum
from ckptd.daemon.channel import Channel, PlainChannel, receive
from ckptd.daemon.handshake import introduce
from ckptd.daemon.ranges import (
    PIECES_MAX,
    REPLY,
    SUMS_MAX,
    Limits,
    Member,
    Reply,
    Status,
    Verb,
    pack_request,
    receive_numbers,
)
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transfers import Transfers
from ckptd.daemon.transport import DamagedThere, Endpoint, NotHeld, Range, Trip

QUESTIONS = 4
"""Of a probe, each a segment of its own: the more of them, the sooner it shows that some are lost."""
_NOTHING = Range(Version(0, 0), Image(0, 1, "0" * 32), 0, 1)


class RangeReader:
    """Implements `Transport`. Keeps idle connections, and opens as many as there are readers of a node at a time."""

    def __init__(
        self, member: Member, *,
        limits: Limits | None = None, throttle: Throttle | None = None, transfers: Transfers | None = None,
    ) -> None:  # fmt: skip
        self._member = member
        self._limits = limits or Limits()
        self._throttle = throttle or Throttle()
        self._transfers = transfers or Transfers()
        self._lock = threading.Lock()
        self._idle: dict[Endpoint, list[_Link]] = {}
        self._busy: set[_Link] = set()
        self._closed = False

    def read(self, holder: Endpoint, wanted: Range, into: memoryview) -> int:
        assert wanted.count > 0, "a range has pieces"
        progress = _Progress(wanted, into, self._throttle.grain, self._limits.attempts)
        started = time.monotonic()
        try:
            self._finish(holder, progress, _Link.run)
        except BaseException:
            self._transfers.failed(holder.node)
            raise
        seconds = time.monotonic() - started - progress.waited
        self._transfers.read(holder.node, progress.length, seconds, progress.first_s)
        if progress.damaged:
            raise DamagedThere(holder, wanted, tuple(sorted(progress.damaged)))
        return progress.length

    def sums(self, holder: Endpoint, version: Version, image: Image) -> list[int]:
        listing = _Listing(Range(version, image, 0, image.pieces))
        self._finish(holder, listing, _Link.list_sums)
        if digest_of(listing.sums, image.size) != image.digest:
            raise CorruptionError(f"{holder} lists other sums than those of rank {image.rank} of {version}")
        return listing.sums

    def probe(self, holder: Endpoint) -> Trip:
        """A round trip to the holder's server and back: questions about an image that nobody holds.

        A connection is made first where none is idle; that is not in the time. Raises PeerError or AccessError.
        """
        link = self._checkout(holder)
        try:
            lost = link.plain.newly_lost()
            trip = Trip(link.knock(), lost)
        except BaseException:  # what is under way on the connection is not known any more
            self._drop(link)
            raise
        self._give_back(holder, link)
        return trip

    def close(self) -> None:
        with self._lock:
            self._closed = True
            links = [*self._busy, *(link for links in self._idle.values() for link in links)]
            self._idle.clear()
        for link in links:
            link.channel.close()

    def _finish(self, holder: Endpoint, progress: T, run: Callable[[_Link, T], None]) -> None:
        """Go on until all has arrived, or is known to be damaged, over as many connections as it takes."""
        fruitless = 0
        while not progress.finished:
            before = progress.verified
            link = self._checkout(holder)
            try:
                run(link, progress)
            except NotHeld:
                self._drop(link)
                raise
            except PeerError:
                # An idle connection may be to a daemon that has died since, and so may all others of its age.
                self._drop(link)
                self._forget(holder)
                fruitless = 0 if progress.verified > before else fruitless + 1
                if fruitless >= self._limits.attempts or self._closed:
                    raise
            except BaseException:  # what is under way on the connection is not known any more
                self._drop(link)
                raise
            else:
                self._give_back(holder, link)

    # ---- connections ------------------------------------------------------------------------------

    def _checkout(self, holder: Endpoint) -> _Link:
        with self._lock:
            idle = self._idle.get(holder)
            link = idle.pop() if idle else None
        link = link or self._connect(holder)
        with self._lock:
            self._busy.add(link)
            if not self._closed:
                return link
        self._drop(link)
        raise PeerError(f"{holder} is not read any more: this daemon is stopping")

    def _connect(self, holder: Endpoint) -> _Link:
        limits = self._limits
        try:
            connection = socket.create_connection((holder.host, holder.port), timeout=limits.handshake_s)
        except (OSError, UnicodeError) as error:
            raise PeerError(f"{holder} cannot be reached: {getattr(error, 'strerror', None) or error}") from error
        plain = PlainChannel(connection, str(holder), send_s=limits.handshake_s, receive_s=limits.handshake_s)
        try:
            session = introduce(plain, self._member, holder)
            plain.patience(send_s=limits.stall_s, receive_s=limits.stall_s)
            channel = self._member.wrapping.wrap(plain, session)
            return _Link(holder, channel, plain, limits.in_flight, self._throttle)
        except BaseException:  # a half-made connection has no owner yet
            plain.close()
            raise

    def _give_back(self, holder: Endpoint, link: _Link) -> None:
        with self._lock:
            self._busy.discard(link)
            if not self._closed:
                self._idle.setdefault(holder, []).append(link)
                return
        link.channel.close()

    def _drop(self, link: _Link) -> None:
        with self._lock:
            self._busy.discard(link)
        link.channel.close()

    def _forget(self, holder: Endpoint) -> None:
        with self._lock:
            links = self._idle.pop(holder, [])
        for link in links:
            link.channel.close()


class _Wanted(Protocol):
    """What is asked of a holder; it outlives the connections that serve it."""

    @property
    def verified(self) -> int:
        """The pieces of which what was asked has arrived: while that grows the holder is not given up."""
        ...

    @property
    def finished(self) -> bool: ...


T = TypeVar("T", bound=_Wanted)


class _Listing:
    """How far the sums of an image have come."""

    def __init__(self, wanted: Range) -> None:
        self.missing = deque(wanted.parts(SUMS_MAX))
        self.sums: list[int] = []

    @property
    def verified(self) -> int:
        return len(self.sums)

    @property
    def finished(self) -> bool:
        return not self.missing


class _Progress:
    """How far one read has come; it outlives the connections that serve it."""

    def __init__(self, wanted: Range, into: memoryview, grain: int, attempts: int) -> None:
        self._wanted, self._into, self._attempts = wanted, into, attempts
        self.missing = deque(wanted.parts(grain))
        """What has not arrived, in requests."""
        self.suspect: list[int] = []
        """Pieces that failed their check; the holder is to say whether it is its fault."""
        self.damaged: set[int] = set()
        self.verified = 0
        self.length = 0
        self.waited = 0.0
        self.first_s = 0.0
        self._flipped: Counter[int] = Counter()

    @property
    def finished(self) -> bool:
        return not self.missing and not self.suspect

    def target(self, part: Range, length: int, where: Endpoint) -> memoryview:
        """Where a part's bytes belong. Raises PeerError when the holder announces a length that can't be."""
        start = (part.first - self._wanted.first) * PIECE
        room = min(part.size, len(self._into) - start)
        is_last = part.first + part.count == self._wanted.first + self._wanted.count
        shortest = room - PIECE + 1 if is_last and isinstance(part.what, Parity) else part.size
        if not shortest <= length <= room:
            raise PeerError(f"{where} announced {length} bytes for {part}, expected {shortest} to {room}")
        self.length = max(self.length, start + length)
        return self._into[start : start + length]

    def check(self, part: Range, sums: tuple[int, ...], view: memoryview) -> None:
        """Count the pieces of a part that arrived; those that fail their check are suspect."""
        failed = _failures(sums, view)
        self.suspect += [part.first + index for index in failed]
        self.verified += part.count - len(failed)

    def salvage(self, part: Range, sums: tuple[int, ...], view: memoryview) -> None:
        """A part broke off: what had arrived of it in order is kept, the rest is missing."""
        failed = _failures(sums, view)
        kept = failed[0] if failed else part.count
        self.verified += kept
        if kept < part.count:
            self.missing.appendleft(part.part(part.first + kept, part.count - kept))

    def questions(self) -> list[Range]:
        """The suspect pieces as ranges that hold no others."""
        parts: list[Range] = []
        for piece in sorted(self.suspect):
            last = parts[-1] if parts else None
            if last and piece == last.first + last.count and last.count < PIECES_MAX:
                parts[-1] = last.part(last.first, last.count + 1)
            else:
                parts.append(self._wanted.part(piece, 1))
        return parts

    def judged(self, pieces: list[int], damaged: set[int], where: Endpoint) -> None:
        """The holder has checked suspect pieces: those that are not damaged there are read again.

        Raises CorruptionError when one has failed here too often.
        """
        self.suspect = sorted(set(self.suspect) - set(pieces))
        self.damaged |= damaged
        for piece in pieces:
            if piece in damaged:
                continue
            self._flipped[piece] += 1
            if self._flipped[piece] > self._attempts:
                raise CorruptionError(
                    f"{where}: piece {piece} of {self._wanted} fails its checksum on arrival again and again, though it is "
                    "whole where it is held; check the network between the nodes"
                )
            self.missing.append(self._wanted.part(piece, 1))


def _failures(sums: tuple[int, ...], view: memoryview) -> list[int]:
    return [i for i, expected in enumerate(sums) if piece_sum(view[i * PIECE : (i + 1) * PIECE]) != expected]


class _Link:
    """One connection to a holder. Used by one thread at a time; of no use after an error."""

    def __init__(
        self, holder: Endpoint, channel: Channel, plain: PlainChannel, in_flight: int, throttle: Throttle
    ) -> None:
        self.channel, self.plain = channel, plain
        self._holder, self._in_flight, self._throttle = holder, in_flight, throttle
        self._under_way: deque[tuple[Range, bytes]] = deque()

    def run(self, progress: _Progress) -> None:
        """Ask for everything that is missing and take it; then have the suspect pieces checked where they are held.

        When it raises, what was under way is missing again.
        """
        try:
            started, first = time.monotonic(), True
            while progress.missing or self._under_way:
                with self._throttle.work():
                    self._fill(progress)
                    self._take(progress, started if first else None)
                    first = False
            with self._throttle.work():
                self._have_checked(progress)
        except BaseException:  # the caller may go on over another connection
            progress.missing.extendleft(part for part, _ in reversed(self._under_way))
            raise

    def _fill(self, progress: _Progress) -> None:
        while progress.missing and len(self._under_way) < self._in_flight:
            part = progress.missing[0]
            progress.waited += self._throttle.bytes(part.count * PIECE)
            request = self._ask(Verb.READ, part)
            self._under_way.append((progress.missing.popleft(), request))

    def _take(self, progress: _Progress, started: float | None) -> None:
        part, request = self._under_way[0]
        reply = self._reply(part, request)
        if started is not None:
            progress.first_s = time.monotonic() - started
        if reply.count != part.count:
            raise PeerError(f"{self._holder} announced {reply.count} pieces for {part}")
        view = progress.target(part, reply.length, self._holder)
        sums = struct.unpack(f"<{part.count}Q", receive(self.channel, 8 * part.count))
        self._under_way.popleft()
        try:
            self.channel.receive_into(view)
        except BaseException:  # some of it may have arrived
            progress.missing.extendleft(p for p, _ in reversed(self._under_way))
            self._under_way.clear()
            progress.salvage(part, sums, view)
            raise
        progress.check(part, sums, view)

    def _have_checked(self, progress: _Progress) -> None:
        for part in progress.questions():
            reply = self._reply(part, self._ask(Verb.CHECK, part))
            if reply.count > part.count or reply.length:
                raise PeerError(f"{self._holder} found {reply.count} damaged pieces among {part}")
            damaged = set(self._numbers("I", reply.count))
            pieces = set(range(part.first, part.first + part.count))
            if not damaged <= pieces:
                raise PeerError(f"{self._holder} found other pieces damaged than it was asked for in {part}")
            progress.judged(sorted(pieces), damaged, self._holder)

    def list_sums(self, listing: _Listing) -> None:
        """Have the sums listed that are missing yet."""
        while listing.missing:
            part = listing.missing[0]
            self._throttle.bytes(8 * part.count)
            reply = self._reply(part, self._ask(Verb.SUMS, part))
            if reply.count != part.count or reply.length:
                raise PeerError(f"{self._holder} announced {reply.count} sums and {reply.length} bytes for {part}")
            with self._throttle.work():
                listing.sums += self._numbers("Q", part.count)
            listing.missing.popleft()

    def knock(self) -> float:
        """Ask for the sums of an image that nobody holds, and have that said; the seconds until it is, the first time."""
        seconds, started = 0.0, time.monotonic()
        for request in [self._ask(Verb.SUMS, _NOTHING) for _ in range(QUESTIONS)]:
            try:
                self._reply(_NOTHING, request)
            except NotHeld:
                seconds = seconds or time.monotonic() - started
            else:
                raise PeerError(f"{self._holder} says that it holds {_NOTHING}")
        return seconds

    def _ask(self, verb: Verb, part: Range) -> bytes:
        request = pack_request(verb, part)
        self.channel.send(request)
        return request

    def _reply(self, part: Range, request: bytes) -> Reply:
        reply = Reply.unpack(receive(self.channel, REPLY.size), request)
        if reply is None:
            raise PeerError(
                f"{self._holder} answered another request than the one for {part}, or a bit was flipped on the way"
            )
        if reply.status == Status.NOT_HELD:
            raise NotHeld(f"{self._holder} does not hold {part}, or not any more")
        if reply.status != Status.OK:
            raise PeerError(f"{self._holder} answered {reply.status} to the request for {part}")
        return reply

    def _numbers(self, kind: Literal["I", "Q"], count: int) -> tuple[int, ...]:
        numbers = receive_numbers(self.channel, kind, count)
        if numbers is None:
            raise PeerError(f"{self._holder}: a bit of its answer was flipped on the way")
        return numbers
