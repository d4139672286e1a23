"""What DCP's save and load take in memory, beside DCP's own files on the same tmpfs, in turns.

    python -m benchmarks.dcp [--mib SIZE] [--repeat N] [--report FILE.json]

One rank, one daemon, a state of float32 tensors of 8 MiB. A save of ours returns when the step is captured, with every
sum taken, or sealed; theirs when the files are written, without syncing; theirs by ckptd:// when the step is sealed. Seconds
by the caller's clock.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import ckptd.dcp
from benchmarks.cluster import JOB, SHM, Cluster
from benchmarks.report import add_report, machine, measured, write
from ckptd.dcp import StorageWriter

CHUNK_MIB = 8


def state_of(mib: int, fill: float) -> dict[str, torch.Tensor]:
    return {f"layer.{index:04d}": torch.full((2048, 1024), fill) for index in range(mib // CHUNK_MIB)}


def ways(
    folder: Path, state: dict[str, torch.Tensor], into: dict[str, torch.Tensor]
) -> dict[str, Callable[[int], object]]:
    """What is measured, in this order, at a step."""
    files = folder / "files"

    def save_files(step: int) -> None:
        shutil.rmtree(files, ignore_errors=True)
        dcp_save(dict(state), storage_writer=FileSystemWriter(files, sync_files=False), no_dist=True)

    def save_memory(level: str, step: int) -> None:
        ckptd.dcp.save(dict(state), storage_writer=StorageWriter(step, level=level), no_dist=True)

    def url(step: int) -> str:
        return f"ckptd://{JOB}/step-{3 * step}"

    return {
        "save, files": save_files,
        "save, by URL": lambda step: dcp_save(dict(state), checkpoint_id=url(step), no_dist=True),
        "load, by URL": lambda step: dcp_load(into, checkpoint_id=url(step), no_dist=True),
        "save, captured": lambda step: save_memory("captured", 3 * step + 1),
        "save, sealed": lambda step: save_memory("sealed", 3 * step + 2),
        "load, files": lambda step: dcp_load(into, storage_reader=FileSystemReader(files), no_dist=True),
        "load, memory": lambda step: ckptd.dcp.load(into, no_dist=True),
    }


def measure(mib: int, repeat: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of every way, `repeat` times in turns, after one that does not count."""
    state, into = state_of(mib, 1.0), state_of(mib, 0.0)
    found: dict[str, list[float]] = {}
    for step in range(1, repeat + 2):
        for name, do in ways(folder, state, into).items():
            for tensor in into.values():
                tensor.zero_()
            began = time.perf_counter()
            do(step)
            if step > 1:
                found.setdefault(name, []).append(time.perf_counter() - began)
            assert not name.startswith("load") or all(bool(tensor[0, 0] == 1.0) for tensor in into.values())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="MiB of the state (default 256)")
    parser.add_argument("--repeat", type=int, default=7, help="saves and loads of each way (default 7)")
    add_report(parser)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    with Cluster(1, parity=0, size=1) as cluster, tempfile.TemporaryDirectory(prefix="ckptd-bench-", dir=SHM) as folder:
        os.environ |= {"CKPTD_JOB": JOB, "CKPTD_RUN_DIR": str(cluster.run_dir(0))}
        results = measure(options.mib, options.repeat, Path(folder))
    print(
        f"{machine()}; {options.mib} MiB, median of {options.repeat}\n                    s (lowest to highest)   of files"
    )
    rows = {}
    for name, seconds in results.items():
        files = statistics.median(results[f"{name.partition(',')[0]}, files"])
        taken = statistics.median(seconds)
        rows[name] = {**measured("seconds", seconds), "of_files": taken / files}
        print(f"{name:16} {taken:8.3f} ({min(seconds):.3f} to {max(seconds):.3f})   {taken / files:6.0%}")
    write(options.report, {"mib": options.mib, "repeat": options.repeat, "results": rows})


if __name__ == "__main__":
    main()
