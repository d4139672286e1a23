"""How long real daemons take to seal a snapshot and to rebuild lost nodes, beside what the machine's own parts allow.

    python -m benchmarks.protect [--shapes 3+1,4+2,6+2] [--mib 256] [--repeat N] [--quick] [--report FILE.json]

K+M nodes are K+M daemons on this machine, each with directories and an address of its own, and a trainer that fills a slot
of MIB per node. CPU seconds are user and system of the daemons, idle chatter included; a GB is a GB of payload, summed
over the nodes, or of what was rebuilt. Before and after each snapshot and each loss the floor is measured
(`benchmarks/floor.py` has the formulas), and a ratio is of two figures of one round. The first snapshots touch new parity
files; they are told apart. What the daemons use while nothing happens is told beside it: it is paid by the second and not
by the GB, and here for all nodes on one machine.

`seal_s`: from the answer to the last commit to the last daemon's entry `sealed` in its event record (so the sums of the
capture are in it); `seal_from_captured_s`: from the last entry `captured`. `rebuild_gb_s`: a node is killed with SIGKILL,
its memory is removed and its daemon started anew; what was rebuilt by the time from its entry `rebuild` to its entry
`rebuilt` (new slots are made in it; where two are lost, the time in which any was at it). `peak_extra_bytes`: the most that
a daemon's anonymous memory grew by over what it was before the first snapshot: what sealing takes beside slots and
parities. Expected: CPU at most 1.3 times the floor, rebuild at least 0.7 of it.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.cluster import SHM, SLOTS, Cluster
from benchmarks.floor import CORES, Costs, Floor

NEW = 2
"""Snapshots that touch new files: a sealed one and one in the making have their parities at a time."""
SAMPLE_S, IDLE_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class Shape:
    k: int
    m: int

    @property
    def nodes(self) -> int:
        return self.k + self.m

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"

    @staticmethod
    def parse(text: str) -> Shape:
        """Raises ValueError unless the text is K+M."""
        k, m = map(int, text.split("+"))
        if k < 1 or m < 1:
            raise ValueError(f"{text}: expected K+M, both 1 or more")
        return Shape(k, m)


@dataclass(frozen=True, slots=True)
class Seal:
    """One snapshot. Seconds; CPU of all daemons."""

    seconds: float
    from_captured: float
    cpu: float
    gb: float
    took: float
    """How long `cpu` was counted."""
    others: float
    """Cores that other processes kept busy meanwhile."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """One loss. CPU of the replacements, and of all others together, while a rebuild ran."""

    lost: int
    seconds: float
    from_ready: float
    receiver_cpu: float
    senders_cpu: float
    gb: float


@dataclass(slots=True)
class Measured:
    """All that was measured of a shape, each with the floor of its round."""

    shape: Shape
    first: list[Seal] = field(default_factory=list)
    seals: list[tuple[Seal, Costs]] = field(default_factory=list)
    rebuilds: list[tuple[Rebuild, Costs]] = field(default_factory=list)
    idle_cores: float = 0.0
    """What all daemons use together while nothing happens."""
    extra: dict[int, int] = field(default_factory=dict)
    """By node: how many bytes its anonymous memory grew by at the most."""


class Sampler(threading.Thread):
    """Watches the daemons' memory and CPU time while something is measured."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster, self._ended = cluster, threading.Event()
        self._cpu: dict[int, list[tuple[float, float]]] = {}
        self.peak: dict[int, int] = {}

    def __enter__(self) -> Sampler:  # noqa: PYI034 - `Self` needs Python 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.sample()

    def sample(self) -> None:
        now = time.time()
        for node, used in self._cluster.cpu_s().items():
            self._cpu.setdefault(node, []).append((now, used))
        for node, size in self._cluster.anonymous_bytes().items():
            self.peak[node] = max(size, self.peak.get(node, 0))

    def cpu_between(self, node: int, start: float, end: float) -> float:
        """CPU seconds that a node's daemon used in that time, between samples in proportion."""
        return self._cpu_at(node, end) - self._cpu_at(node, start)

    def _cpu_at(self, node: int, at: float) -> float:
        samples = self._cpu[node]
        for (before, low), (after, high) in itertools.pairwise(samples):
            if before <= at <= after:
                return low + (high - low) * (at - before) / (after - before)
        return samples[0][1] if at < samples[0][0] else samples[-1][1]


