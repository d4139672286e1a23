"""What the commands have in common: a client of this node's daemon, bars of its work, and how results are shown."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from ckptd.ckpt.client import Client
from ckptd.ckpt.settings import read
from ckptd.daemon import bars


def client_of(run_dir: Path | None, job: str | None) -> Client:
    """A client of the daemon that the settings name; it connects when it is first asked."""
    settings = read(run_dir=run_dir, job=job)
    return Client(settings.where(), settings.job)


def work_bar(
    what: str, work: str, run_dir: Path | None, job: str | None, *, quiet: bool
) -> AbstractContextManager[None]:
    """A progress bar of the daemon's work; it has a client of its own, as a client serves one thread."""

    def ask() -> bars.Work:
        with contextlib.closing(client_of(run_dir, job)) as client:
            found: bars.Work = client.document("Status").get("work", {})
            return found

    return bars.bar(what, work, ask, quiet=quiet)


def show(content: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], Any]) -> None:
    """Print a result for people or for programs."""
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        Console().print(render(content))
