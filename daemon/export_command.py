"""`ckptd export STEP DIRECTORY`: a step as files that other tools open, from memory, parity or storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import Version, check_job_name
from ckptd.ckpt.settings import read
from ckptd.daemon import tables
from ckptd.daemon.asking import client_of, show, work_bar
from ckptd.daemon.cli_options import AsJson, FromStorage, Job, RunDir
from ckptd.daemon.converting import convert
from ckptd.daemon.export_source import pick, stored
from ckptd.daemon.sizes import parse_size

FORMATS = ("safetensors", "dcp", "torch")


def export(
    step: Annotated[str, typer.Argument(help="The step to export: a number, or 'latest'.")],
    directory: Annotated[Path, typer.Argument(help="Where to write; must not exist or be empty.")],
    fmt: Annotated[
        str,
        typer.Option("--format", help="safetensors, dcp (torch.distributed.checkpoint), or torch (torch.save)."),
    ] = "safetensors",
    part: Annotated[
        str | None,
        typer.Option(help="Only the tensors of the object of this name, as 'model', under its own names."),
    ] = None,
    strip_prefix: Annotated[
        str, typer.Option(help="Take this from the beginning of the names that have it, as 'module.'.")
    ] = "",
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="safetensors: several files of so much at most, as 5GB, with an index.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in DIRECTORY.")] = False,
    storage: FromStorage = None,
    run_dir: RunDir = None,
    job: Job = None,
    as_json: AsJson = False,
) -> None:
    """Write a step from memory, parity or storage as files that other tools open. No trainer is needed.

    The whole state, with the names that ckptd has for it: `ckptd export latest out`

    A model for `transformers`' `from_pretrained`, beside its config.json: `ckptd export 1200 out --part model
    --max-shard-size 5GB`

    Without any daemon, from what was persisted: `ckptd export latest out --storage /mnt/ckpt --job gpt`, or from an object
    store: `--storage s3://bucket/prefix`

    Tensors that were split over ranks are joined. The files are written beside DIRECTORY and appear in one step.
    """
    if fmt not in FORMATS:
        raise UsageError(f"format {fmt!r}: expected safetensors, dcp or torch")
    if max_shard_size is not None and fmt != "safetensors":
        raise UsageError(f"--max-shard-size is for safetensors, not for {fmt}; leave it out")
    shard_bytes = 0 if max_shard_size is None else parse_size(max_shard_size, "--max-shard-size")
    if not force and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory} is not an empty directory; choose another, or replace an earlier export by --force"
        )
    if storage is None:
        found = _gathered(step, run_dir, job, quiet=as_json)
    else:
        found = stored(step, storage, check_job_name(read(job=job).job), directory, quiet=as_json)
    with found as (version, images):
        asked = {
            "format": fmt, "directory": str(directory.absolute()), "images": [str(image) for image in images],
            "part": part, "strip": strip_prefix, "shard_bytes": shard_bytes, "replace": force,
        }  # fmt: skip
        made = convert("ckptd.integrations.export", asked, f"writing {directory}", quiet=as_json)
    where = {"epoch": version.epoch, "step": version.step, "format": fmt, "directory": str(directory)}
    show(where | made, as_json, tables.exported)


@contextmanager
def _gathered(step: str, run_dir: Path | None, job: str | None, *, quiet: bool) -> Iterator[tuple[Version, list[Path]]]:
    """The step's images on this node, lost ones decoded, while the block runs."""
    client = client_of(run_dir, job)
    rows = client.document("List")["steps"]
    version = pick(step, [Version(row["epoch"], row["step"]) for row in rows if row["recoverable"]])
    with work_bar(f"gathering {version}", "gather", run_dir, job, quiet=quiet):
        found = client.gather(version)
    try:
        yield version, [item.path for item in found]
    finally:
        client.release(version)