def _busy_s() -> float:
    """CPU seconds that all processes of the machine have used."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + times.irq + times.softirq)


def _own_s() -> float:
    used = psutil.Process().cpu_times()
    return float(used.user + used.system)


def seal(cluster: Cluster, step: int, size: int, changed: Callable[[int], Sequence[int]] | None = None) -> Seal:
    """Capture a snapshot on every node and wait until every daemon knows that it is sealed.

    The pieces `changed(node)` differ from the last one's; all of them where it is None.
    """
    filled = cluster.prepare(step, changed)
    used, busy, own, started = cluster.cpu_s(), _busy_s(), _own_s(), time.time()
    at = cluster.commit(filled)
    named = {"epoch": filled.version.epoch, "step": step}

    def when(event: str) -> list[float]:
        entries = [entry for node in cluster.nodes for entry in cluster.events(node, event)]
        return [entry["t"] for entry in entries if named.items() <= entry.items()]

    cluster.until(lambda: len(when("sealed")) == len(cluster.nodes), f"{filled.version} sealed")
    took = time.time() - started
    cpu = sum(after - used[node] for node, after in cluster.cpu_s().items())
    others = max(0.0, _busy_s() - busy - cpu - (_own_s() - own)) / took
    end = max(when("sealed"))
    return Seal(end - at, end - max(when("captured")), cpu, size * len(cluster.nodes) / 1e9, took, others)


def rebuild(cluster: Cluster, lost: Sequence[int], size: int) -> Rebuild:
    """Lose nodes with their memory, start their daemons anew, and wait until each has its payload back."""
    cluster.lose(*lost)
    cluster.start(*lost)
    with Sampler(cluster) as sampler:
        cluster.until(lambda: all(cluster.events(node, "rebuilt") for node in lost), f"nodes {lost} rebuilt")
        time.sleep(2 * SAMPLE_S)  # a sample after the end
    spans, ready = [], []
    for node in lost:
        (begin,), (end,) = cluster.events(node, "rebuild"), cluster.events(node, "rebuilt")
        if end["bytes"] != size:
            raise RuntimeError(f"node {node}: {end['bytes']} bytes were rebuilt, expected {size}")
        spans.append((begin["t"], end["t"]))
        ready.append(cluster.events(node, "ready")[0]["t"])
    first, last = min(begin for begin, _ in spans), max(end for _, end in spans)
    receivers = sum(sampler.cpu_between(node, *span) for node, span in zip(lost, spans, strict=True))
    senders = sum(sampler.cpu_between(node, first, last) for node in cluster.nodes if node not in lost)
    cluster.until(lambda: cluster.tolerates(cluster.parity), "all parities made anew")
    gb = size * len(lost) / 1e9
    return Rebuild(len(lost), _length(spans), last - min(ready), receivers, senders, gb)


def _length(spans: Sequence[tuple[float, float]]) -> float:
    """How long at least one of the spans lasted."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def idle(cluster: Cluster) -> float:
    """The cores that all daemons use together while nothing happens."""
    used = sum(cluster.cpu_s().values())
    time.sleep(IDLE_S)
    return (sum(cluster.cpu_s().values()) - used) / IDLE_S


