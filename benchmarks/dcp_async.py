"""What `ckptd.dcp.async_save` costs, its copies made twice or once, in turns.

    python -m benchmarks.dcp_async [--mib SIZE] [--repeat N] [--report FILE.json]

One rank, one daemon, a state of float32 tensors of 8 MiB, the thread executor. `twice`: the daemon lends no file, so the
writer copies what was staged into a slot. `once`: it was staged in a file that becomes the slot's. Seconds until the
call returns, then until the future has the captured step; processor time and the writer's bytes are this process's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks.cluster import JOB, Cluster
from benchmarks.dcp import state_of
from benchmarks.report import add_report, machine, measured, write
from ckptd.ckpt.client import Client
from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.dcp import AsyncStager, StorageWriter


class Frugal(Client):
    """Borrows nothing."""

    def lend(self, size: int) -> Path:
        raise MemoryBudgetError(f"no {size} bytes for that")


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes of each batch of copies that is made inside."""
    sizes: list[int] = []
    copy = torch._foreach_copy_

    def counting(targets: list[torch.Tensor], sources: list[torch.Tensor], **options: Any) -> None:
        sizes.append(sum(target.nbytes for target in targets))
        copy(targets, sources, **options)

    with mock.patch.object(torch, "_foreach_copy_", counting):
        yield sizes


class Way:
    """One way to save, with its own stager."""

    def __init__(self, channel: Client) -> None:
        self._writer = StorageWriter(level="captured", channel=channel)
        self._stager = AsyncStager()

    def save(self, state: dict[str, torch.Tensor], step: int) -> dict[str, float]:
        """One save: seconds of the call and of what follows, processor time of each, the writer's bytes."""
        marks = [(time.perf_counter(), time.process_time())]
        with counted() as sizes:
            future = async_save(
                dict(state),
                checkpoint_id=f"step-{step}",
                storage_writer=self._writer,
                async_stager=self._stager,
                no_dist=True,
            )
            marks.append((time.perf_counter(), time.process_time()))
            future.result()  # type: ignore[union-attr]  # the stager is not asynchronous
            marks.append((time.perf_counter(), time.process_time()))
        (wall, cpu), (wall_1, cpu_1), (wall_2, cpu_2) = marks
        seconds = {"call": wall_1 - wall, "call cpu": cpu_1 - cpu, "after": wall_2 - wall_1, "after cpu": cpu_2 - cpu_1}
        return {**seconds, "writer MiB": sum(sizes) / 2**20}


def measure(mib: int, repeat: int, run_dir: Path) -> dict[str, dict[str, list[float]]]:
    """Of both ways, `repeat` times in turns, after three that do not count."""
    state = state_of(mib, 1.0)
    ways = {"twice": Way(Frugal(run_dir, JOB)), "once": Way(Client(run_dir, JOB))}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for step in range(1, repeat + 4):
        for at, (name, way) in enumerate(ways.items()):
            for key, value in way.save(state, 2 * step + at).items():
                if step > 3:
                    found[name].setdefault(key, []).append(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="MiB of the state (default 256)")
    parser.add_argument("--repeat", type=int, default=3, help="saves of each way (default 3)")
    add_report(parser)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    with Cluster(1, parity=0, size=1) as cluster:
        os.environ |= {"CKPTD_JOB": JOB, "CKPTD_RUN_DIR": str(cluster.run_dir(0))}
        results = measure(options.mib, options.repeat, cluster.run_dir(0))
    print(f"{machine()}; {options.mib} MiB, median of {options.repeat} (lowest to highest)")
    rows: dict[str, Any] = {}
    for name, columns in results.items():
        for key, values in columns.items():
            rows.setdefault(name, {}).update(measured(key, values))
            print(f"{name:6} {key:11} {statistics.median(values):9.3f} ({min(values):.3f} to {max(values):.3f})")
    write(options.report, {"mib": options.mib, "repeat": options.repeat, "results": rows})


if __name__ == "__main__":
    main()
