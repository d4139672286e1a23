"""Draws docs/machines.md from the transition tables: `python -m tests.diagrams --write`. A test fails when it is stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from ckptd.daemon import catalog, ranks, rounds, work

FILE = Path(__file__).parents[1] / "docs" / "machines.md"
COMMAND = "make diagrams"
Table = Mapping[Any, Mapping[str, Any]]

_SLOT = """`daemon/catalog.py`: a slot of a rank on its node. `grant` gives it to a trainer or a rebuild; over an image only
when that one may be given up."""
_RANK = """`daemon/ranks.py`: a rank as its node's daemon sees it. A newly started process takes the rank over (`attach`);
one of an earlier life does not get it back."""
_WORK = """`daemon/work.py`: each of protecting, rebuilding, writing and publishing. One job of a kind runs at a time, and a
failure makes a pause."""
_ROUND = """`daemon/rounds.py`: the round of agents whose trainers train together, as the collector announces it. What an
agent does follows from the round: it waits, trains, or joins anew (`standing`)."""
_INTRODUCTION = f"""Drawn from the tables in the code by `{COMMAND}`; what a diagram does not show is refused
(`daemon/machine.py`). Whether a node is unheard, live or lost, and who is the collector, are no machines: both are computed
anew from what was heard when (`daemon/collector.py`, `Node.collector_index`)."""

MACHINES: dict[str, tuple[Table, str]] = {
    "A slot": (catalog.TRANSITIONS, _SLOT),
    "A rank": (ranks.TRANSITIONS, _RANK),
    "Background work": (work.TRANSITIONS, _WORK),
    "A round of agents": (rounds.TRANSITIONS, _ROUND),
}
"""Every machine: its table and a sentence. The first state of a table is the initial one."""


def name_of(state: Hashable) -> str:
    return state.__name__.lower() if isinstance(state, type) else str(state)


def diagram(table: Table) -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {name_of(next(iter(table)))}"]
    lines += [
        f"    {name_of(state)} --> {name_of(after)}: {act}"
        for state, acts in table.items()
        for act, after in acts.items()
    ]
    return "\n".join(lines)


def page() -> str:
    """The whole of docs/machines.md."""
    parts = ["# State machines", _INTRODUCTION]
    for title, (table, sentence) in MACHINES.items():
        parts += [f"## {title}", sentence, f"```mermaid\n{diagram(table)}\n```"]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.diagrams", description=__doc__.split(":")[0])
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} instead of printing it")
    if parser.parse_args(arguments).write:
        FILE.write_text(page())
    else:
        sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
