"""The command line. It prints the same decisions that the daemons make; `--json` on each command that shows something.

Exit codes: 0 fine, 1 a problem was found, 2 wrong usage.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.settings import read
from ckptd.daemon import certs_command, tables
from ckptd.daemon.asking import client_of, show, work_bar
from ckptd.daemon.cli_options import (
    ActOn,
    AsJson,
    Bandwidth,
    CpuShare,
    Domain,
    FromStorage,
    GroupSize,
    Job,
    KeepEvery,
    KeepFor,
    KeepLast,
    Parity,
    RunDir,
    Slots,
    TlsDir,
)
from ckptd.daemon.demo.command import demo
from ckptd.daemon.export_command import export
from ckptd.daemon.gc_command import gc
from ckptd.daemon.import_command import import_files
from ckptd.daemon.incidents_command import incidents
from ckptd.daemon.launch_commands import RUN_SETTINGS, restart, run
from ckptd.daemon.plan_command import plan
from ckptd.daemon.shelf_commands import list_storage, verify_storage

log = logging.getLogger(__name__)

app = typer.Typer(
    help="Asynchronous checkpointing and in-memory fault tolerance for PyTorch training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.command("plan")(plan)
app.command("run", context_settings=RUN_SETTINGS)(run)
app.command("restart")(restart)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ckptd {installed_version('ckptd')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep the state of a PyTorch training job alive."""


@app.command()
def serve(
    job: Job = None,
    node: Annotated[int | None, typer.Option(help="This node's index in --nodes, from 0.", show_default=False)] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            help="The control address host:port of every node, separated by commas, the same on all.",
            show_default=False,
        ),
    ] = None,
    parity: Parity = None,
    group_size: GroupSize = None,
    domain: Domain = None,
    run_dir: RunDir = None,
    segment_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where snapshots live; on a tmpfs (default: /dev/shm/ckptd-UID/JOB-NODE).", show_default=False
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where steps are persisted: a directory that all nodes see, or s3://BUCKET/PREFIX.", show_default=False
        ),
    ] = None,
    persist_every: Annotated[
        str | None,
        typer.Option(help="Steps (500), a time (10min), or auto (default 0: never persist).", show_default=False),
    ] = None,
    keep_last: KeepLast = None,
    keep_every: KeepEvery = None,
    keep_for: KeepFor = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="A file of mode 0600 with the job's secret; needed with several nodes.", show_default=False),
    ] = None,
    tls_dir: TlsDir = None,
    slots: Slots = None,
    memory_bytes: Annotated[
        int | None,
        typer.Option(help="The most that snapshots may take here (default: the tmpfs).", show_default=False),
    ] = None,
    bandwidth_bytes_s: Bandwidth = None,
    cpu_share: CpuShare = None,
    act: ActOn = None,
    clean_exit: Annotated[bool, typer.Option(help="Remove the snapshots when the daemon is stopped.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every capture.")] = False,
) -> None:
    """Run this node's daemon in the foreground until SIGTERM.

    One node needs nothing: `ckptd serve`. Several nodes: the same `--nodes` and `--secret-file` everywhere,
    and each its own `--node`.
    """
    from ckptd.daemon.main import serve as run_daemon

    _log(verbose)
    settings = read(
        job=job, node=node, nodes=nodes, parity=parity, group_size=group_size, domain=domain, run_dir=run_dir,
        segment_dir=segment_dir, storage=storage, persist_every=persist_every, keep_last=keep_last,
        keep_every=keep_every, keep_for=keep_for, secret_file=secret_file, slots=slots, memory_bytes=memory_bytes,
        bandwidth_bytes_s=bandwidth_bytes_s, cpu_share=cpu_share, tls_dir=tls_dir, act=act,
    )  # fmt: skip
    found = settings.found_domain()
    log.info("failure domain: %s (%s)", found.domain or "unknown", found.source)
    run_daemon(settings.config(), clean_exit=clean_exit)


app.command()(export)
app.command("import")(import_files)
app.command()(gc)
app.command()(certs_command.certs)
app.command()(incidents)


@app.command()
def status(run_dir: RunDir = None, job: Job = None, as_json: AsJson = False) -> None:
    """Nodes, ranks, newest captured, sealed and persisted step, and how many losses are still tolerated."""
    _show("Status", run_dir, job, as_json, tables.status)


@app.command("list")
def list_steps(storage: FromStorage = None, run_dir: RunDir = None, job: Job = None, as_json: AsJson = False) -> None:
    """Every step that could be restored, where it is, and which one a restart would choose.

    With `--storage`, a directory or s3://BUCKET/PREFIX: what is persisted there, of all jobs or of `--job`; no daemon is
    asked.
    """
    if storage is not None:
        list_storage(storage, job, as_json)
        return
    _show("List", run_dir, job, as_json, tables.steps)


