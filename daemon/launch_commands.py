"""`ckptd run` and `ckptd restart`: start a job's trainers, and have them started again."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from ckptd.ckpt.client import Client
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.settings import read
from ckptd.daemon.cli_options import AsJson, Job, RunDir

RUN_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def run(context: typer.Context) -> None:
    """Train: torchrun's command line, with the daemon started beside it. `ckptd run --nproc-per-node 2 train.py ...`

    Trainers that die or hang are ended and started again together, on all nodes, from the newest snapshot.
    """
    # torch lives in a process of its own, which takes this one's place: signals reach it directly.
    command = [sys.executable, "-m", "ckptd.integrations.launch", *context.args]
    os.execv(command[0], command)  # noqa: S606  (no shell is wanted)


def restart(
    isolate: Annotated[
        list[int] | None, typer.Option(help="Keep this node out from now on (may be repeated).", show_default=False)
    ] = None,
    admit: Annotated[
        list[int] | None, typer.Option(help="Let this node in again (may be repeated).", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; it is logged everywhere.")] = "asked for by `ckptd restart`",
    give_up: Annotated[
        bool, typer.Option("--give-up", help="End the job on all nodes instead, with exit code 93.")
    ] = False,
    from_step: Annotated[
        int | None,
        typer.Option(
            help="From this step, one of `ckptd list`; later ones are passed over.", show_default=False, min=0
        ),
    ] = None,
    from_newest: Annotated[
        bool, typer.Option("--from-newest", help="From the newest step again: nothing is passed over any more.")
    ] = False,
    run_dir: RunDir = None,
    job: Job = None,
    as_json: AsJson = False,
) -> None:
    """Restart the trainers on all nodes from the newest snapshot, without the nodes that are isolated.

    An isolated node's launcher ends with exit code 94, and a new one there does too, until the node is let in again.
    Without launchers of ckptd, `--from-step` and `--from-newest` are for the next start, whoever starts it.
    """
    if [from_step is not None, from_newest, bool(isolate or admit or give_up)].count(True) > 1:
        raise UsageError("--from-step and --from-newest go alone; isolate, admit or give up by another `ckptd restart`")
    if min([*(isolate or []), *(admit or [])], default=0) < 0:
        raise UsageError("a node's index is 0 or more")
    settings = read(run_dir=run_dir, job=job)
    done = Client(settings.where(), settings.job).restart(
        reason, isolate=isolate or [], admit=admit or [], give_up=give_up, from_step=from_step, from_newest=from_newest
    )
    if as_json:
        typer.echo(json.dumps(done, indent=1))
        return
    typer.echo(_said(done))


def _said(done: dict[str, Any]) -> str:
    """What was done, in words."""
    said = [f"node {node} may come again" for node in done["admitted"]]
    if done["from_step"] is not None:
        said.append(f"the next start is from step {done['from_step']}")
    if done["from_newest"]:
        said.append("no step is passed over any more")
    if done["given_up"]:
        said.append("the job is given up")
    elif done["restarted"]:
        said.append("all trainers are restarted" + "".join(f", without node {node}" for node in done["isolated"]))
    elif done["isolated"]:
        said += [f"node {node} is isolated" for node in done["isolated"]]
    return f"{'; '.join(said)}: {done['reason']}"
