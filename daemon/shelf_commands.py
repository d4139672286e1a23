"""`ckptd list --storage` and `ckptd verify --storage`: what is on a storage root, without any daemon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from ckptd.ckpt import manifest
from ckptd.ckpt.model import check_job_name
from ckptd.ckpt.places import root_of, shelf_at
from ckptd.ckpt.shelf import Leftover, Published
from ckptd.ckpt.storage import Storage
from ckptd.daemon import bars, checking, tables
from ckptd.daemon.asking import show
from ckptd.daemon.sizes import age_words
from ckptd.daemon.tables import row_of, table_of


def list_storage(storage: str, job: str | None, as_json: bool) -> None:
    """Print the steps of one job, or of all, below a storage root. Ends with 1 when one of them is broken."""
    shelf = shelf_at(root_of(storage))
    names = shelf.jobs() if job is None else [check_job_name(job)]
    now = time.time()
    found: list[dict[str, Any]] = [
        {
            "job": name,
            "steps": [step_row(step, now) for step in shelf.published(name)],
            "leftovers": [leftover_row(item, now) for item in shelf.leftovers(name)],
        }
        for name in names
    ]
    ok = all(row["complete"] for item in found for row in item["steps"])
    show({"storage": shelf.where, "ok": ok, "jobs": found}, as_json, _listing)
    if not ok:
        raise typer.Exit(1)


def verify_storage(storage: str, job: str | None, as_json: bool) -> None:
    """Check every byte of the steps of one job, or of all, below a storage root. Ends with 1 when one of them fails."""
    shelf = shelf_at(root_of(storage))
    names = shelf.jobs() if job is None else [check_job_name(job)]
    rows: list[dict[str, Any]] = []
    for name in names:
        kept = Storage(shelf.place(name), name)
        steps, problems = kept.steps()
        rows += [{"kind": "file", "what": problem, "ok": False, "reason": problem} for problem in problems]
        work: dict[str, int] = {"done": 0, "total": sum(image.size for step in steps for image in step.manifest.images)}
        with bars.bar(f"checking job {name}", "read", lambda work=work: {"read": work}, quiet=as_json):  # type: ignore[misc]
            for step in steps:
                for row in checking.files(kept, step):
                    rows.append(row | {"job": name})
                    work["done"] += row["bytes"]
    ok = all(row["ok"] for row in rows)
    show({"storage": shelf.where, "ok": ok, "checked": rows}, as_json, tables.checks)
    if not ok:
        raise typer.Exit(1)


def step_row(step: Published, now: float) -> dict[str, Any]:
    """A step for a table, or as JSON."""
    return {
        "epoch": step.version.epoch, "step": step.version.step, "ranks": step.world, "bytes": step.nbytes,
        "age_s": _age_s(step.written_at, now), "complete": not step.problem, "reason": step.problem,
        "path": manifest.dir_name(step.version),
    }  # fmt: skip


def leftover_row(item: Leftover, now: float) -> dict[str, Any]:
    """The same of something that is being written."""
    return {"path": item.where, "bytes": item.nbytes, "age_s": _age_s(item.touched_at, now)}


def shown_age(age_s: float | None) -> str:
    """An age for a table."""
    return "-" if age_s is None else age_words(age_s)


def _age_s(at: float | None, now: float) -> float | None:
    return None if at is None else round(now - at, 1)


def _listing(content: dict[str, Any]) -> RenderableType:
    shown: list[RenderableType] = []
    for item in content["jobs"]:
        table = table_of(f"job {item['job']} on {content['storage']}", "step", "epoch", "ranks", "size", "age", "")
        for row in item["steps"]:
            cells = (row["step"], row["epoch"], row["ranks"], decimal(row["bytes"]), shown_age(row["age_s"]))
            row_of(table, *cells, row["reason"] or "complete", style="" if row["complete"] else "red")
        for row in item["leftovers"]:
            cells = (Path(row["path"]).name, "-", "-", decimal(row["bytes"]), shown_age(row["age_s"]))
            row_of(table, *cells, "being written, or left by a broken write (`ckptd gc`)", style="dim")
        shown.append(table)
    return Group(*shown) if shown else Text(f"{content['storage']}: no job has persisted anything here")
