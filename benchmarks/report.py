"""What every benchmark says in the same way: the machine, a median with its spread beside it, and the report file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {"arch": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def measured(name: str, values: Sequence[float]) -> dict[str, Any]:
    """`name` is the median of the values, `name_spread` the lowest and the highest of them."""
    return {name: statistics.median(values), f"{name}_spread": [min(values), max(values)]}


def add_report(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark its --report."""
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="also write the results here, as JSON")


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the report, if one is wanted."""
    if path:
        path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
