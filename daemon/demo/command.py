"""`ckptd demo`: the main job on this machine, as a command."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


class Launcher(Enum):
    """What starts the trainers of the demo, and starts them again."""

    CKPTD = "ckptd"
    TORCHRUN = "torchrun"


def demo(
    nodes: Annotated[int, typer.Option(help="Nodes on this machine.")] = 4,
    parity: Annotated[
        int | None, typer.Option(help="How many lost nodes parity can rebuild (default 1).", show_default=False)
    ] = None,
    lose_nodes: Annotated[
        str | None, typer.Option(help="Nodes to lose, as 1,2 (default: node 1).", show_default=False)
    ] = None,
    kill_ranks: Annotated[
        str | None, typer.Option(help="Trainers to kill while their nodes live, as 0,3.", show_default=False)
    ] = None,
    fault: Annotated[
        str | None,
        typer.Option(
            help="Its verdict has to be right. Of --kill-ranks: kill-rank, hang, gil, loader, stop, slow-rank. Of "
            "--lose-nodes: kill-node. Of the link between two --lose-nodes (default: 1,2): slow-link, lossy-link, cut-link.",
            show_default=False,
        ),
    ] = None,
    launcher: Annotated[
        Launcher, typer.Option(help="Who restarts: `ckptd run`, or torchrun without any part of ckptd in it.")
    ] = Launcher.CKPTD,
    warm_workers: Annotated[
        bool, typer.Option("--warm-workers", help="Fork trainers from a server that has torch loaded.")
    ] = False,
    at_step: Annotated[int | None, typer.Option(help="When (default: in the middle).", show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Length of the training (default 40, with a bad link 60).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the model and the data.")] = 1,
    workdir: Annotated[Path | None, typer.Option(help="Where logs and persisted steps go.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the run's directory with its persisted steps.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the result and all events as JSON.", show_default=False)
    ] = None,
) -> None:
    """Train, lose a node, rebuild it from parity, and go on bit-exact: the main job, on this machine."""
    from ckptd.daemon.demo.options import LINK_STEPS, DemoOptions, parse_indices, training_for
    from ckptd.daemon.demo.run import run_demo
    from ckptd.daemon.demo.wires import LINKS

    model, pace_s = training_for(fault or "")
    options = DemoOptions(
        nodes=nodes,
        parity=min(1, nodes - 1) if parity is None else parity,
        lose_nodes=None if lose_nodes is None else parse_indices(lose_nodes, "--lose-nodes"),
        kill_ranks=parse_indices(kill_ranks or "", "--kill-ranks"),
        fault=fault or "",
        launcher=launcher.value,
        warm_workers=warm_workers,
        at_step=at_step,
        steps=steps or (LINK_STEPS if fault in LINKS else 40),
        seed=seed,
        workdir=workdir,
        keep=keep,
        report=report,
        model=model,
        pace_s=pace_s,
    )
    raise typer.Exit(run_demo(options, Console()))
