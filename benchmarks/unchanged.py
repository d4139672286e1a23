"""What sealing costs where most of the state does not change: the CPU and bytes of snapshots in which some pieces differ.

    python -m benchmarks.unchanged [--shapes 4+2] [--unchanged 0.9] [--mib 256] [--repeat N] [--report FILE.json]

K+M daemons on this machine, each with a trainer that fills a slot of MIB (as in benchmarks/protect.py). Three kinds of
snapshots take turns: `all`, in which every piece differs from the last one's; `block`, in which the pieces that differ lie
together (at the end of the payloads, as the optimizer state of the few tensors that are trained does); and `scattered`, in
which so many differ anywhere, on each node others. Each measured one follows another of its
kind, as in a training that goes on in the same way. CPU seconds are user and system of all daemons without what they use
while nothing happens, and a GB is a GB of payload; `read_gb_per_gb` is what was read from other nodes.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import report
from benchmarks.cluster import Cluster
from benchmarks.protect import NEW, Seal, Shape, check_room, idle, seal
from ckptd.ckpt.model import pieces_of

KINDS = ("block", "scattered", "all")


def changed_in(kind: str, step: int, pieces: int, unchanged: float) -> Callable[[int], list[int]]:
    """The pieces that differ on a node, by the kind of the snapshot."""
    count = round(pieces * (1 - unchanged))

    def on(node: int) -> list[int]:
        if kind == "all":
            return list(range(pieces))
        if kind == "block":
            return list(range(pieces - count, pieces))
        return sorted(random.Random(f"{node} {step}").sample(range(pieces), count))

    return on


def read_bytes(cluster: Cluster) -> int:
    """What all daemons have read from each other since they started."""
    return sum(row["read"]["bytes"] for node in cluster.nodes for row in cluster.status(node)["transfers"])


@dataclass(frozen=True, slots=True)
class Found:
    """One snapshot: GB that were read, and CPU seconds beyond what idle daemons use."""

    seal: Seal
    cpu: float
    read_gb: float


def measure(shape: Shape, size: int, unchanged: float, repeat: int) -> dict[str, list[Found]]:
    """By kind."""
    found: dict[str, list[Found]] = {kind: [] for kind in KINDS}
    pieces, step = pieces_of(size), 0
    with Cluster(shape.nodes, parity=shape.m, size=size) as cluster:
        cluster.begin_life()
        for _ in range(NEW):
            step += 1
            seal(cluster, step, size)
        idle_cores = idle(cluster)
        for kind in KINDS * repeat:
            seal(cluster, step + 1, size, changed_in(kind, step + 1, pieces, unchanged))
            step += 2
            before = read_bytes(cluster)
            sealed = seal(cluster, step, size, changed_in(kind, step, pieces, unchanged))
            read_gb = (read_bytes(cluster) - before) / 1e9
            found[kind].append(Found(sealed, sealed.cpu - idle_cores * sealed.took, read_gb))
    return found


def summary(found: dict[str, list[Found]]) -> dict[str, Any]:
    """A shape's part of the report. Ratios are of two snapshots of one round."""
    rows: dict[str, Any] = {}
    for kind, each in found.items():
        rows[kind] = {
            **report.measured("seal_s", [one.seal.seconds for one in each]),
            **report.measured("cpu_s_per_gb", [one.cpu / one.seal.gb for one in each]),
            **report.measured(
                "cpu_of_all", [one.cpu / whole.cpu for one, whole in zip(each, found["all"], strict=True)]
            ),
            **report.measured("read_gb_per_gb", [one.read_gb / one.seal.gb for one in each]),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4+2", help="K+M, separated by commas (default 4+2)")
    parser.add_argument("--unchanged", type=float, default=0.9, help="share of the pieces that stay (default 0.9)")
    parser.add_argument("--mib", type=int, default=256, help="MiB of a node's payload (default 256)")
    parser.add_argument("--repeat", type=int, default=5, help="snapshots of each kind (default 5)")
    report.add_report(parser)
    options = parser.parse_args()
    size = options.mib << 20
    shapes = [Shape.parse(text) for text in options.shapes.split(",")]
    check_room(shapes, size)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then too
    print(f"{options.mib} MiB a node, median of {options.repeat} [lowest, highest]; {options.unchanged:.0%} unchanged")
    rows = {}
    for shape in shapes:
        rows[str(shape)] = summary(measure(shape, size, options.unchanged, options.repeat))
        for kind, row in rows[str(shape)].items():
            parts = (
                f"{name} {row[name]:6.3f} [{row[f'{name}_spread'][0]:.3f}, {row[f'{name}_spread'][1]:.3f}]"
                for name in ("seal_s", "cpu_s_per_gb", "cpu_of_all", "read_gb_per_gb")
            )
            print(f"{shape!s:4} {kind:10}", "  ".join(parts), flush=True)
    means = {"mib": options.mib, "repeat": options.repeat, "unchanged": options.unchanged}
    report.write(options.report, {"unchanged": rows, "unchanged_options": means})


if __name__ == "__main__":
    main()
