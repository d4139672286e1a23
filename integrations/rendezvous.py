"""torchrun's rendezvous by the daemons: `torchrun --rdzv-backend ckptd`, on torch elastic's public interface.

The daemons decide which agents train together (`ckptd.daemon.rounds`); an agent asks its own node's daemon, on its socket,
and polls it for the word to join anew. Every round has a store of its own, in the agent of the round's first member: each
agent listens before it asks for a round, so the place is known with the round, and nothing of an earlier one is ever met.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]  # from torch's C++ half
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from ckptd.ckpt.client import Client
from ckptd.ckpt.config import split_address
from ckptd.ckpt.errors import CkptdError, DaemonUnavailable, UsageError
from ckptd.ckpt.rounds import GIVEN_UP_EXIT, ISOLATED_EXIT, LAST_CALL_MAX_S, Agent, Ended, Place, Standing
from ckptd.integrations.store_host import host_store, listen

log = logging.getLogger(__name__)

BACKEND = "ckptd"
JOIN_S, LAST_CALL_S = 600.0, 30.0
"""torch's own defaults of --rdzv-conf join_timeout and last_call_timeout."""
_ANSWER_WAITS_S = 0.5
_POLL_S = 0.02
_CONNECT_S = 0.5
_STORE_S = 30.0
_STORE_GONE_S = 5.0
_RECONNECT_S = 5.0
_LINGER_S = 5.0