@app.command()
def verify(storage: FromStorage = None, run_dir: RunDir = None, job: Job = None, as_json: AsJson = False) -> None:
    """Check the checksums of this node's slots and parities and of the files on storage.

    What fails counts as lost from then on and is rebuilt from elsewhere. With `--storage`: every byte of what is persisted
    there, of all jobs or of `--job`; no daemon is asked.
    """
    if storage is not None:
        verify_storage(storage, job, as_json)
        return
    _show("Verify", run_dir, job, as_json, tables.checks, "checking slots, parities and files")


@app.command()
def recover(run_dir: RunDir = None, job: Job = None, as_json: AsJson = False) -> None:
    """Rebuild what this node's payload lacks now, from peers and parity, without any trainer."""
    _show("Recover", run_dir, job, as_json, tables.rebuilt, "rebuilding this node's payload")


@app.command()
def doctor(
    segment_dir: Annotated[Path | None, typer.Option(help="As for `serve`.", show_default=False)] = None,
    storage: Annotated[str | None, typer.Option(help="As for `serve`.", show_default=False)] = None,
    run_dir: RunDir = None,
    job: Job = None,
    as_json: AsJson = False,
) -> None:
    """Check this node: erasure code and its speed, shared memory, storage, run directory, encryption, daemon, groups."""
    from ckptd.daemon.doctor import examine

    found = examine(read(segment_dir=segment_dir, storage=storage, run_dir=run_dir, job=job).config())
    show(found, as_json, tables.diagnosis)
    raise typer.Exit(0 if found["ok"] else 1)


app.command()(demo)


@app.command()
def drill(
    faults: Annotated[
        list[str] | None,
        typer.Argument(help="Faults, one after the other: node, rank=2, link=0-1:slow:3, ...", show_default=False),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes of the throw-away job.")] = 3,
    parity: Annotated[int, typer.Option(help="How many of them parity can rebuild.")] = 1,
    seed: Annotated[int, typer.Option(help="Decides all that is not said.")] = 1,
    campaign: Annotated[
        Path | None, typer.Option(help="A TOML file with the faults and the job's shape.", show_default=False)
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Go on with rounds of random faults for so long.", show_default=False)
    ] = 0.0,
    report: Annotated[Path | None, typer.Option(help="Write the outcome as JSON.", show_default=False)] = None,
    workdir: Annotated[Path | None, typer.Option(help="Where logs and persisted steps go.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the last round's directory.")] = False,
    segments_root: Annotated[Path, typer.Option(help="A tmpfs for the job's memory.")] = Path("/dev/shm"),  # noqa: S108
    job: Annotated[
        str | None, typer.Option(help="Strike this running job instead, on this node.", show_default=False)
    ] = None,
    run_dir: RunDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --job: also what may cost the job steps.")] = False,
) -> None:
    """Cause faults on purpose, and hold what happens against what is promised.

    Without `--job`: on a throw-away training of this machine, which is compared with an uninterrupted run bit by bit.
    Without faults they are drawn from the seed; `all` is one of each kind.

    * `rank` SIGKILL a trainer
    * `daemon` SIGKILL a daemon; it is started again
    * `node` SIGKILL both, and delete the node's memory
    * `memory` fill the tmpfs for a while
    * `disk` let no fsync return for a while
    * `link` cut, slow down or corrupt what two daemons send each other (`link=0-1:cut:5`)
    * `bits` SIGKILL a trainer and flip a bit in each of its slots

    With `--job NAME`: on that job's trainer and daemon of this node, if they are yours.
    """
    from ckptd.daemon.drill.command import run

    code = run(
        faults or [], nodes=nodes, parity=parity, seed=seed, campaign=campaign, minutes=minutes, report=report,
        workdir=workdir, keep=keep, segments_root=segments_root, job=job, run_dir=run_dir, yes=yes, console=Console(),
    )  # fmt: skip
    raise typer.Exit(code)


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    try:
        sys.exit(app(standalone_mode=False))  # what a command ends with comes back as a number, or None
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        sys.exit(130)
    except CkptdError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's own usage errors
            _complain(error.format_message())
            sys.exit(error.exit_code)
        raise


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False).print(f"ckptd: {message}", style="red", markup=False, soft_wrap=True)


def _log(verbose: bool) -> None:
    # What others log of an object store's requests is no help to anybody.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("ckptd").setLevel(logging.DEBUG if verbose else logging.INFO)


def _show(
    method: str, run_dir: Path | None, job: str | None, as_json: bool,
    render: Callable[[dict[str, Any]], Any], doing: str = "asking the daemon",
) -> None:  # fmt: skip
    work = {"Verify": "verify", "Recover": "rebuild"}.get(method, "")
    with work_bar(doing, work, run_dir, job, quiet=as_json or not work):
        content = client_of(run_dir, job).document(method, 700.0)
    show(content, as_json, render)
    if not content.get("ok", True):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
