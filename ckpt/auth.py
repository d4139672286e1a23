"""Challenge and response with the job's secret: both sides prove that they know it, and it never crosses the wire."""

from __future__ import annotations

import hashlib
import hmac
import secrets

NONCE_BYTES = 32
PROOF_BYTES = 32


def nonce() -> bytes:
    """A fresh challenge."""
    return secrets.token_bytes(NONCE_BYTES)


def proof(secret: bytes, purpose: str, job: str, *parts: bytes) -> bytes:
    """HMAC-SHA256 of the secret over what is proven. Parts are length-prefixed, so that they can't be shifted."""
    message = b"".join(len(part).to_bytes(8, "little") + part for part in (purpose.encode(), job.encode(), *parts))
    return hmac.new(secret, message, hashlib.sha256).digest()


def same(found: bytes, expected: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(found, expected)