class CkptdRendezvous(RendezvousHandler):
    """One agent's side. Used from the agent's thread only."""

    def __init__(self, parameters: RendezvousParameters, connect: Callable[[], Client]) -> None:
        """`connect` returns a client of the node's daemon, and may start that. Raises UsageError, DaemonUnavailable."""
        self._backend, self._run_id = parameters.backend, parameters.run_id
        self._join_s = _seconds(parameters, "join_timeout", JOIN_S)
        last_call_s = min(_seconds(parameters, "last_call_timeout", LAST_CALL_S), LAST_CALL_MAX_S)
        self._connect, self._client = connect, connect()
        host = parameters.local_addr or split_address(str(self._client.document("Status")["address"]))[0]
        self._agent = Agent(
            secrets.token_hex(8), 0, host, 0, parameters.min_nodes, parameters.max_nodes, last_call_s=last_call_s
        )
        self._was_member = False
        self._reason = ""
        self._said = ""
        self._reconnects_at = 0.0
        self._listener: socket.socket | None = None
        self._store: TCPStore | None = None
        self.workers: Callable[[], Sequence[int]] = children
        """The trainers' processes: the daemon kills them when this process dies."""

    # ---- torch's interface --------------------------------------------------------------------------

    def get_backend(self) -> str:
        return self._backend

    @property
    def use_agent_store(self) -> bool:
        """The trainers use the round's store too: it is as new as they are."""
        return True

    def get_run_id(self) -> str:
        return self._run_id

    def is_closed(self) -> bool:
        return self._tend().state == "closed"

    def set_closed(self) -> None:
        self._client.leave(self._agent.name, "done")

    def num_nodes_waiting(self) -> int:
        """1 when this agent has to join anew; torch's agent restarts its trainers then, which spends no restart."""
        if not self.is_over():
            return 0
        # A stopped trainer does not take the SIGTERM that torch's agent sends next, which would wait for it for 30 s.
        for pid in self.workers():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                os.kill(pid, signal.SIGCONT)
        return 1

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round, and wait for it as long as `join_timeout`; as a spare, until it has a seat.

        Raises RendezvousTimeoutError; SystemExit with `ISOLATED_EXIT` when the node is kept out, with `GIVEN_UP_EXIT`, 1 or
        0 when the job has been given up, has failed, or was finished by others.
        """
        deadline = time.monotonic() + self._join_s
        while True:
            self._close_store()
            self._listener = _listen(self._agent.host)
            port = self._listener.getsockname()[1]
            self._agent = replace(self._agent, join=self._agent.join + 1, port=port, place=None, reason=self._reason)
            self._reason = ""
            seat = self._wait_for_seat(deadline)
            store = self._meet(seat, seat.place) if seat.place is not None else None
            if store is not None and seat.place is not None:
                self._was_member = True
                log.info("round %d: node rank %d of %d", seat.place.number, seat.place.rank, seat.place.size)
                where = RendezvousStoreInfo(seat.host, seat.port)
                return RendezvousInfo(PrefixStore("agents", store), seat.place.rank, seat.place.size, where)

    def shutdown(self) -> bool:
        """Leave the job, as torch's agent does at its end: finished, or not if an error is on its way up."""
        error = sys.exc_info()[1]
        ended: Ended = "done" if error is None else "failed" if isinstance(error, Exception) else "gone"
        reason = " ".join(str(error or "").split())
        try:
            self._client.leave(self._agent.name, ended, reason[:200])
            if ended == "done" and self._agent.place is not None and self._agent.place.rank == 0:
                self._linger(self._agent.place)
        except CkptdError as problem:
            log.warning("could not say goodbye to the daemon: %s", problem)
        self._close_store()
        return True

    # ---- for ckptd's own agent ----------------------------------------------------------------------

    def is_over(self, within_s: float = 0.0) -> bool:
        """Whether the round is over for this agent; waits up to `within_s` for it to be."""
        deadline = time.monotonic() + within_s
        while True:
            stands = self._tend()
            if stands.state in ("over", "isolated", "closed"):
                self._say(f"the trainers are restarted: {stands.reason}" if stands.state == "over" else stands.reason)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)

    def blame(self, reason: str) -> None:
        """Say why this agent will ask for another round; the others are told."""
        self._reason = " ".join(reason.split())

    # ---- inside -------------------------------------------------------------------------------------

    def _tend(self, wait_s: float = 0.0) -> Standing:
        """Tell the daemon that we are here, and learn how we stand. Without a daemon we stand as before."""
        try:
            stands = self._client.tend(self._agent, workers=self.workers(), wait_s=wait_s)
        except DaemonUnavailable as error:
            self._say(f"{error} The trainers go on without it.")
            self._reconnect()
            return Standing("member", place=self._agent.place) if self._agent.place else Standing("wait", str(error))
        if stands.state == "member":
            self._agent = replace(self._agent, place=stands.place)
        return stands

    def _reconnect(self) -> None:
        """Find the daemon again, or have it started: now and then, as that may take long."""
        if time.monotonic() < self._reconnects_at:
            return
        self._reconnects_at = time.monotonic() + _RECONNECT_S
        try:
            client = self._connect()
        except DaemonUnavailable:
            return  # it is asked again soon
        self._client.close()
        self._client = client

    def _wait_for_seat(self, deadline: float) -> Standing:
        """How we stand once a round was formed with us; it may be over already."""
        while True:
            stands = self._tend(_ANSWER_WAITS_S)
            if stands.state in ("member", "over"):
                return stands
            if stands.state == "isolated":
                self._exit(f"this node is isolated: {stands.reason}; `ckptd restart --admit` lets it in", ISOLATED_EXIT)
            if stands.state == "closed":
                codes = {"given up": GIVEN_UP_EXIT, "done": int(self._was_member)}
                self._exit(f"the job has ended: {stands.reason}", codes.get(stands.end, 1))
            self._say(f"waiting for {stands.reason}")
            if stands.state == "wait" and time.monotonic() >= deadline:
                raise RendezvousTimeoutError(
                    f"no round within {self._join_s:.0f} s (--rdzv-conf join_timeout): still waiting for {stands.reason}"
                )

    def _exit(self, why: str, code: int) -> None:
        """End this process with a code of its own: torch knows no way to tell a launcher's caller more than success."""
        log.log(logging.INFO if code == 0 else logging.ERROR, "%s", why)
        raise SystemExit(code)

    def _meet(self, seat: Standing, place: Place) -> TCPStore | None:
        """The round's store once all its members are there; None when the round is over before that.

        So nobody is left waiting inside torch for somebody who has died meanwhile.
        """
        assert self._listener is not None
        try:
            if place.rank == 0:
                listener, self._listener = self._listener, None
                store = host_store(listener)
            else:
                self._listener.close()
                self._listener = None
                while not _reachable(seat.host, seat.port):
                    if self.is_over(_POLL_S):
                        return None
                timeout = timedelta(seconds=_STORE_S)
                store = TCPStore(seat.host, seat.port, is_master=False, wait_for_workers=False, timeout=timeout)
            self._store = store
            store.add("here", 1)
            while store.add("here", 0) < place.size:
                if self.is_over(_POLL_S):
                    return None
        except DistError as error:  # its host is gone: so is the round, in a moment
            self.blame(f"the round's store is gone: {str(error).splitlines()[0]}")
            self.is_over(_STORE_GONE_S)
            return None
        return store

    def _linger(self, place: Place) -> None:
        """As the store's host: stay until the others have left, so that nobody's last word finds a closed door."""
        assert self._store is not None
        deadline = time.monotonic() + _LINGER_S
        while time.monotonic() < deadline:
            launch = self._client.document("Status").get("launch", {})
            if launch.get("round") != place.number or launch.get("state") != "running":
                return
            time.sleep(_POLL_S)

    def _close_store(self) -> None:
        self._store = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _say(self, text: str) -> None:
        """Log what is news."""
        if text != self._said:
            log.warning("%s", text)
        self._said = text


def children() -> Sequence[int]:
    """The process ids of the processes that this one's main thread has started."""
    try:
        return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]
    except OSError:
        return []  # a kernel without it: what trains on after our death is found by its own collectives


def _seconds(parameters: RendezvousParameters, name: str, default: float) -> float:
    text = parameters.get(name, default)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = -1.0
    if not value >= 0.0:
        raise UsageError(f"--rdzv-conf {name}={text}: expected seconds, 0 or more")
    return value


def _listen(host: str) -> socket.socket:
    try:
        return listen(host, 0)
    except OSError as error:
        raise UsageError(
            f"can't listen on {host}: {error}; name an address of this node with torchrun's --local-addr"
        ) from error


def _reachable(host: str, port: int) -> bool:
    """Whether somebody listens there. torch's own store would wait for long for a host that has died."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True
