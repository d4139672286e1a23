"""What `ckptd drill` was asked to do, made sense of: a campaign on a throw-away job, or faults on a named one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from rich.console import Console

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.drill.faults import KINDS, Campaign, Fault, campaign_from, check_shape, complete, parse
from ckptd.daemon.drill.named import run_named
from ckptd.daemon.drill.run import DrillOptions, run_drill

CAMPAIGN_MAX = 1 << 20


def run(
    faults: Sequence[str],
    *,
    nodes: int,
    parity: int,
    seed: int,
    campaign: Path | None,
    minutes: float,
    report: Path | None,
    workdir: Path | None,
    keep: bool,
    segments_root: Path,
    job: str | None,
    run_dir: Path | None,
    yes: bool,
    console: Console,
) -> int:
    """Run the drill and return its exit code. Raises UsageError for what makes no sense together."""
    if campaign and (faults or job):
        raise UsageError("--campaign names the faults, and runs on a job of its own: leave the faults and --job out")
    if not 0.0 <= minutes <= 10_000.0:
        raise UsageError(f"--minutes {minutes}: expected 0 to 10000")
    if job is not None:
        if minutes or keep or workdir:
            raise UsageError("--minutes, --keep and --workdir are for a throw-away job; leave them or --job out")
        return run_named(faults, job, run_dir, seed=seed, yes=yes, report=report, console=console)
    if run_dir or yes:
        raise UsageError("--run-dir and --yes are about a running job: name it with --job")
    chosen = read_campaign(campaign) if campaign else from_arguments(faults, nodes, parity, seed)
    options = DrillOptions(
        campaign=chosen, minutes=minutes, workdir=workdir, keep=keep, report=report, segments_root=segments_root
    )
    return run_drill(options, console)


def from_arguments(faults: Sequence[str], nodes: int, parity: int, seed: int) -> Campaign:
    """The campaign that the command line describes. Raises UsageError."""
    check_shape(nodes, parity)
    rng, chosen = Random(seed), list[Fault]()
    for text in faults:
        if text == "all":
            chosen += [complete(kind, nodes, rng) for kind in KINDS if kind != "link" or nodes > 1]
        else:
            chosen.append(parse(text, nodes, rng))
    return Campaign(nodes, parity, seed, tuple(chosen))


def read_campaign(path: Path) -> Campaign:
    """The campaign in a file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(CAMPAIGN_MAX).decode()
        return campaign_from(content)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--campaign {path}: {error}") from error
