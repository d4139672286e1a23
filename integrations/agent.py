"""torch elastic's agent, with quicker hands: trainers are ended by SIGKILL, and only a failure of its own spends a restart.

All private names of torch's agent that ckptd touches stand in this file; `check` compares them with the torch in use.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.elastic.agent.server import local_elastic_agent
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.launcher import api as launcher

from ckptd.ckpt.errors import CkptdError
from ckptd.integrations.rendezvous import CkptdRendezvous

KILL_S = 2
"""A trainer that SIGKILL has not ended after so long hangs inside the kernel; the agent goes on without waiting for it."""
BLAME_S = 0.5
"""How long to wait for another node's word before a trainer's error counts as this node's own: when a rank dies, its peers
fail in their collectives at once. A death by a signal needs no such doubt."""
LAST_S = 4.0
"""The same where no restart is left, and the job would end: peers of a node that is lost may fail at once, and the daemons
miss it after 2 s."""
_AGENT = "LocalElasticAgent"
_METHODS = ("_start_workers", "_stop_workers", "_monitor_workers")


class Agent(local_elastic_agent.LocalElasticAgent):
    """An agent whose rendezvous is `CkptdRendezvous`."""

    _pcontext: Any
    _restarting = False
    _failed: Mapping[int, int] = {}
    _remaining_restarts: int

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started = super()._start_workers(worker_group)
        processes, self._failed = self._pcontext, {}
        end = processes.close

        def close(death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
            """torch says nothing, or SIGTERM and 30 s, where trainers are to be replaced: there is nothing to wait for."""
            if death_sig is None:  # a trainer has failed, and torch ends the others before it tells anybody
                self._failed = exit_codes(processes)
            if death_sig is None or self._restarting:
                death_sig, timeout = signal.SIGKILL, KILL_S
            end(death_sig, timeout)

        processes.close = close
        self._rendezvous_by_daemons.workers = lambda: list(processes.pids().values())
        self._rendezvous_by_daemons.is_over()  # from now on the daemon ends them should this agent die
        return started  # type: ignore[no-any-return]

    def _stop_workers(self, *arguments: Any, **named: Any) -> None:
        self._restarting = True
        try:
            super()._stop_workers(*arguments, **named)
        finally:
            self._restarting = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state not in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            return result
        said, by_signal = self._first_failure(result)
        certain = by_signal or worker_group.group_world_size == 1
        if self._rendezvous_by_daemons.is_over(patience_s(certain=certain, left=self._remaining_restarts)):
            return RunResult(
                state=WorkerState.HEALTHY
            )  # the restart that the daemons asked for follows, and spends nothing
        self._rendezvous_by_daemons.blame(said)
        return result

    def _first_failure(self, result: RunResult) -> tuple[str, bool]:
        """What began it in words, and whether that was a death by a signal: where one rank is killed, others fail."""
        ended = {self._worker_group.workers[local].global_rank: code for local, code in self._failed.items()}
        if not ended:
            return f"the trainers are {result.state.name.lower()}", False
        rank, code = first_of(ended, set(result.failures))
        if code > 0:
            return f"rank {rank} ended with exit code {code}", False
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"rank {rank} was ended by {name}", True

    @property
    def _rendezvous_by_daemons(self) -> CkptdRendezvous:
        handler = self._worker_group.spec.rdzv_handler
        assert isinstance(handler, CkptdRendezvous), f"an agent of ckptd with the rendezvous {handler.get_backend()}"
        return handler


def patience_s(*, certain: bool, left: int) -> float:
    """How long to wait for another node's word before a failure counts as this node's own, with so many restarts left."""
    return 0.0 if certain else BLAME_S if left > 0 else LAST_S


def first_of(ended: Mapping[int, int], noticed: Collection[int]) -> tuple[int, int]:
    """Of the ranks that have ended, with their exit codes, the one that began it, and its code.

    A death by a signal makes others fail; but SIGTERM is what torch sends to the siblings of whom it has `noticed`.
    """
    own = [rank for rank, code in ended.items() if code != -signal.SIGTERM or rank in noticed]
    rank = min(own or ended, key=lambda rank: (ended[rank] > 0, rank))
    return rank, ended[rank]


def exit_codes(processes: Any) -> dict[int, int]:
    """The exit codes (negative: a signal) of the trainers that have ended, by local rank."""
    handlers = getattr(processes, "subprocess_handlers", None)
    if handlers is not None:
        found = {rank: handler.proc.poll() for rank, handler in handlers.items()}
    else:
        forked = getattr(processes, "_pc", None)
        found = {rank: process.exitcode for rank, process in enumerate(forked.processes)} if forked else {}
    return {rank: code for rank, code in found.items() if code}


def check() -> None:
    """Raise CkptdError when this torch lacks a name that the agent is made of, before anything is started."""
    stock = local_elastic_agent.LocalElasticAgent
    missing = [name for name in _METHODS if not hasattr(stock, name)]
    missing += [] if hasattr(launcher, _AGENT) else [f"launcher.api.{_AGENT}"]
    if missing:
        raise CkptdError(
            f"torch {torch.__version__} has no {', '.join(missing)}, which `ckptd run` needs; "
            "use torchrun --rdzv-backend ckptd, or another torch"
        )


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """While this lasts, torch's launcher makes agents of this kind: it looks the class up in its module."""
    check()
    stock = vars(launcher)[_AGENT]
    setattr(launcher, _AGENT, Agent)
    try:
        yield
    finally:
        setattr(launcher, _AGENT, stock)
