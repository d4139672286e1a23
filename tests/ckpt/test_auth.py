"""Challenge and response: only the same secret, purpose, job and parts give the same proof."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckptd.ckpt import auth

texts = st.text(max_size=8)
parts = st.lists(st.binary(max_size=4), max_size=4)
Proven = tuple[bytes, str, str, list[bytes]]
whole = st.tuples(st.binary(max_size=8), texts, texts, parts)


@given(whole, whole)
def test_proofs_agree_only_for_the_same(one: Proven, two: Proven) -> None:
    """Bytes that move from one part to the next, another purpose or another job: each gives another proof."""
    first, second = (auth.proof(secret, purpose, job, *rest) for secret, purpose, job, rest in (one, two))
    # HMAC pads its key with zeros: secrets that differ in trailing ones are the same to it.
    same = (one[0].rstrip(b"\0"), *one[1:]) == (two[0].rstrip(b"\0"), *two[1:])
    assert auth.same(first, second) == same


def test_parts_cannot_be_shifted() -> None:
    """The same bytes cut elsewhere are another message."""
    assert auth.proof(b"s", "p", "j", b"ab", b"c") != auth.proof(b"s", "p", "j", b"a", b"bc")
    assert auth.proof(b"s", "p", "j") != auth.proof(b"s", "pj", "")
    assert auth.proof(b"s", "p", "j", b"") != auth.proof(b"s", "p", "j")


def test_sizes_and_freshness() -> None:
    """Proofs and challenges have the length that the frames promise; no challenge comes twice."""
    assert len(auth.proof(b"s", "p", "j")) == auth.PROOF_BYTES
    nonces = {auth.nonce() for _ in range(100)}
    assert len(nonces) == 100
    assert {len(nonce) for nonce in nonces} == {auth.NONCE_BYTES}
