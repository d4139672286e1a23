"""Put the reports of a folder into docs/benchmarks.md, and their pictures beside it.

    python -m benchmarks.publish DIR

Sections that DIR has no report of stay as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import pages, plots
from benchmarks.runs import ROOT
from benchmarks.sizes import size_name

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "benchmarks"


def loaded(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob(pattern)]


def pictures(reports: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Draw; return the names. The last two are of the largest state and the longest step, where systems differ most."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for size in sorted({report["state_bytes"] for report in reports}):
        names.append(f"stall-{size_name(size)}.png")
        plots.stalls([report for report in reports if report["state_bytes"] == size], folder / names[-1])
    plots.timeline(reports[-1], folder / "timeline.png")
    plots.cpu(reports[-1], folder / "cpu.png")
    return [*names, "timeline.png", "cpu.png"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    page = PAGE.read_text()
    stalls = sorted(loaded(folder, "stall-*.json"), key=lambda report: (report["state_bytes"], report["step_ms"]))
    if stalls:
        page = pages.spliced(page, "stall", pages.stall(stalls, pictures(stalls, PICTURES)))
    for name, section in (("recover", pages.recover), ("persist", pages.persist), ("gpu", pages.gpu)):
        for report in loaded(folder, f"{name}.json"):
            page = pages.spliced(page, name, section(report))
    PAGE.write_text(page)
    print(f"{PAGE.relative_to(ROOT)} and {PICTURES.relative_to(ROOT)}/ are up to date: look at both")


if __name__ == "__main__":
    main()
