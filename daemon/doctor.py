"""`ckptd doctor`: is this node fit for a job? A list of checks, each with what was found and what to do about it.

A check is a function from the configuration to rows; `CHECKS` lists them. Each is made of two halves: a probe
(`probes.py`) that finds something out, and a pure function here that judges it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from rich.filesize import decimal

from ckptd.ckpt.budget import ADVICE, Limit
from ckptd.ckpt.config import SOON_DAYS, Config, Tls
from ckptd.ckpt.errors import CkptdError
from ckptd.daemon import probes
from ckptd.daemon.limits import limits
from ckptd.daemon.probes import Answer, Codec, Place, Writing

Verdict = Literal["ok", "warn", "fail"]

CONTAINER_SHM = 64 << 20
"""What Docker and Kubernetes give /dev/shm unless told otherwise."""
GET_ISAL = 'pip install "pyeclib>=1.8" (its wheel carries ISA-L), or install the system\'s libisal2'
ENLARGE = "enlarge it (containers: --shm-size=16g, or an emptyDir of medium Memory), or set CKPTD_SEGMENT_DIR elsewhere"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was checked."""

    name: str
    verdict: Verdict
    """warn: it works, but not as well as it could, or not yet. fail: a job would not work here."""
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


Check = Callable[[Config], Sequence[Row]]


def examine(config: Config, checks: Sequence[Check] | None = None) -> dict[str, Any]:
    """Run the checks (default: all) and return the document that the command line prints; `ok` unless one failed."""
    rows = [row for check in (CHECKS if checks is None else checks) for row in _rows(check, config)]
    return {
        "ok": all(row.verdict != "fail" for row in rows),
        "job": config.job,
        "node": config.node,
        "checks": [asdict(row) for row in rows],
    }


def _rows(check: Check, config: Config) -> Sequence[Row]:
    """A check that can't be made is a row that failed: the others still say what they found."""
    try:
        return check(config)
    except (OSError, CkptdError) as error:
        return [Row(check.__name__.replace("_", " "), "fail", str(error))]


# ---- the checks ---------------------------------------------------------------------------------------------


def erasure_code(config: Config) -> Sequence[Row]:
    """Which library makes the parities, and how fast it is here."""
    return judge_codec(probes.codec(config))


def shared_memory(config: Config) -> Sequence[Row]:
    """Where the snapshots go."""
    return judge_memory(probes.place(config.segment_dir), config.memory_bytes, os.getuid())


def memory_limits(config: Config) -> Sequence[Row]:
    """What bounds the snapshots beside the size of the tmpfs: the machine, and the cgroups that a daemon would run in."""
    return [judge_limit(limit, config.memory_bytes) for limit in limits(config.segment_dir) if limit.kind != "tmpfs"]


def storage(config: Config) -> Sequence[Row]:
    """Where steps are persisted."""
    if config.storage is None:
        return [Row("storage", "warn", "none", "set --storage for steps that must survive the loss of every node")]
    if isinstance(config.storage, str):
        return [judge_bucket(config.storage, probes.keeping(config.storage))]
    place = probes.place(config.storage)
    return judge_storage(place, probes.writing(config.storage) if place.exists else None)


def run_directory(config: Config) -> Sequence[Row]:
    """Where the daemon's socket stands."""
    return judge_run_dir(probes.place(config.run_dir), os.getuid())


def encryption(config: Config) -> Sequence[Row]:
    """Whether what the daemons send each other can be read on the way. (That the files are right, `Config` has checked.)"""
    return judge_encryption(config.tls, len(config.nodes), datetime.now(timezone.utc))


def daemon(config: Config) -> Sequence[Row]:
    """Who answers there, and how its job's groups stand in the failure domains."""
    return judge_answer(probes.answer(config))


CHECKS: tuple[Check, ...] = (erasure_code, shared_memory, memory_limits, storage, run_directory, encryption, daemon)


# ---- from what was found to rows ----------------------------------------------------------------------------


def judge_codec(found: Codec) -> list[Row]:
    """Which backend computes, how fast, and how to get the fast one."""
    speed = f"{found.gb_per_s:.1f} GB/s of data on one core"
    what = f"{'XOR' if found.m == 1 else 'RS'}({found.k},{found.m}) with {found.origin}: {speed}"
    if not found.isal_missing:
        return [Row("erasure code", "ok", what)]
    # numpy's XOR is nearly as fast.
    verdict: Verdict = "ok" if found.backend == "xor" else "warn"
    return [
        Row(
            "erasure code",
            verdict,
            what,
            f"ten times as fast for two or more parities: {GET_ISAL}; looked for: {found.isal_missing}",
        )
    ]


