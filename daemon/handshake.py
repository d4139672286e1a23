"""The first words of a data connection: both sides prove that they know the job's secret, and say who they are.

Each proof covers both fresh challenges, so that a recorded handshake is of no use; and the number and the wrapping
that its sender names, so that nobody on the path can change them.
"""

from __future__ import annotations

import struct

from ckptd.ckpt import auth
from ckptd.ckpt.errors import AccessError, PeerError
from ckptd.daemon.channel import Channel, Session, receive
from ckptd.daemon.ranges import Member, Status
from ckptd.daemon.transport import Endpoint

MAGIC = b"CKPTDR\0\3"
_SPEAKER = struct.Struct("<BI")
_VERDICT = struct.Struct("<BBI")


def welcome(channel: Channel, me: Member, where: str) -> Session:
    """The server's side. Raises PeerError or AccessError when the other side is not a reader of this job."""
    challenge = auth.nonce()
    channel.send(MAGIC + challenge)
    head = receive(channel, len(MAGIC) + _SPEAKER.size + 1)
    _check_magic(head[: len(MAGIC)], where)
    speaker, size = head[len(MAGIC) : -1], head[-1]
    wrapping, node = _SPEAKER.unpack(speaker)
    rest = receive(channel, size + auth.NONCE_BYTES + auth.PROOF_BYTES)
    name, answer, found = rest[:size], rest[size : -auth.PROOF_BYTES], rest[-auth.PROOF_BYTES :]
    if name != me.job.encode():
        refusal, reason = Status.OTHER_JOB, f"is of job {name.decode(errors='replace')!r}"
    elif not auth.same(found, auth.proof(me.secret, "range reader", me.job, challenge, answer, speaker)):
        refusal, reason = Status.OTHER_SECRET, "knows another secret"
    elif wrapping != me.wrapping.code:
        refusal, reason = Status.OTHER_WRAPPING, f"wants connections of kind {wrapping}, not {me.wrapping.name}"
    else:
        verdict = _VERDICT.pack(Status.OK, me.wrapping.code, me.node)
        proof = auth.proof(me.secret, "range server", me.job, answer, challenge, verdict)
        channel.send(verdict + proof)
        return Session("server", where, node, me.job, me.secret, challenge, answer)
    channel.send(_VERDICT.pack(refusal, me.wrapping.code, me.node) + bytes(auth.PROOF_BYTES))
    raise AccessError(f"{where} {reason}")


def introduce(channel: Channel, me: Member, holder: Endpoint) -> Session:
    """The reader's side. Raises PeerError when that is no such data port, AccessError when it is of another job."""
    hello = receive(channel, len(MAGIC) + auth.NONCE_BYTES)
    _check_magic(hello[: len(MAGIC)], str(holder))
    challenge, answer, job = hello[len(MAGIC) :], auth.nonce(), me.job.encode()
    speaker = _SPEAKER.pack(me.wrapping.code, me.node)
    found = auth.proof(me.secret, "range reader", me.job, challenge, answer, speaker)
    channel.send(MAGIC + speaker + bytes([len(job)]) + job + answer + found)
    verdict = receive(channel, _VERDICT.size)
    proof = receive(channel, auth.PROOF_BYTES)
    status, wrapping, node = _VERDICT.unpack(verdict)
    if status == Status.OTHER_JOB:
        raise AccessError(f"{holder} serves another job than {me.job!r}; check --nodes and --job")
    if status == Status.OTHER_SECRET:
        raise AccessError(f"{holder} knows another secret; give every node the same --secret-file")
    if status == Status.OTHER_WRAPPING:
        raise AccessError(
            f"{holder} wants data connections of kind {wrapping}, this node {me.wrapping.name}; set the same on every node"
        )
    if status != Status.OK:
        raise PeerError(f"{holder} answered {status} to the handshake, expected {Status.OK:d}")
    if not auth.same(proof, auth.proof(me.secret, "range server", me.job, answer, challenge, verdict)):
        raise AccessError(f"{holder} could not prove that it knows the job's secret")
    if node != holder.node:
        raise PeerError(
            f"{holder} says that it is node {node}; its port may have been another daemon's, or --nodes differ"
        )
    return Session("reader", str(holder), node, me.job, me.secret, challenge, answer)


def _check_magic(found: bytes, where: str) -> None:
    if found == MAGIC:
        return
    if found[:-1] == MAGIC[:-1]:
        raise PeerError(
            f"{where} speaks version {found[-1]} of the data plane, this node {MAGIC[-1]}; run the same ckptd"
        )
    raise PeerError(f"{where} is not a ckptd data port of this version")
