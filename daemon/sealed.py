"""A data connection whose bytes are encrypted and authenticated: AES-256-GCM in frames of up to 1 MiB.

A quarter to a half of what TLS through the ssl module costs, whose records are 16 KiB. Frames are opened straight into the
destination where they fit into it. (A *version* is sealed in another sense: by its parity.) Bytes: docs/formats.md.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ckptd.ckpt.errors import AccessError, PeerError
from ckptd.ckpt.pieces import Buffer
from ckptd.daemon.agreement import OFFER_BYTES, Keys, agree, offer, spoken
from ckptd.daemon.channel import Channel, Session, Wrapping

FRAME = 1024 * 1024
"""The most plaintext of one frame, in bytes."""
TAG = 16
FRAMES_MAX = 1 << 20
"""Frames under one key: 1 TiB at most, where what is known to attack GCM still has no chance (2^-57, as in TLS 1.3)."""
_LENGTH = struct.Struct("<I")
_NONCE = struct.Struct("<IQ")
_OVERHEAD = _LENGTH.size + TAG
_OUT_MAX = FRAME + _OVERHEAD + 64 * 1024
"""What is sealed before it is sent: a large frame, and the small ones before it."""
_DIRECTION = {"reader": 0, "server": 1}


class SealedChannel:
    """A `Channel` over another one, which belongs to it. Holds up to 3 MiB of buffers, and none that it has not needed.

    What fails its tag, is out of order or was seen before ends the connection: PeerError names the other side, and no
    byte of the frame is left in the destination.
    """

    def __init__(self, inner: Channel, keys: Keys, session: Session) -> None:
        mine, theirs = (keys.reader, keys.server) if session.role == "reader" else (keys.server, keys.reader)
        direction = _DIRECTION[session.role]
        self._inner, self._where = inner, session.where
        self._sealing, self._opening = AESGCM(mine), AESGCM(theirs)
        self._sent, self._received = Nonces(direction, session.where), Nonces(1 - direction, session.where)
        self._out, self._in, self._left = (memoryview(bytearray()) for _ in range(3))
        self._filled = 0

    def send(self, *buffers: Buffer) -> None:
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        self._out = _room(self._out, min(_OUT_MAX, sum(map(_sealed_size, map(len, views)))))
        for view in views:
            for start in range(0, len(view), FRAME):
                self._seal(view[start : start + FRAME])
        self._flush()

    def receive_into(self, view: memoryview) -> None:
        view = view.cast("B")
        while view:
            if not self._left:
                size = self._announced()
                if size <= len(view):
                    self._open(size, view[:size])
                    view = view[size:]
                    continue
                frame = memoryview(bytearray(size))
                self._open(size, frame)
                self._left = frame
            part = self._left[: len(view)]
            view[: len(part)] = part
            view, self._left = view[len(part) :], self._left[len(part) :]

    def close(self) -> None:
        self._inner.close()

    # ---- sending ------------------------------------------------------------------------------------

    def _seal(self, part: memoryview) -> None:
        size = _sealed_size(len(part))
        if self._filled + size > len(self._out):
            self._flush()
        frame = self._out[self._filled : self._filled + size]
        _LENGTH.pack_into(frame, 0, len(part))
        self._sealing.encrypt_into(self._sent.take(), part, frame[: _LENGTH.size], frame[_LENGTH.size :])
        self._filled += size

    def _flush(self) -> None:
        filled, self._filled = self._filled, 0
        if filled:
            self._inner.send(self._out[:filled])

    # ---- receiving ----------------------------------------------------------------------------------

    def _announced(self) -> int:
        """The length of the next frame, in bytes of plaintext."""
        head = bytearray(_LENGTH.size)
        self._inner.receive_into(memoryview(head))
        size = int(_LENGTH.unpack(head)[0])
        if not 0 < size <= FRAME:
            self.close()
            raise PeerError(f"{self._where} announced a frame of {size} bytes, expected 1 to {FRAME}; it was cut off")
        return size

    def _open(self, size: int, into: memoryview) -> None:
        self._in = _room(self._in, size + TAG)
        sealed = self._in[: size + TAG]
        self._inner.receive_into(sealed)
        nonce = self._received.take()
        try:
            self._opening.decrypt_into(nonce, sealed, _LENGTH.pack(size), into)
        except InvalidTag as error:
            into[:] = bytes(size)  # it was written before the tag could be checked
            self.close()
            raise PeerError(
                f"{self._where}: a frame was changed, repeated or left out on the way, the connection was cut off; "
                "if it happens again, somebody or something tampers with this network"
            ) from error


class Nonces:
    """The nonces of one direction, in order and each once: direction (u32) and counter (u64), 12 bytes."""

    def __init__(self, direction: int, where: str) -> None:
        self._direction, self._where, self._next = direction, where, 0

    def take(self) -> bytes:
        """The next one. Raises PeerError when one key has sealed as much as it may."""
        if self._next == FRAMES_MAX:
            raise PeerError(f"{self._where}: {FRAMES_MAX} frames went under one key, which is its limit; connect again")
        self._next += 1
        return _NONCE.pack(self._direction, self._next - 1)


def _sealed_size(count: int) -> int:
    return count + -(-count // FRAME) * _OVERHEAD


def _room(buffer: memoryview, size: int) -> memoryview:
    return buffer if len(buffer) >= size else memoryview(bytearray(size))


def _seal(channel: Channel, session: Session) -> Channel:
    mine, heard = offer(), bytearray(OFFER_BYTES)
    try:
        channel.send(spoken(session, mine))
        channel.receive_into(memoryview(heard))
        return SealedChannel(channel, agree(session, mine, bytes(heard)), session)
    except (AccessError, PeerError):
        channel.close()
        raise


SEALED = Wrapping(1, "encrypted", _seal)
"""Agree on keys over the plain channel, and seal what follows in frames."""
