"""The control plane between daemons: letters (reports and ledgers) over gRPC, each signed under a session key.

A session begins with challenge and response on the job's secret; then every letter carries a counter and an HMAC over
its bytes, so that nothing can be forged or replayed by who does not know the secret. Letters are states: only the newest
one to each node is worth sending, so a slow or dead peer costs one mailbox and delays nobody else.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ckptd.ckpt import auth
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import AccessError, PeerError
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.sighting import Answer, Sighting
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.rpc import MESSAGE_MAX, PEER, error_of
from ckptd.ckpt.wire.sightings import answer_in, answer_out
from ckptd.ckpt.wire.translate import Letter, letter_in, letter_out
from ckptd.daemon import tls
from ckptd.daemon.places import Places

log = logging.getLogger(__name__)

_CALL_S = 5.0
_SESSIONS_MAX = 1024
_LOOK_AGAIN_S = 2.0
_LIMITS = [("grpc.max_receive_message_length", MESSAGE_MAX), ("grpc.max_send_message_length", MESSAGE_MAX)]
_CHANNEL = [
    *_LIMITS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
]
Received = Callable[[Letter], Answer | None]
"""Takes a letter; returns what to answer to a sighting."""
Answered = Callable[[int, Answer], None]
"""Takes what a node has answered to a sighting."""


@dataclass(slots=True)
class _Session:
    key: bytes
    counter: int = 0
    read: tuple[bytes, Letter] | None = None
    """The last letter: a heartbeat repeats it to the byte and is not read again."""


# ---- incoming -----------------------------------------------------------------------------------


class PeerServer:
    """Receives letters on this node's control address and hands those that check to `received`."""

    def __init__(self, config: Config, boot: str, received: Received) -> None:
        self._config, self._boot, self._received = config, boot, received
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8, "peer-in"), options=[*_LIMITS, ("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler
        reply = pb.ChallengeReply.SerializeToString
        handlers = {
            "Challenge": handler(self._challenge, pb.ChallengeRequest.FromString, reply),
            "Deliver": handler(self._deliver, None, None),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(PEER, handlers),))
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        try:
            bound = tls.listen(self._server, config.nodes[config.node], config.tls)
        except RuntimeError as error:
            address = config.nodes[config.node]
            raise AccessError(f"cannot listen on {address} ({error}); is another daemon there?") from error
        self.port: int = bound
        self._server.start()

    def close(self) -> None:
        self._server.stop(0.2)

    def _challenge(self, request: pb.ChallengeRequest, context: grpc.ServicerContext) -> pb.ChallengeReply:
        job, secret = self._config.job, self._config.secret
        if request.job != job:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"this daemon serves job {job!r}, not {request.job!r}")
        if tuple(request.shape) != (ours := _shape(self._config)):
            theirs = _told(tuple(request.shape))
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"node {request.node} was started with {theirs}, this daemon with {_told(ours)}; give all the same",
            )
        if len(request.nonce) != auth.NONCE_BYTES:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a challenge has 32 bytes")
        mine, session = auth.nonce(), secrets.token_hex(16)
        with self._lock:
            self._sessions[session] = _Session(auth.proof(secret, "session", job, request.nonce, mine))
            while len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)
        proof = auth.proof(secret, "server", job, request.nonce, mine, self._boot.encode())
        return pb.ChallengeReply(session=session, nonce=mine, proof=proof, boot=self._boot)

    def _deliver(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            session, counter = self._check(body, {str(key): value for key, value in context.invocation_metadata()})
            before = session.read
            letter = before[1] if before and before[0] == body else letter_in(body, len(self._config.nodes))
            session.read = body, letter
        except (AccessError, PeerError) as error:
            log.warning("letter refused: %s", error)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        answer = self._received(letter)
        if answer is None:
            return b""
        content = answer_out(answer)
        return auth.proof(session.key, "answer", self._config.job, counter.encode(), content) + content

    def _check(self, body: bytes, metadata: dict[str, str | bytes]) -> tuple[_Session, str]:
        """The session that the letter came in, and its number there. Raises AccessError."""
        name, tag = metadata.get("ckptd-session"), metadata.get("ckptd-tag-bin")
        counter = str(metadata.get("ckptd-counter", ""))
        with self._lock:
            session = self._sessions.get(str(name))
            if session is None or not counter.isdigit() or not isinstance(tag, bytes):
                raise AccessError("no such session; begin with a challenge")
            if not auth.same(tag, auth.proof(session.key, "letter", self._config.job, counter.encode(), body)):
                raise AccessError("the sender does not know this job's secret; give every node the same --secret-file")
            if int(counter) <= session.counter:
                raise AccessError("a letter was repeated")
            session.counter = int(counter)
            return session, counter


def _shape(config: Config) -> tuple[int, int, int]:
    return len(config.nodes), config.parity, config.group_size


def _told(shape: tuple[int, ...]) -> str:
    names = ("nodes", "parity", "group_size")
    return ", ".join(f"{name} {value}" for name, value in zip(names, shape, strict=False)) or "no shape"


# ---- outgoing -----------------------------------------------------------------------------------


class _Mailbox:
    """One peer: its channel, its session, and the newest letters that wait for it."""

    def __init__(self, config: Config, node: int, places: Places, answered: Answered) -> None:
        self._config, self._node, self._places, self._answered = config, node, places, answered
        self._unknown: tuple[str, Callable[[], None]] | None = None
        self._refused = ""
        self._session: tuple[str, _Session] | None = None
        self._waiting: dict[type, bytes] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._complaint = ""
        self._mismatch = ""
        self._looked_at = -_LOOK_AGAIN_S
        self._connect()
        threading.Thread(target=self._run, name=f"peer-{node}", daemon=True).start()

    def _connect(self) -> None:
        self._channel = tls.channel(self._config.nodes[self._node], self._config.tls, _CHANNEL)
        call = self._channel.unary_unary
        self._challenge = call(
            f"/{PEER}/Challenge", pb.ChallengeRequest.SerializeToString, pb.ChallengeReply.FromString
        )
        self._deliver = call(f"/{PEER}/Deliver", None, None)

    def put(self, kind: type, body: bytes) -> None:
        with self._wake:
            self._waiting[kind] = body
            self._wake.notify()

    def vouch(self, boot: str, then: Callable[[], None]) -> None:
        """Ask at the address who is there, and do `then` if it is this run of the daemon. The newest question counts."""
        with self._wake:
            self._unknown = boot, then
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._channel.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._unknown or self._closing, timeout=60)
                if self._closing:
                    return
                unknown, self._unknown = self._unknown, None
                bodies = list(self._waiting.values())
                self._waiting.clear()
            try:
                if unknown:
                    self._look(*unknown)
                for body in bodies:
                    self._send(body)
            except ValueError:  # the channel was closed under the call
                return

    def _look(self, boot: str, then: Callable[[], None]) -> None:
        with self._reporting():
            self._introduce()
            if self._places.admits(self._node, boot):
                then()
            elif boot != self._refused:
                self._refused = boot
                log.warning(
                    "node %d: another daemon than the one at %s sends letters for this place; they do not count, stop it",
                    self._node,
                    self._config.nodes[self._node],
                )

    def _send(self, body: bytes) -> None:
        with self._reporting():
            name, session = self._session or self._introduce()
            session.counter += 1
            tag = auth.proof(session.key, "letter", self._config.job, str(session.counter).encode(), body)
            metadata = (("ckptd-session", name), ("ckptd-counter", str(session.counter)), ("ckptd-tag-bin", tag))
            reply: bytes = self._deliver(body, timeout=_CALL_S, metadata=metadata)
            if reply:
                self._answered(self._node, self._read(reply, session))

    def _read(self, reply: bytes, session: _Session) -> Answer:
        """What the peer answers to a sighting. Raises AccessError, PeerError."""
        tag, content = reply[: auth.PROOF_BYTES], reply[auth.PROOF_BYTES :]
        expected = auth.proof(session.key, "answer", self._config.job, str(session.counter).encode(), content)
        if not auth.same(tag, expected):
            raise AccessError(f"node {self._node}: an answer that does not come from a daemon of this job")
        return answer_in(content, len(self._config.nodes))

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """A call to the peer: what fails is logged once."""
        try:
            yield
        except (grpc.RpcError, AccessError, PeerError) as error:
            # The letter is lost, which is allowed: the state is repeated soon, under a new session if need be.
            self._session = None
            if not isinstance(error, grpc.RpcError) or error.code() is not grpc.StatusCode.UNAVAILABLE:
                self._reconnect()
            complaint = self._reason(error) if isinstance(error, grpc.RpcError) else str(error)
            if complaint != self._complaint:
                log.info("node %d (%s): %s", self._node, self._config.nodes[self._node], complaint)
            self._complaint = complaint
        else:
            self._complaint = ""

    def _reason(self, error: grpc.RpcError) -> str:
        """What to say of a call that failed. gRPC does not tell a daemon that is gone from one with other TLS settings."""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            if time.monotonic() - self._looked_at >= _LOOK_AGAIN_S:
                self._mismatch = tls.mismatch(self._config.nodes[self._node], self._config.tls)
                self._looked_at = time.monotonic()
            if self._mismatch:
                return self._mismatch
        return str(error_of(error, f"node {self._node}"))

    def _reconnect(self) -> None:
        """A connection may be of no use without ending: a router forgot it, a flipped bit made the peer wait for the rest
        of a message that is none, or came into a header, which HTTP/2 sends once and refers to from then on. gRPC would go
        on with it for a minute or for ever.
        """
        with self._wake:
            if not self._closing:
                self._channel.close()
                self._connect()

    def _introduce(self) -> tuple[str, _Session]:
        job, secret, mine = self._config.job, self._config.secret, auth.nonce()
        request = pb.ChallengeRequest(job=job, nonce=mine, node=self._config.node, shape=_shape(self._config))
        reply = self._challenge(request, timeout=_CALL_S)
        if not auth.same(reply.proof, auth.proof(secret, "server", job, mine, reply.nonce, reply.boot.encode())):
            raise AccessError(f"node {self._node} knows another secret; give every node the same --secret-file")
        self._places.answered(self._node, reply.boot)
        self._session = reply.session, _Session(auth.proof(secret, "session", job, mine, reply.nonce))
        return self._session


