"""What people see of certificates: the command `ckptd certs`, and how those of a node stand."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.settings import read


def certs(
    directory: Annotated[
        Path, typer.Argument(help="Where to make them: new, empty, or with the CA's key.", show_default=False)
    ],
    nodes: Annotated[
        str | None,
        typer.Option(help="The control address host:port of every node, as for `serve`.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(help="How long they are good for.")] = 365,
    keep_ca_key: Annotated[
        bool, typer.Option("--keep-ca-key", help="Write the CA's key too, to make more later.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Make a job's own CA and a certificate with its key for each node, for `serve --tls-dir`.

    The CA's key is not kept unless you ask for it. In a directory that has it, certificates are made for the nodes that have
    none yet. No file is ever overwritten.
    """
    from ckptd.ckpt.certs import CA_FILE, file_names
    from ckptd.daemon.certs import make

    settings = read(nodes=nodes)
    if not settings.nodes:
        raise UsageError(
            "--nodes is missing: expected host:port of every node, separated by commas, as for `ckptd serve`"
        )
    addresses = settings.addresses()
    made = make(directory, addresses, now=datetime.now(timezone.utc), days=days, keep_ca_key=keep_ca_key)
    rows = [{"node": node, "address": addresses[node], "files": [CA_FILE, *file_names(node)]} for node in made.nodes]
    content = {"directory": str(directory), "until": f"{made.until:%Y-%m-%d}", "ca_key": made.ca_key, "nodes": rows}
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        _print(content)


def _print(content: dict[str, Any]) -> None:
    console, directory = Console(highlight=False, soft_wrap=True), content["directory"]
    if not content["nodes"]:
        console.print(f"Nothing to make: every node has its certificate in {directory}.", markup=False)
        return
    table = Table(title=f"made in {directory}, good until {content['until']}", title_justify="left")
    for heading in ("node", "address", "copy these to it"):
        table.add_column(heading)
    for row in content["nodes"]:
        table.add_row(str(row["node"]), row["address"], "  ".join(row["files"]))
    console.print(table)
    console.print(
        "Copy each node its three files, into a directory of mode 0700, the key with mode 0600, and start every daemon\n"
        "with --tls-dir and that directory: all, or none. Then remove the keys here: who has one can pass for its node.",
        markup=False,
    )
    if content["ca_key"]:
        console.print(
            "ca.key makes certificates for any node: keep it away from the nodes. When a node is added, run this again\n"
            "with the longer --nodes: it makes what is missing.",
            markup=False,
        )
    else:
        console.print(
            "The CA's key was not kept: nobody can make more of them. When a node is added, an address changes or a key\n"
            "got out, make a new set and restart every daemon with it. (With --keep-ca-key, nodes can be added to a set.)",
            markup=False,
        )
