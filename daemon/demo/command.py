"""`ckptd demo`: the main job on this machine, as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


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
            help="Of --kill-ranks or --lose-nodes, and left to ckptd to notice: kill-rank, kill-node, hang, gil, slow-rank.",
            show_default=False,
        ),
    ] = None,
    at_step: Annotated[int | None, typer.Option(help="When (default: in the middle).", show_default=False)] = None,
    steps: Annotated[int, typer.Option(help="Length of the training.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the model and the data.")] = 1,
    workdir: Annotated[Path | None, typer.Option(help="Where logs and persisted steps go.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the run's directory with its persisted steps.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the result and all events as JSON.", show_default=False)
    ] = None,
) -> None:
    """Train, lose a node, rebuild it from parity, and go on bit-exact: the main job, on this machine."""
    from ckptd.daemon.demo.options import DemoOptions, parse_indices
    from ckptd.daemon.demo.run import run_demo

    options = DemoOptions(
        nodes=nodes,
        parity=min(1, nodes - 1) if parity is None else parity,
        lose_nodes=None if lose_nodes is None else parse_indices(lose_nodes, "--lose-nodes"),
        kill_ranks=parse_indices(kill_ranks or "", "--kill-ranks"),
        fault=fault or "",
        at_step=at_step,
        steps=steps,
        seed=seed,
        workdir=workdir,
        keep=keep,
        report=report,
    )
    raise typer.Exit(run_demo(options, Console()))
