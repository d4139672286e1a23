"""The reports as Markdown, and where they stand in docs/benchmarks.md: between two comments that name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.sizes import size_name

MIB = 1 << 20


class MissingMarkersError(Exception):
    """The page does not have the two comments that a section goes between; the message names them."""


def spliced(page: str, section: str, text: str) -> str:
    """The page with `text` between `<!-- begin SECTION -->` and `<!-- end SECTION -->`. Raises MissingMarkersError."""
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise MissingMarkersError(f"expected the lines {begin} and {end}, in this order")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(row: Mapping[str, Any], name: str, digits: int = 1, scale: float = 1.0) -> str:
    """`median (lowest to highest)`; the median alone where nothing was repeated."""
    low, high = (f"{value / scale:.{digits}f}" for value in row[f"{name}_spread"])
    middle = f"{row[name] / scale:.{digits}f}"
    return middle if low == high else f"{middle} ({low} to {high})"


def where(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    return f"{report['date']}, {machine['arch']}, {machine['cores']} cores, Python {machine['python']}"


def versions(reports: Iterable[Mapping[str, Any]]) -> str:
    """Every package once, with its version."""
    found = {name.split(" ")[0]: row["version"] for report in reports for name, row in report["systems"].items()}
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def unavailable(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each system that could not be had, with its own reason."""
    found = {name: reason for report in reports for name, reason in report["unavailable"].items()}
    return [f"- {name} could not be had here: `{reason.replace('`', chr(39))}`" for name, reason in found.items()]


def stall(reports: Sequence[Mapping[str, Any]], pictures: Sequence[str]) -> str:
    """The section on what a snapshot costs the training: a table for each report."""
    lines = [f"Measured {where(reports[0])}; {versions(reports)}.", ""]
    for report in reports:
        lines += [
            f"### {size_name(report['state_bytes'])} of state, forward and backward of {report['step_ms']:g} ms",
            "",
            _settings(report),
            "",
            table(
                (
                    "system",
                    "blocked ms",
                    "added ms",
                    "first ms",
                    "CPU-s/GB",
                    "memory MiB",
                    "survives the loss of",
                    "restored",
                ),
                [_stall_row(name, row) for name, row in report["systems"].items()],
            ),
            "",
        ]
    return "\n".join([*lines, *unavailable(reports), "", *(f"![{name}](benchmarks/{name})" for name in pictures)])


def _settings(report: Mapping[str, Any]) -> str:
    return (
        f"A snapshot every {report['every']} steps, {report['steps']} steps a run, {report['rounds']} rounds, "
        f"{report['threads']} thread; a step without snapshots takes {report['whole_step_ms']:.0f} ms, update included."
    )


def _stall_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    left_out = f" ({row['skipped']} snapshots left out)" if row["skipped"] else ""
    return (
        name + left_out,
        spread(row, "blocked_ms", 2),
        spread(row, "added_ms"),
        spread(row, "first_ms", 0),
        spread(row, "cpu_s_per_gb", 2),
        spread(row, "memory_bytes", 0, MIB),
        ", ".join(row["survives"]) or "nothing",
        "yes" if row["restored_ok"] else "**no**",
    )


def recover(report: Mapping[str, Any]) -> str:
    """The section on what comes back after a kill."""
    lines = [f"Measured {where(report)}.", ""]
    for size, rows in report["restores"].items():
        lines += [
            f"### {size} of state",
            "",
            table(
                ("system", "state ready ms", "GB/s", "times a plain copy", "restored"),
                [
                    (
                        name,
                        spread(row, "restore_ms"),
                        spread(row, "bytes_s", 2, 1e9),
                        spread(row, "times_memcpy", 2),
                        "yes" if row["restored_ok"] else "**no**",
                    )
                    for name, row in rows.items()
                ],
            ),
            "",
        ]
    if report["kills"]:
        lines += [
            f"### Killed at a random instant of a save, {report['kill_state']} of state",
            "",
            table(
                (
                    "system",
                    "kills",
                    "newest complete snapshot came back",
                    "wrong bytes",
                    "stuck afterwards",
                    "steps lost, mean",
                    "steps lost, most",
                ),
                [
                    (
                        name,
                        str(row["kills"]),
                        str(row["loads"]),
                        str(row["torn"]),
                        str(len(row["stuck"])),
                        f"{row['lost_steps_mean']:.2f}",
                        str(row["lost_steps_max"]),
                    )
                    for name, row in report["kills"].items()
                ],
            ),
            "",
        ]
    for name, row in report["kills"].items():
        lines += [f"- {name}, stuck: `{why}`" for why in row["stuck"][:1]]
    return "\n".join([*lines, *unavailable([report])])


def persist(report: Mapping[str, Any]) -> str:
    """The section on the storage tier."""
    rows = [
        (
            {"alone": "alone", "beside_training": "beside a training"}[name],
            spread(report[name]["ckptd"], "bytes_s", 2, 1e9),
            spread(report[name]["dd"], "bytes_s", 2, 1e9),
            spread(report[name], "of_dd", 2),
        )
        for name in ("alone", "beside_training")
    ]
    return "\n".join(
        [
            f"Measured {where(report)}; {size_name(report['state_bytes'])}.",
            "",
            table(("", "ckptd GB/s", "dd oflag=direct GB/s", "ckptd of dd"), rows),
            "",
            f"The training's steps of {report['step_ms']:g} ms took {report['training_slowdown']:+.1%} meanwhile.",
        ]
    )


def gpu(report: Mapping[str, Any]) -> str:
    """The section on a GPU."""
    row = report["systems"]["ckptd captured"]
    head = ("blocked ms", "slowdown %", "copy GB/s", "of the pinned link", "first ms", "captured", "left out")
    cells = (
        spread(row, "blocked_ms", 2),
        spread(row, "slowdown", 2, 0.01),
        spread(row, "copy_bytes_s", 1, 1e9),
        f"{row['copy_of_link']:.0%}",
        f"{row['first_ms']:.0f}",
        str(row["captured"]),
        str(row["skipped"]),
    )
    said = (
        f"Measured {where(report)}, {report['device']}, torch {report['torch']}: {report['parameters'] / 1e9:.2f} B "
        f"parameters, {report['state_bytes'] / 1e9:.1f} GB of state, a step of {report['step_ms']:.0f} ms, a snapshot "
        f"at every one; the link does {report['link_bytes_s'] / 1e9:.1f} GB/s."
    )
    return "\n".join([said, "", table(head, [cells])])
