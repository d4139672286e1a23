"""The reports as pictures: one question each, to be answered at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from benchmarks.sizes import size_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"": "#9a9a9a", "trainer": "#7fb3d5", "node": "#2874a6", "power": "#12344d"}
_NAMES = {
    "": "nothing",
    "trainer": "the trainer's kill",
    "node": "that and a node's loss",
    "power": "that and a power cut",
}
_OURS, _BASE = "#c0392b", "#bbbbbb"
_FLOOR_MS = 0.01
"""Less than that is drawn as that: the axis is logarithmic."""
_COLUMNS = 4


def _level(row: Mapping[str, Any]) -> str:
    return str(row["survives"][-1]) if row["survives"] else ""


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _signed(value: float) -> str:
    """With its sign and apart from it: what a slower step adds may be less than the noise."""
    return f"{'-' if value < 0 else '+'} {_short(abs(value))}"


def _legend_of_levels() -> list[Patch]:
    return [Patch(color=_COLORS[level], label=f"survives {_NAMES[level]}") for level in _COLORS]


def _name_systems(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        if label.get_text().startswith("ckptd"):
            label.set_color(_OURS)
            label.set_fontweight("bold")


def stalls(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """How long the training is held up by a snapshot: a panel for each length of step, of one size of state."""
    first = reports[0]["systems"]
    order = sorted(first, key=lambda name: -float(first[name]["blocked_ms"]))
    figure, panels = plt.subplots(
        1, len(reports), figsize=(5.2 * len(reports) + 2, 0.42 * len(order) + 2.2), sharey=True, squeeze=False
    )
    for axes, report in zip(panels[0], reports, strict=True):
        for place, name in enumerate(order):
            row = report["systems"].get(name)
            if row is None:
                continue
            blocked, added = (max(row[key], _FLOOR_MS) for key in ("blocked_ms", "added_ms"))
            axes.barh(place, blocked, color=_COLORS[_level(row)], height=0.62)
            low, high = (max(value, _FLOOR_MS) for value in row["blocked_ms_spread"])
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            if row["added_ms"] > 0:
                axes.plot(added, place, marker="D", markersize=5, markerfacecolor="white", markeredgecolor="black")
            said = f"{_short(row['blocked_ms'])} {_signed(row['added_ms'] - row['blocked_ms'])}"
            axes.text(max(blocked, high, added) * 1.5, place, said, va="center", fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(_FLOOR_MS, axes.get_xlim()[1] * 20)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(f"forward+backward {report['step_ms']:g} ms", fontsize=11)
        axes.set_xlabel("ms per snapshot, logarithmic; in figures: blocked + slower beside it")
        axes.grid(axis="x", color="#e5e5e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    _name_systems(panels[0][0], order)
    marks = [Line2D([], [], color="black", linewidth=1, label="spread over the rounds")]
    marks += [
        Line2D(
            [],
            [],
            linestyle="",
            marker="D",
            markerfacecolor="white",
            markeredgecolor="black",
            label="blocked and slower together",
        )
    ]
    size = size_name(reports[0]["state_bytes"])
    figure.suptitle(f"Time the training thread is blocked by a snapshot of {size}", fontweight="bold")
    figure.legend(handles=[*_legend_of_levels(), *marks], loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def timeline(report: Mapping[str, Any], path: Path) -> None:
    """Every step of one run of each system, over the same steps without snapshots."""
    systems = report["systems"]
    rows = -(-len(systems) // _COLUMNS)
    figure, panels = plt.subplots(
        rows, _COLUMNS, figsize=(3.4 * _COLUMNS, 2.0 * rows + 1.2), sharex=True, sharey=True, squeeze=False
    )
    for axes in panels.flat[len(systems) :]:
        axes.set_visible(False)
    for axes, (name, row) in zip(panels.flat, systems.items(), strict=False):
        times = row["timeline"]["step_ms"]
        axes.bar(range(len(times)), times, width=1.0, color=_COLORS[_level(row)])
        axes.step(
            range(len(times)), report["baseline"]["step_ms"][: len(times)], where="mid", color="black", linewidth=0.8
        )
        for at in row["timeline"]["snapshots"]:
            axes.axvline(at, color=_OURS, linewidth=0.8, linestyle=":", zorder=0)
        ours = name.startswith("ckptd")
        axes.set_title(name, fontsize=10, color=_OURS if ours else "black", fontweight="bold" if ours else "normal")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("ms")
    for axes in panels[-1]:
        axes.set_xlabel("step")
    figure.suptitle(
        f"Each step of one run, {size_name(report['state_bytes'])} of state: "
        "bars with snapshots (taken at the dotted lines), black line without",
        fontweight="bold",
        fontsize=11,
    )
    figure.legend(handles=_legend_of_levels(), loc="lower center", ncols=4, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 0.97))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def cpu(report: Mapping[str, Any], path: Path) -> None:
    """CPU seconds per GB of snapshot: in the trainer, and in all other processes."""
    systems = report["systems"]
    order = sorted(systems, key=lambda name: -float(systems[name]["cpu_s_per_gb"]))
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(order) + 1.8))
    for place, name in enumerate(order):
        row = systems[name]
        own = max(row["trainer_cpu_s_per_gb"], 0.0)
        rest = max(row["cpu_s_per_gb"] - own, 0.0)
        axes.barh(place, own, color="#12344d", height=0.62)
        axes.barh(place, rest, left=own, color="#7fb3d5", height=0.62)
        axes.text(own + rest, place, f" {row['cpu_s_per_gb']:.2f}", va="center", fontsize=9)
    _name_systems(axes, order)
    axes.set_xlabel("CPU seconds per GB of snapshot, beyond the training's own")
    axes.set_title(f"CPU cost of a snapshot, {size_name(report['state_bytes'])} of state", fontweight="bold")
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color="#12344d", label="in the trainer"), Patch(color="#7fb3d5", label="in other processes")]
    axes.legend(handles=handles, loc="upper right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
