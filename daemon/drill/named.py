"""A drill on a running job: its trainers and its daemon on this node, and only if the job was named and they are ours."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil
from rich.console import Console

from ckptd.ckpt.client import Client
from ckptd.ckpt.errors import AccessError, CkptdError, DaemonUnavailable, UsageError
from ckptd.ckpt.settings import read
from ckptd.daemon.demo.watch import Event, Watch
from ckptd.daemon.drill.faults import KINDS, Fault, Promise, parse, promise
from ckptd.daemon.drill.job import fill
from ckptd.daemon.drill.judge import Outcome, judge, new_seal
from ckptd.daemon.drill.strikes import flip_bit, slots_of
from ckptd.daemon.records import is_ours

PROTECTED_S = 180.0
"""How long the job may take to be protected again: its launcher restarts it at its own pace."""
POLL_S = 0.2
THROW_AWAY_ONLY = ("disk", "link")
_ANY_NODE = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """What may be struck: this node's part of a running job."""

    job: str
    run_dir: Path
    status: dict[str, Any]

    @classmethod
    def find(cls, run_dir: Path, job: str) -> Target:
        """The job's daemon in `run_dir`. Raises DaemonUnavailable, and AccessError when another job lives there."""
        with contextlib.closing(Client(run_dir, job)) as client:
            status = client.document("Status")
        if status["job"] != job:
            raise AccessError(
                f"the daemon in {run_dir} belongs to job {status['job']!r}, not to {job!r}; nothing was done"
            )
        return cls(job, run_dir, status)

    @property
    def segment_dir(self) -> Path:
        return Path(self.status["segment_dir"])

    @property
    def ranks(self) -> dict[int, int]:
        """The process id of each trainer here."""
        return {item["rank"]: item["pid"] for item in self.status["trainers"]}

    def daemon_pid(self) -> int:
        """The process that holds the run directory."""
        try:
            return int((self.run_dir / "lock").read_text())
        except (OSError, ValueError) as error:
            raise CkptdError(f"{self.run_dir / 'lock'} does not say which process the daemon is ({error})") from error


def run_named(
    faults: Sequence[str],
    job: str,
    run_dir: Path | None,
    *,
    seed: int,
    yes: bool,
    report: Path | None,
    console: Console,
) -> int:
    """Strike the faults one after the other; return 0 when every promise was kept.

    Raises UsageError, AccessError or CkptdError, and has done nothing then, when a fault is not allowed on this job.
    """
    if not faults:
        raise UsageError(
            f"--job {job}: name the faults to strike it with: {', '.join(set(KINDS) - set(THROW_AWAY_ONLY))}"
        )
    where, rng = read(run_dir=run_dir, job=job).where(), Random(seed)
    chosen = [choose(Target.find(where, job), text, rng) for text in faults]
    outcomes = []
    for fault in chosen:
        target = Target.find(where, job)
        check(target, fault, yes)
        outcomes.append(perform(target, fault, rng, console))
        if report:
            content = {
                "job": job,
                "kept": not any(o.broken for o in outcomes),
                "faults": [o.as_json() for o in outcomes],
            }
            report.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def choose(target: Target, text: str, rng: Random) -> Fault:
    """The fault that is meant; its node is a rank here. Raises UsageError."""
    ranks = sorted(target.ranks)
    kind, _, rest = text.partition(":")
    if "=" not in kind:
        text = f"{kind}={rng.choice(ranks) if ranks else 0}" + (f":{rest}" if rest else "")
    fault = parse(text, _ANY_NODE, rng)
    if fault.kind in THROW_AWAY_ONLY:
        raise UsageError(
            f"{fault.kind}: only in a throw-away job (leave --job out); a running job's own can't be taken over"
        )
    if fault.kind in ("rank", "bits") and fault.node not in target.ranks:
        raise UsageError(f"{fault.kind}={fault.node}: no such trainer at this node; expected one of {ranks or 'none'}")
    return fault


