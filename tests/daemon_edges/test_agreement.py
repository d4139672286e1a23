"""The keys of a sealed connection: the same on both sides, new for each, and only with a key that the secret vouches for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.ckpt import auth
from ckptd.ckpt.errors import AccessError
from ckptd.daemon.agreement import KEY_BYTES, OFFER_BYTES, Keys, Offer, agree, offer, spoken
from ckptd.daemon.channel import Session

READER = Session("reader", "node-a", 1, "j", b"s" * 32, b"c" * 32, b"a" * 32)
SERVER = replace(READER, role="server", where="node-b")


def agreed(reader: Session = READER, server: Session = SERVER) -> tuple[Keys, Keys]:
    """Both sides' keys of a new connection."""
    one, other = offer(), offer()
    return agree(reader, one, spoken(server, other)), agree(server, other, spoken(reader, one))


def test_both_sides_have_the_same_keys() -> None:
    """One key for each direction, of 32 bytes, known to both sides and shown by neither."""
    one, other = agreed()
    assert one == other
    assert one.reader != one.server
    assert {len(one.reader), len(one.server)} == {KEY_BYTES}
    assert repr(one) == "Keys()"
    assert "private" not in repr(offer())


def test_each_connection_has_new_keys() -> None:
    """The same secret and challenges give other keys: who learns the secret later can't make them again."""
    keys = [agreed()[0] for _ in range(4)]
    assert len({key for pair in keys for key in (pair.reader, pair.server)}) == 8


@pytest.mark.parametrize(
    "other", [{"challenge": b"x" * 32}, {"answer": b"x" * 32}, {"job": "k"}, {"secret": b"x" * 32}]
)
def test_everything_of_the_handshake_goes_into_the_keys(other: dict[str, str | bytes]) -> None:
    """With the same two offers, another handshake, job or secret gives other keys."""
    one, two = offer(), offer()
    changed_reader, changed_server = (replace(session, **other) for session in (READER, SERVER))  # type: ignore[arg-type]
    assert agree(READER, one, spoken(SERVER, two)) != agree(changed_reader, one, spoken(changed_server, two))


@given(st.integers(0, OFFER_BYTES - 1), st.integers(0, 7))
def test_a_changed_offer_is_refused(position: int, bit: int) -> None:
    """A bit of the public key or of its proof that was flipped on the way."""
    heard = bytearray(spoken(SERVER, offer()))
    heard[position] ^= 1 << bit
    with pytest.raises(AccessError, match="node-a could not prove that its key is its own; somebody on the way"):
        agree(READER, offer(), bytes(heard))


@pytest.mark.parametrize("length", [0, 31, 32, 63, 65])
def test_an_offer_of_another_length_is_refused(length: int) -> None:
    """Nothing else than 64 bytes is taken for one."""
    heard = (spoken(SERVER, offer()) + b"x")[:length]
    with pytest.raises(AccessError, match="could not prove"):
        agree(READER, offer(), heard)


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)])
def test_a_key_of_small_order_is_refused(point: bytes) -> None:
    """Even from who knows the secret: the keys would be known to everybody who listens."""
    mine = offer()
    heard = point + auth.proof(SERVER.secret, "sealed server", "j", SERVER.challenge, SERVER.answer, point)
    with pytest.raises(AccessError, match="node-a sent a key that can't be agreed on"):
        agree(READER, mine, heard)


def test_an_offer_of_another_connection_is_refused() -> None:
    """What the server said on one connection can't be repeated on the next: the challenges are other ones."""
    theirs: Offer = offer()
    said = spoken(SERVER, theirs)
    with pytest.raises(AccessError, match="could not prove"):
        agree(replace(READER, answer=b"n" * 32), offer(), said)
