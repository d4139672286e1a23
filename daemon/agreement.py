"""The keys of one sealed connection: X25519 with keys that live as long as it, vouched for by the job's secret.

Each side sends a fresh public key with a proof over it and both challenges of the handshake. Who does not know the secret
can put no key of its own in between; who learns it later has still none of the private keys, so what was recorded stays
closed. The secret goes into the keys as well: breaking X25519 alone opens nothing either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ckptd.ckpt import auth
from ckptd.ckpt.errors import AccessError
from ckptd.daemon.channel import Session

PUBLIC_BYTES = 32
KEY_BYTES = 32
OFFER_BYTES = PUBLIC_BYTES + auth.PROOF_BYTES
Role = Literal["reader", "server"]


@dataclass(frozen=True, slots=True)
class Offer:
    """One side's part of an agreement; good for one connection."""

    private: X25519PrivateKey = field(repr=False)
    public: bytes
    """32 bytes."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Two AES-256 keys of 32 bytes, one for each direction."""

    reader: bytes = field(repr=False)
    """Seals what the reader sends."""
    server: bytes = field(repr=False)
    """Seals what the server sends."""


def offer() -> Offer:
    """A fresh key pair."""
    private = X25519PrivateKey.generate()
    return Offer(private, private.public_key().public_bytes_raw())


def spoken(session: Session, mine: Offer) -> bytes:
    """What to send to the other side: the public key and its proof, 64 bytes."""
    return mine.public + _proof(session, session.role, mine.public)


def agree(session: Session, mine: Offer, heard: bytes) -> Keys:
    """The keys of the connection, from what the other side has sent (64 bytes, as `spoken` makes them).

    Raises AccessError when that is not vouched for with the job's secret, or is no key to agree on.
    """
    other: Role = "server" if session.role == "reader" else "reader"
    theirs, proof = heard[:PUBLIC_BYTES], heard[PUBLIC_BYTES:]
    if not auth.same(proof, _proof(session, other, theirs)):
        raise AccessError(
            f"{session.where} could not prove that its key is its own; somebody on the way may have put in another"
        )
    try:
        shared = mine.private.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:  # a point of small order: whoever sent it would know the keys without a private one
        raise AccessError(
            f"{session.where} sent a key that can't be agreed on; is it a ckptd of this version?"
        ) from error
    publics = (mine.public, theirs) if session.role == "reader" else (theirs, mine.public)
    transcript = (b"ckptd data plane 1", session.job.encode(), session.challenge, session.answer, *publics)
    info = b"".join(len(part).to_bytes(8, "little") + part for part in transcript)
    keys = HKDF(algorithm=SHA256(), length=2 * KEY_BYTES, salt=session.secret, info=info).derive(shared)
    return Keys(keys[:KEY_BYTES], keys[KEY_BYTES:])


def _proof(session: Session, role: Role, public: bytes) -> bytes:
    parts = (session.challenge, session.answer, public)
    return auth.proof(session.secret, f"sealed {role}", session.job, *parts)
