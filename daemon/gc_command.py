"""`ckptd gc`: what may go from a storage root, without any daemon."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from ckptd.ckpt.durations import age_of
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import check_job_name
from ckptd.ckpt.places import root_of, shelf_at
from ckptd.ckpt.retention import WRITING_S, Rule, doomed
from ckptd.ckpt.settings import read
from ckptd.ckpt.shelf import Leftover, Published, Shelf
from ckptd.ckpt.storage import Storage
from ckptd.daemon.asking import show
from ckptd.daemon.cli_options import AsJson, Job, Yes
from ckptd.daemon.shelf_commands import leftover_row, shown_age, step_row
from ckptd.daemon.tables import row_of, table_of


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would go, what stays, and what can't be told apart from a write that goes on."""

    steps: tuple[Published, ...]
    leftovers: tuple[Leftover, ...]
    kept: tuple[Published, ...]
    writing: tuple[Leftover, ...]

    @property
    def nbytes(self) -> int:
        return sum(step.nbytes for step in self.steps) + sum(item.nbytes for item in self.leftovers)


def gc(
    storage: Annotated[str, typer.Option(help="The storage directory or URL, as for `serve`.")],
    job: Job = None,
    keep_last: Annotated[int, typer.Option(help="Keep so many of the newest complete steps (0: all).")] = 0,
    keep_every: Annotated[int, typer.Option(help="Also keep every multiple of so many steps.")] = 0,
    older_than: Annotated[
        str | None, typer.Option(help="Remove only what is older, as 12h, 7d or 2w.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove persisted steps that are not to be kept, and what broken writes have left. No daemon is needed.

    What would go, and how much is freed: `ckptd gc --storage /mnt/ckpt --job gpt --keep-last 3 --keep-every 10000 --dry-run`

    The same of an object store: `ckptd gc --storage s3://bucket/prefix --job gpt --keep-last 3 --dry-run`

    All that is older than a week, but never the newest: `ckptd gc --storage /mnt/ckpt --job gpt --older-than 7d`

    Never goes: the newest complete step, and what somebody has written to within the last hour. Without `--keep-last` and
    `--older-than` only leftovers go. It asks first, unless told `--yes`.
    """
    age_s = None if older_than is None else age_of(older_than, "--older-than")
    rule = Rule(keep_last, keep_every, age_s).check()
    if as_json and not (yes or dry_run):
        raise UsageError("--json asks nobody; give --yes to remove, or --dry-run to look")
    shelf, name = shelf_at(root_of(storage)), check_job_name(read(job=job).job)
    found = outlook(shelf, name, rule, time.time())
    removes = not dry_run and bool(found.steps or found.leftovers)
    if removes and not yes:
        Console().print(_table(_content(shelf, name, found, removed=False)))
        removes = typer.confirm("Remove these?")
        if not removes:
            raise typer.Exit(1)
        again = outlook(shelf, name, rule, time.time())  # the job may have gone on while nobody answered
        found = Outlook(_both(found.steps, again.steps), _both(found.leftovers, again.leftovers), (), ())
    if removes:
        _remove(shelf, Storage(shelf.place(name), name), found)
    show(_content(shelf, name, found, removed=removes), as_json, _table)


def outlook(shelf: Shelf, job: str, rule: Rule, now: float) -> Outlook:
    """What the rule says of a job's steps. Raises StorageError."""
    steps, left = shelf.published(job), shelf.leftovers(job)
    linked = {step.version for step in steps if step.is_link}
    gone = set(doomed([step.kept(now) for step in steps], rule)) - linked  # what a link names is somebody else's
    old = [item for item in left if item.touched_at is not None and now - item.touched_at >= WRITING_S]
    return Outlook(
        tuple(step for step in reversed(steps) if step.version in gone),
        tuple(old),
        tuple(step for step in steps if step.version not in gone),
        tuple(item for item in left if item not in old),
    )


def _both(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(item for item in first if item in second)


def _remove(shelf: Shelf, storage: Storage, found: Outlook) -> None:
    for step in found.steps:
        storage.remove(step.version)
    for item in found.leftovers:
        shelf.discard(item)


def _content(shelf: Shelf, job: str, found: Outlook, *, removed: bool) -> dict[str, Any]:
    now = time.time()
    return {
        "storage": shelf.where, "job": job, "removed": removed, "bytes": found.nbytes,
        "steps": [step_row(step, now) for step in found.steps],
        "leftovers": [leftover_row(item, now) for item in found.leftovers],
        "kept": [step_row(step, now) for step in found.kept],
        "writing": [leftover_row(item, now) for item in found.writing],
    }  # fmt: skip


def _table(content: dict[str, Any]) -> RenderableType:
    verb = "removed" if content["removed"] else "would go"
    table = table_of(f"job {content['job']} on {content['storage']}", "what", "epoch", "ranks", "size", "age", "")
    for mark, rows in ((verb, content["steps"]), ("stays", content["kept"])):
        for row in rows:
            cells = (f"step {row['step']}", row["epoch"], row["ranks"], decimal(row["bytes"]), shown_age(row["age_s"]))
            row_of(table, *cells, f"{mark}{_why(row)}", style="yellow" if mark == verb else "dim")
    for mark, rows in (
        (f"{verb}: left by a broken write", content["leftovers"]),
        ("is written now", content["writing"]),
    ):
        for row in rows:
            cells = (Path(row["path"]).name, "-", "-", decimal(row["bytes"]), shown_age(row["age_s"]))
            row_of(table, *cells, mark, style="dim" if mark == "is written now" else "yellow")
    count = len(content["steps"]) + len(content["leftovers"])
    freed = f"{decimal(content['bytes'])} {'freed' if content['removed'] else 'would be freed'}"
    return Group(table, Text(f"{len(content['steps'])} steps, {count - len(content['steps'])} leftovers: {freed}"))


def _why(row: dict[str, Any]) -> str:
    return f": {row['reason']}" if row["reason"] else ""
