"""`ckptd run [torchrun's options] script.py`: torchrun's command line, with the daemon beside it and ckptd's own agent.

    python -m ckptd.integrations.launch --nproc-per-node 2 train.py ...

The daemon's settings come from the environment and ckptd.toml, as everywhere. One that was started here ends with the job:
its memory goes when the job is done, and stays for the next start when it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError
from torch.distributed.launcher import api as launcher
from torch.distributed.run import config_from_args, get_args_parser

from ckptd.ckpt import embedded
from ckptd.ckpt.client import Client
from ckptd.ckpt.errors import CkptdError, DaemonUnavailable, UsageError
from ckptd.ckpt.rounds import ISOLATED_EXIT
from ckptd.ckpt.settings import Settings, read
from ckptd.integrations import agent, warm
from ckptd.integrations.rendezvous import BACKEND, CkptdRendezvous

log = logging.getLogger(__name__)

OWN_BACKEND = "ckptd-run"
"""The plug-in's backend by another name, which does not leave behind the daemons that it starts."""
MAX_RESTARTS = 10
SHUTDOWN_S = 2
"""What trainers have to end by themselves after Ctrl-C or SIGTERM; torchrun's own 30 s keep a stopped one for as long."""
_DAEMON_END_S = 10.0
_SEAL_S = 10.0
_POLL_S = 0.1


def parser() -> argparse.ArgumentParser:
    """torchrun's own, with defaults for a job that is to go on, and one option more."""
    found: argparse.ArgumentParser = get_args_parser()
    found.prog = "ckptd run"
    if not found.get_default("max_restarts"):
        found.set_defaults(max_restarts=MAX_RESTARTS)
    found.set_defaults(shutdown_timeout=found.get_default("shutdown_timeout") or SHUTDOWN_S)
    group = found.add_argument_group(
        "ckptd",
        f"The agents meet by their daemons: no endpoint is needed. --max-restarts ({MAX_RESTARTS} unless given) counts "
        "failures of this node's trainers; restarts that daemons or other nodes ask for are free.",
    )
    group.add_argument(
        "--warm-workers",
        action="store_true",
        help="fork trainers from a server that has torch loaded: a restart takes less than a second",
    )
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the job's share of this node; the exit code is torchrun's, or one of `ckptd.ckpt.rounds`."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _end)  # until torch's agent, which has its own, starts trainers
    try:
        _check(arguments)
        settings = read()
        with _daemon(settings) as connect:
            _launch(arguments, connect)
    except CkptdError as error:
        print(f"ckptd: {error}", file=sys.stderr)
        return error.exit_code
    except RendezvousTimeoutError as error:  # its traceback would bury what is still missing
        print(f"ckptd: {error}", file=sys.stderr)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:
        return 128 + int(signal.SIGINT)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.rdzv_backend not in ("static", BACKEND):  # the first is torchrun's default
        raise UsageError(
            f"--rdzv-backend {arguments.rdzv_backend}: `ckptd run` meets by its daemons (ckptd); leave the option away"
        )
    if arguments.warm_workers and arguments.no_python:
        raise UsageError(
            "--warm-workers and --no-python: only Python can be forked from a warm server; drop one of them"
        )


def _launch(arguments: argparse.Namespace, connect: Callable[[], Client]) -> None:
    arguments.rdzv_backend, arguments.standalone = OWN_BACKEND, False
    del arguments.master_addr  # torchrun warns that nothing but its static backend has a use for it
    config, command, command_arguments = config_from_args(arguments)
    if arguments.warm_workers:
        config.start_method = "forkserver"
        command = warm.run_module if arguments.module else warm.run_script
        command_arguments = [arguments.training_script, *arguments.training_script_args]
        warm.start_server()
    rendezvous_handler_registry.register(OWN_BACKEND, lambda parameters: CkptdRendezvous(parameters, connect))
    with agent.installed():
        record(launcher.elastic_launch(config, command))(*command_arguments)


@contextlib.contextmanager
def _daemon(settings: Settings) -> Iterator[Callable[[], Client]]:
    """The node's daemon while the job runs: the one that is there, or one of our own, which is ended with the job."""
    own: list[subprocess.Popen[bytes]] = []

    def connect() -> Client:
        """A client of the daemon; starts one if none runs, also when ours was killed."""
        started = embedded.start_if_none(settings)
        if started is not None:
            own.append(started)
        return Client(settings.where(), settings.job)

    leave_it = False
    done = False
    try:
        yield connect
        if own:
            _let_it_finish(settings)
        done = True
    except SystemExit as ending:
        leave_it, done = ending.code == ISOLATED_EXIT, not ending.code  # 0: a spare of a job that others have finished
        raise
    finally:
        if own and leave_it:
            log.warning("the daemon (pid %d) goes on: the others may need what it holds", own[-1].pid)
            own[-1].returncode = 0  # nobody waits for it
        elif own:
            _stop(own, settings, done=done)


def _let_it_finish(settings: Settings) -> None:
    """Wait until the daemon has sealed the last step and written what is to be written. Ctrl-C ends the wait."""
    if not (settings.storage and settings.persist_every):
        return
    sealed_by = time.monotonic() + _SEAL_S
    log.info("the job is done; its last steps go to storage")
    with contextlib.suppress(DaemonUnavailable), contextlib.closing(Client(settings.where(), settings.job)) as client:
        while True:
            status = client.document("Status")
            unsealed = status.get("captured") != status.get("sealed") and time.monotonic() < sealed_by
            if not (unsealed or status.get("persisting")):
                return
            time.sleep(_POLL_S)


def _stop(own: list[subprocess.Popen[bytes]], settings: Settings, *, done: bool) -> None:
    """End the daemon that we started, whatever else is asked of us meanwhile."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for daemon in own:
        daemon.terminate()
        try:
            daemon.wait(_DAEMON_END_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    memory = settings.config().segment_dir
    if done or not any(memory.glob("rank-*")):
        shutil.rmtree(memory, ignore_errors=True)
    else:
        log.warning("snapshots stay in %s: the same command goes on from them", memory)


def _end(number: int, _frame: FrameType | None) -> Any:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