class Peers:
    """The other daemons of the job, as addressees."""

    def __init__(self, config: Config) -> None:
        self._me, self._places = config.node, Places()
        self._written: dict[type, tuple[Letter, bytes]] = {}
        self.answered: Answered = lambda _node, _answer: None
        """Is told what a node answers to a sighting, on a thread of that node's own."""
        others = (node for node in range(len(config.nodes)) if node != config.node)
        self._boxes = {node: _Mailbox(config, node, self._places, self._tell) for node in others}

    def admit(self, letter: Report | Ledger, then: Callable[[], None]) -> None:
        """Do `then`, now or soon, if the letter is from the daemon that answers at its sender's address."""
        node = letter.node if isinstance(letter, Report) else letter.collector
        if node == self._me:
            log.warning("another daemon sends letters as node %d, which is this one; stop it", node)
        elif self._places.admits(node, letter.boot):
            then()
        else:
            self._boxes[node].vouch(letter.boot, then)

    def knows(self, seen: Sighting) -> bool:
        """Whether a sighting is from the daemon that answered last at its node's address. Its reports make it known."""
        return seen.node != self._me and self._places.admits(seen.node, seen.boot)

    def send(self, to: int, letter: Letter) -> None:
        """Send the letter some time soon, unless a newer one of its kind overtakes it. Never blocks, never fails."""
        kind = type(letter)
        before = self._written.get(kind)
        if before is None or before[0] is not letter:  # all peers get the same one, and again at each heartbeat
            before = self._written[kind] = letter, letter_out(letter)
        self._boxes[to].put(kind, before[1])

    def _tell(self, node: int, answer: Answer) -> None:
        self.answered(node, answer)

    def close(self) -> None:
        for box in self._boxes.values():
            box.close()
