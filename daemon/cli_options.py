"""Options that several commands share, with the same words for the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunDir = Annotated[
    Path | None,
    typer.Option(
        help="The run directory of the daemon (default: $CKPTD_RUN_DIR, else the job's own).", show_default=False
    ),
]
Job = Annotated[
    str | None, typer.Option(help="The training job (default: $CKPTD_JOB, else 'default').", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]
Parity = Annotated[
    int | None, typer.Option(help="How many nodes of a group may be lost (default 1).", show_default=False)
]
GroupSize = Annotated[
    int | None, typer.Option(help="The most nodes of a protection group (default 8).", show_default=False)
]
Slots = Annotated[int | None, typer.Option(help="Slots of each rank, 2 or more (default 3).", show_default=False)]
Domain = Annotated[
    str | None,
    typer.Option(
        help="What this node fails together with, such as a rack (default: what Slurm or Kubernetes says; 'none': alone).",
        show_default=False,
    ),
]
Bandwidth = Annotated[
    int | None,
    typer.Option(help="The most to send and read together, bytes a second (default 0: no cap).", show_default=False),
]
CpuShare = Annotated[
    float | None,
    typer.Option(help="The most cores that moving bytes may take, as 0.5 (default 0: no cap).", show_default=False),
]
ActOn = Annotated[
    str | None,
    typer.Option(
        "--act",
        help="What follows from a verdict: restart the trainers (the default), or advise only.",
        show_default=False,
    ),
]
TlsDir = Annotated[
    Path | None,
    typer.Option(help="This node's files of `ckptd certs`: encrypts all that daemons send.", show_default=False),
]
KeepLast = Annotated[
    int | None, typer.Option(help="Persisted steps to keep, 2 or more (default 0: all).", show_default=False)
]
KeepEvery = Annotated[
    int | None, typer.Option(help="Of the older ones keep every multiple of so many steps.", show_default=False)
]
KeepFor = Annotated[str | None, typer.Option(help="And all that are younger, as 12h, 7d or 2w.", show_default=False)]
FromStorage = Annotated[
    str | None,
    typer.Option(
        "--storage", help="Look at this storage itself, a directory or a URL; no daemon is asked.", show_default=False
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