def check(target: Target, fault: Fault, yes: bool) -> None:
    """Raise AccessError or CkptdError unless the fault may be struck at this job now."""
    pids = [*target.ranks.values(), target.daemon_pid()]
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            owner = psutil.Process(pid).uids().real
            if owner != os.getuid():
                raise AccessError(f"process {pid} of job {target.job} belongs to user {owner}, you are {os.getuid()}")
    status = target.status
    if not status.get("sealed"):
        raise CkptdError(f"job {target.job} has sealed no step yet, so nothing is promised; try again when it has")
    if yes:
        return
    if not status["ok"]:
        raise CkptdError(f"job {target.job} is not whole ({status['reason']}); --yes strikes it all the same")
    if fault.kind in ("node", "bits") and not status.get("losses_tolerated"):
        raise CkptdError(
            f"{fault.kind}: job {target.job} tolerates no loss now and may lose steps; --yes strikes all the same"
        )
    if fault.kind == "node":
        raise CkptdError(f"node: this deletes the snapshots of node {status['node']}; --yes does it")


def perform(target: Target, fault: Fault, rng: Random, console: Console) -> Outcome:
    """Strike it and wait until the job is protected again."""
    status, before = target.status, target.status["sealed"]
    promised = promise(fault, len(status["nodes"]), int(status["parity"]))
    watch, record = Watch(), target.run_dir / "events.jsonl"
    watch.follow(record, "daemon")
    watch.tails[record].offset = record.stat().st_size
    console.print(
        f"FAULT {fault} at job {target.job}, node {status['node']}: promised is {promised.text}", style="bold"
    )
    struck = time.time()
    watch.events.append(Event(struck - 1e-3, "drill", "sealed", dict(before)))
    strike(target, fault, rng)
    calm = time.time()
    sealed = _wait(watch, calm, needs_restore=promised.sources is not None, struck=struck)
    restored = [as_decision(event) for event in watch.events if event.name == "gathered"]
    outcome = judge(fault, promised, [*watch.events, *restored], struck, sealed, 0)
    tell(console, outcome, promised)
    return outcome


def strike(target: Target, fault: Fault, rng: Random) -> None:
    """Do it. Only processes and files of this job on this node are touched."""
    acts: dict[str, Callable[[], None]] = {
        "rank": lambda: _kill(target.ranks[fault.node]),
        "daemon": lambda: _kill(target.daemon_pid()),
        "node": lambda: _lose(target),
        "memory": lambda: _fill(target, fault.seconds),
        "bits": lambda: _spoil(target, fault.node, rng),
    }
    acts[fault.kind]()


def as_decision(event: Event) -> Event:
    """What was brought to this node's trainers, as the decision that it followed from, which another node may have made."""
    sources = set(event.fields.get("sources", ()))
    worst = next((rung for rung in ("storage", "parity", "peer", "own") if rung in sources), "none")
    fields = {"source": worst, "version_epoch": event.fields["epoch"], "step": event.fields["step"]}
    return Event(event.t, "daemon", "decided", fields)


def tell(console: Console, outcome: Outcome, promised: Promise) -> None:
    """What happened, and whether that was promised."""
    times = ((outcome.t_noticed, "noticed"), (outcome.t_sealed, "protected again"))
    told = ", ".join(f"{name} after {when:.1f} s" for when, name in times if when is not None)
    console.print(f"{outcome.happened}; {told or 'nothing was noticed'}")
    if outcome.broken:
        console.print(f"BROKEN: {'; '.join(outcome.broken)}", style="bold red")
    else:
        console.print(f"kept: {promised.text}", style="bold green")


def _wait(watch: Watch, calm: float, *, needs_restore: bool, struck: float) -> float | None:
    deadline = time.monotonic() + PROTECTED_S
    while time.monotonic() < deadline:
        watch.poll()
        sealed = new_seal(watch.events, calm)
        restored = any(event.name == "gathered" and event.t >= struck for event in watch.events)
        if sealed is not None and (restored or not needs_restore):
            return sealed
        time.sleep(POLL_S)
    return None


def _kill(pid: int) -> None:
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        raise DaemonUnavailable(f"process {pid} is gone already; nothing was done") from None


def _lose(target: Target) -> None:
    for pid in [*target.ranks.values(), target.daemon_pid()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    for path in target.segment_dir.iterdir():
        if is_ours(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def _fill(target: Target, seconds: float) -> None:
    ballast = target.segment_dir.parent / f".ckptd-drill-ballast-{os.getpid()}"
    try:
        fill(ballast)
        time.sleep(seconds)
    finally:
        ballast.unlink(missing_ok=True)


def _spoil(target: Target, rank: int, rng: Random) -> None:
    _kill(target.ranks[rank])
    for path in slots_of(target.segment_dir, rank):
        flip_bit(path, rng)