def judge_memory(found: Place, memory_bytes: int, user: int) -> list[Row]:
    """Whether the segment directory's file system is memory, and large enough to begin with."""
    what = f"{found.path} on {found.filesystem}, {decimal(found.free)} free of {decimal(found.total)}"
    rows = []
    if found.filesystem not in ("tmpfs", "ramfs", "unknown"):
        rows.append(
            Row("shared memory", "warn", what, "snapshots would wait for a disk: choose a directory on a tmpfs")
        )
    elif found.total <= CONTAINER_SHM:
        rows.append(Row("shared memory", "fail", f"{what}: the default of containers, too small", ENLARGE))
    elif memory_bytes > found.total:
        rows.append(Row("shared memory", "fail", f"{what}, but memory_bytes is {decimal(memory_bytes)}", ENLARGE))
    else:
        rows.append(Row("shared memory", "ok", what))
    return rows + _access("segment directory", found, user)


def judge_limit(found: Limit, memory_bytes: int) -> Row:
    """Whether the memory that the snapshots may take is there at all."""
    what = f"{found.name} has {decimal(found.free)} free of {decimal(found.total)}"
    if memory_bytes > found.total:
        return Row("memory", "fail", f"{what}, but memory_bytes is {decimal(memory_bytes)}", ADVICE[found.kind])
    return Row("memory", "ok", what)


def judge_storage(found: Place, written: Writing | None) -> list[Row]:
    """Whether steps can be persisted, and whether that spares the page cache. `written` is None where nothing is yet."""
    what = f"{found.path} on {found.filesystem}, {decimal(found.free)} free"
    if written is None:
        if found.writable:
            return [Row("storage", "ok", f"{what}; will be made")]
        return [Row("storage", "fail", f"{found.path} is not there and can't be made", "make it, owned by you")]
    if written.problem:
        return [Row("storage", "fail", f"{what}: cannot write ({written.problem})", "check space and permissions")]
    if not written.direct:
        return [
            Row(
                "storage",
                "warn",
                f"{what}; no O_DIRECT",
                "writes go through the page cache: more CPU, and the trainers lose theirs",
            )
        ]
    return [Row("storage", "ok", f"{what}; O_DIRECT")]


def judge_bucket(url: str, problem: str) -> Row:
    """Whether an object store takes, gives back and removes an object; `problem` is what it says instead."""
    if problem:
        return Row("storage", "fail", problem, "check the URL, the credentials and what they may do")
    return Row("storage", "ok", f"{url}: an object was written, read and removed")


def judge_run_dir(found: Place, user: int) -> list[Row]:
    """Whether the daemon's socket can stand there. (That its path is short enough, the configuration has checked.)"""
    rows = _access("run directory", found, user)
    length = len(os.fsencode(found.path / "ckptd.sock"))
    state = f"mode {found.mode:04o}" if found.exists else "will be made"
    return rows or [Row("run directory", "ok", f"{found.path}, {state}; socket path of {length} of 107 bytes")]


def _access(name: str, found: Place, user: int) -> list[Row]:
    """What keeps a daemon of this user from having the directory to itself."""
    if not found.writable:
        state = "can't be written to" if found.exists else "is not there and can't be made"
        return [Row(name, "fail", f"{found.path} {state}", "choose another directory")]
    if found.exists and found.owner != user:
        return [
            Row(name, "fail", f"{found.path} belongs to user {found.owner}, you are {user}", "choose another directory")
        ]
    if found.exists and found.mode & 0o077:
        return [
            Row(
                name,
                "warn",
                f"{found.path} is open to others (mode {found.mode:04o})",
                "a daemon closes it at its start",
            )
        ]
    return []


def judge_encryption(tls: Tls | None, nodes: int, now: datetime) -> list[Row]:
    """Whether TLS is on where there is something to hide, and for how long the certificate is good."""
    if tls is None and nodes == 1:
        return [Row("encryption", "ok", "not needed: a single node sends nothing")]
    if tls is None:
        advice = "unless the network is trusted: `ckptd certs`, then --tls-dir on every node"
        return [Row("encryption", "ok", "off: what the daemons send each other can be read on the way", advice)]
    what = f"node {tls.node}: certificate good until {tls.until:%Y-%m-%d} ({tls.days_left(now)} days)"
    if tls.days_left(now) < SOON_DAYS:
        return [Row("encryption", "warn", what, "make new ones with `ckptd certs` and restart every daemon with them")]
    return [Row("encryption", "ok", what)]


def judge_answer(found: Answer) -> list[Row]:
    """Whether a daemon answers, and is well. None at all is only a warning: one may be about to be started."""
    if found.state == "well":
        groups = [Row("groups", "ok" if found.rule_kept else "warn", line) for line in found.groups]
        return [Row("daemon", "ok", f"{found.said} answers"), *groups]
    if found.state == "silent":
        return [Row("daemon", "warn", found.said, "or let Checkpointer start one")]
    advice = "`ckptd status` shows all nodes" if found.state == "unwell" else ""
    return [Row("daemon", "fail", found.said, advice)]