def measure(shape: Shape, size: int, repeat: int) -> Measured:
    """Snapshots, then losses, each between two rounds of the floor."""
    found = Measured(shape)
    with Floor(size) as floor, Cluster(shape.nodes, parity=shape.m, size=size) as cluster:
        costs = partial(floor.measure, shape.k, shape.m)
        cluster.begin_life()
        before = cluster.anonymous_bytes()
        with Sampler(cluster) as sampler:
            found.first = [seal(cluster, step, size) for step in range(1, NEW + 1)]
            found.idle_cores = idle(cluster)
            for step in range(NEW + 1, NEW + repeat + 1):
                first, sealed = costs(), seal(cluster, step, size)
                found.seals.append((sealed, Costs.mean([first, costs()])))
        found.extra = {node: peak - before[node] for node, peak in sampler.peak.items()}
        for lost in range(1, min(shape.m, 2) + 1):
            for turn in range(repeat):
                nodes = [(turn + i * shape.nodes // 2) % shape.nodes for i in range(lost)]
                first, rebuilt = costs(), rebuild(cluster, nodes, size)
                found.rebuilds.append((rebuilt, Costs.mean([first, costs()])))
    return found


# ---- what is said of it -----------------------------------------------------------------------------


def of_seals(found: Measured) -> dict[str, Any]:
    k, m, seals = found.shape.k, found.shape.m, found.seals
    return _medians(
        {
            "seal_s": [s.seconds for s, _ in seals],
            "seal_from_captured_s": [s.from_captured for s, _ in seals],
            "seal_floor_s": [floor.seal_s(k, m) * s.gb for s, floor in seals],
            "seal_vs_floor": [s.seconds / (floor.seal_s(k, m) * s.gb) for s, floor in seals],
            "seal_cpu_s_per_gb": [s.cpu / s.gb for s, _ in seals],
            "seal_cpu_floor": [floor.seal_cpu(k, m) for _, floor in seals],
            "seal_cpu_vs_floor": [s.cpu / s.gb / floor.seal_cpu(k, m) for s, floor in seals],
            "seal_cpu_idle_s_per_gb": [found.idle_cores * s.took / s.gb for s, _ in seals],
            "others_cores": [s.others for s, _ in seals],
        }
    )


def of_rebuilds(k: int, rebuilds: Sequence[tuple[Rebuild, Costs]]) -> dict[str, Any]:
    return _medians(
        {
            "rebuild_gb_s": [r.gb / r.seconds for r, _ in rebuilds],
            "rebuild_floor_gb_s": [floor.rebuild_gb_s(k) for _, floor in rebuilds],
            "rebuild_vs_floor": [r.gb / r.seconds / floor.rebuild_gb_s(k) for r, floor in rebuilds],
            "rebuild_from_ready_gb_s": [r.gb / r.from_ready for r, _ in rebuilds],
            "receiver_cpu_s_per_gb": [r.receiver_cpu / r.gb for r, _ in rebuilds],
            "receiver_cpu_floor": [floor.rebuild_receiver_cpu(k) for _, floor in rebuilds],
            "senders_cpu_s_per_gb": [r.senders_cpu / r.gb for r, _ in rebuilds],
            "senders_cpu_floor": [floor.rebuild_senders_cpu(k) for _, floor in rebuilds],
        }
    )


def _medians(values: dict[str, list[float]]) -> dict[str, Any]:
    parts = [report.measured(name, found) for name, found in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def summary(found: Measured) -> dict[str, Any]:
    """A shape's part of the report."""
    content = of_seals(found)
    of_one, of_two = ([(r, floor) for r, floor in found.rebuilds if r.lost == lost] for lost in (1, 2))
    content |= of_rebuilds(found.shape.k, of_one)
    if of_two:
        content["two_nodes"] = of_rebuilds(found.shape.k, of_two)
    content["first_seal_s"] = [s.seconds for s in found.first]
    content["idle_cores"] = found.idle_cores
    content["peak_extra_bytes"] = max(found.extra.values())
    content["peak_extra_bytes_of_all"] = sum(found.extra.values())
    floors = [*(floor for _, floor in found.seals), *(floor for _, floor in found.rebuilds)]
    content["parts"] = _medians({name: [getattr(f, name) for f in floors] for name in Costs.__dataclass_fields__})
    return content


def show(shape: Shape, row: dict[str, Any]) -> None:
    def line(name: str, what: dict[str, Any], key: str, floor: str, ratio: str) -> None:
        (low, high), (worst, best) = what[f"{key}_spread"], what[f"{ratio}_spread"]
        beside = f"{what[floor]:7.3f}  {what[ratio]:5.2f} [{worst:.2f}, {best:.2f}]"
        print(f"{shape!s:4} {name:30} {what[key]:7.3f} [{low:6.3f}, {high:6.3f}]  {beside}")

    line("seal, s", row, "seal_s", "seal_floor_s", "seal_vs_floor")
    line("seal, CPU s/GB", row, "seal_cpu_s_per_gb", "seal_cpu_floor", "seal_cpu_vs_floor")
    for name, what in (("rebuild of one", row), ("rebuild of two", row.get("two_nodes"))):
        if what:
            line(f"{name}, GB/s", what, "rebuild_gb_s", "rebuild_floor_gb_s", "rebuild_vs_floor")
            for role in ("receiver", "senders"):
                value, least = what[f"{role}_cpu_s_per_gb"], what[f"{role}_cpu_floor"]
                low, high = what[f"{role}_cpu_s_per_gb_spread"]
                print(
                    f"{shape!s:4} {f'  {role}, CPU s/GB':30} {value:7.3f} [{low:6.3f}, {high:6.3f}]  "
                    f"{least:7.3f}  {value / least:5.2f}"
                )
    parts = row["parts"]
    costs = ", ".join(
        f"{name} {parts[name]:.3f}" for name in ("copy", "sum", "encode", "decode", "send", "receive", "touch")
    )
    firsts = ", ".join(f"{seconds:.2f}" for seconds in row["first_seal_s"])
    print(f"{shape!s:4} CPU s/GB of the parts: {costs}; the bare loop {parts['link_gb_s']:.2f} GB/s")
    print(
        f"{shape!s:4} first snapshots {firsts} s; {row['peak_extra_bytes'] / 2**20:.0f} MiB a daemon beside its segments"
    )
    idle = f"{row['idle_cores']:.2f} cores, or {row['seal_cpu_idle_s_per_gb']:.3f} CPU s/GB of the seal"
    print(f"{shape!s:4} idle daemons take {idle}; others kept {row['others_cores']:.2f} of {CORES} cores busy")


def check_room(shapes: Sequence[Shape], size: int) -> None:
    """Raise SystemExit unless slots, parities and the floor's own buffers fit the tmpfs and the memory."""
    needed = max(s.nodes * size * (SLOTS + 2 * s.m / s.k) for s in shapes) + 3 * size
    free = min(psutil.disk_usage(str(SHM)).free, psutil.virtual_memory().available)
    if needed > 0.95 * free:
        raise SystemExit(
            f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free; take a smaller --mib or shape"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="3+1,4+2,6+2", help="K+M, separated by commas (default 3+1,4+2,6+2)")
    parser.add_argument("--mib", type=int, default=0, help="MiB of a node's payload (default 256)")
    parser.add_argument("--repeat", type=int, default=0, help="snapshots, and losses of each kind (default 5)")
    parser.add_argument("--quick", action="store_true", help="64 MiB and 2 of each, unless said otherwise")
    report.add_report(parser)
    options = parser.parse_args()
    size = (options.mib or (64 if options.quick else 256)) << 20
    repeat = options.repeat or (2 if options.quick else 5)
    shapes = [Shape.parse(text) for text in options.shapes.split(",")]
    check_room(shapes, size)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then too
    load = Path("/proc/loadavg").read_text().split()[0]
    print(f"{size >> 20} MiB a node, median of {repeat} [lowest, highest]; load at the start {load} on {CORES} cores")
    print(f"{'':36}measured                    floor  ratio", flush=True)
    rows = {}
    for shape in shapes:
        rows[str(shape)] = summary(measure(shape, size, repeat))
        show(shape, rows[str(shape)])
    means = {"mib": size >> 20, "repeat": repeat, "load_at_start": float(load)}
    report.write(options.report, {"protect": rows, "protect_options": means})


if __name__ == "__main__":
    main()
