"""`ckptd import SOURCE`: files of other tools as a persisted step that training can start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import check_job_name
from ckptd.ckpt.places import root_of
from ckptd.ckpt.settings import read
from ckptd.daemon.asking import show
from ckptd.daemon.cli_options import AsJson, Job
from ckptd.daemon.converting import convert
from ckptd.daemon.sizes import parse_size


def import_files(
    source: Annotated[
        Path,
        typer.Argument(
            help="A DCP directory, safetensors (a file, an index or their directory), or a torch.save file."
        ),
    ],
    storage: Annotated[
        str | None, typer.Option(help="The storage directory or URL, as for `serve`.", show_default=False)
    ] = None,
    job: Job = None,
    step: Annotated[
        int | None,
        typer.Option(help="The number of finished updates (default: what the files say, else 0).", show_default=False),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="The most that opening pickles may take (default: twice the files, and 1GiB).", show_default=False
        ),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="The most seconds that each answer may take (default: 600).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a persisted step of a new job from files of other tools. No daemon is needed, and no trainer.

    A model from elsewhere: `ckptd import model.safetensors --storage /mnt/ckpt --job gpt-base`; then, beside daemons of that
    job and storage, `ckptd.dcp.load(state, checkpoint_id="ckptd://gpt-base")`.

    What `ckptd export` has written of a Checkpointer's whole state becomes a step that `Checkpointer.restore` takes.

    Pickles (torch.save, DCP) are opened with `weights_only=True` in a child process with limits; what would call anything is
    refused. Every name, shape, dtype and offset is checked before the step is published.
    """
    settings = read(job=job, storage=storage)
    if settings.storage is None:
        raise UsageError("no storage is known: add --storage with the root that the daemons will have")
    asked = {
        "source": str(source.absolute()), "storage": str(root_of(settings.storage)),
        "job": check_job_name(settings.job), "step": step, "time_s": time_limit,
        "memory": None if memory_limit is None else parse_size(memory_limit, "--memory-limit"),
    }  # fmt: skip
    show(convert("ckptd.integrations.importing", asked, f"importing {source}", quiet=as_json), as_json, _imported)


def _imported(content: dict[str, Any]) -> RenderableType:
    what = f"{content['tensors']} tensors and {content['values']} values, {decimal(content['bytes'])}"
    made = f"step {content['step']} of job {content['job']} in {content['directory']}: {what}"
    if content["loads"] == "ckptd.dcp.load":
        name = f"ckptd://{content['job']}/step-{content['step']}"
        how = f'ckptd.dcp.load(state, checkpoint_id="{name}"), on any number of ranks'
    else:
        how = f"Checkpointer(job={content['job']!r}, ...).restore(), on {content['ranks']} ranks"
    return Group(Text(made), Text(f"start from it by {how}, with daemons on this storage"))
