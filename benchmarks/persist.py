"""How fast the daemon's storage tier writes, against dd with O_DIRECT, alone and with a training beside it.

    python -m benchmarks.persist [--state 256MiB] [--rounds 5] [--step-ms 200] [--report DIR]

In turns, from the same file on a tmpfs to the same file system:
* ckptd: what a daemon does with an image: check its digest, write it, sync it, publish the step. As nice as a daemon is.
* dd: `dd bs=8M oflag=direct conv=fsync`, as nice.
bytes_s of each, and of_dd: the one by the other. Beside a training (of one thread, steps of `--step-ms`, a state of 32 MiB):
the same, and how much longer its steps took meanwhile. Report: DIR/persist.json.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.cluster import SHM, NotInTimeError
from benchmarks.report import machine, measured, write
from benchmarks.runs import ROOT, end_tidily, environment
from benchmarks.sizes import parse_size, size_name
from benchmarks.workload import Workload, calibrate
from ckptd.ckpt import shm
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.storage import Storage

_NICE = 19
_TRAINED_BYTES = 32 << 20
_RANDOM = 1 << 20
_DD_S = 300.0
_TRAINS_S = 60.0


def write_ckptd(source: Path, target: Path, digest: str) -> float:
    """Seconds of one image, in this process, which is a nice one."""
    size = source.stat().st_size
    storage, version, image = Storage(target, "bench"), Version(1, 1), Image(0, size, digest)
    with memoryview(shm.map_file(source, size, write=False)) as view:
        began = time.perf_counter()
        storage.write(version, image, view)
        storage.publish(version, [image])
        return time.perf_counter() - began


def write_dd(source: Path, target: Path, _digest: str) -> float:
    """Seconds of dd, its start included."""
    command = ["dd", f"if={source}", f"of={target / 'dd'}", "bs=8M", "oflag=direct", "conv=fsync", "status=none"]
    began = time.perf_counter()
    subprocess.run(command, check=True, timeout=_DD_S)
    return time.perf_counter() - began


WAYS: dict[str, Callable[[Path, Path, str], float]] = {"ckptd": write_ckptd, "dd": write_dd}


def turns(source: Path, folder: Path, digest: str, rounds: int) -> dict[str, list[float]]:
    """Bytes a second of both ways in turns, after a round that does not count."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way, once in WAYS.items():
            target = folder / way
            target.mkdir()
            rate = source.stat().st_size / once(source, target, digest)
            shutil.rmtree(target)
            if turn:
                rates[way].append(rate)
    return rates


def train(matmuls: int) -> None:
    """The training beside: a line with the seconds of each step, as long as who has started it lives."""
    workload, parent = Workload(_TRAINED_BYTES, matmuls=matmuls, seed=1), os.getppid()
    while os.getppid() == parent:
        began = time.perf_counter()
        workload.compute()
        workload.update()
        print(time.perf_counter() - began, flush=True)


@contextmanager
def training(step_ms: float, log: Path) -> Iterator[Callable[[], list[float]]]:
    """A training process; what is yielded says the seconds of its steps since it was asked last.

    Raises NotInTimeError when it does not train.
    """
    command = [sys.executable, "-m", "benchmarks.persist", "--train", str(calibrate(step_ms, 1))]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment() | {"OMP_NUM_THREADS": "1"}, stdout=out)
    read = 0

    def steps() -> list[float]:
        nonlocal read
        lines = log.read_text().splitlines()[:-1]  # the last one may be half a line
        new, read = [float(line) for line in lines[read:]], len(lines)
        return new

    try:
        _settled(steps, 1)
        yield steps
    finally:
        process.kill()
        process.wait()


def rows(alone: dict[str, list[float]], beside: dict[str, list[float]]) -> dict[str, Any]:
    """What the report says."""
    found: dict[str, Any] = {}
    for name, rates in (("alone", alone), ("beside_training", beside)):
        found[name] = {way: measured("bytes_s", rates[way]) for way in WAYS}
        found[name] |= measured("of_dd", [a / b for a, b in zip(rates["ckptd"], rates["dd"], strict=True)])
    return found


def measure(size: int, rounds: int, step_ms: float) -> dict[str, Any]:
    """The report of one size. Makes this process nice, which it can't take back."""
    folder, memory = (
        Path(tempfile.mkdtemp(prefix="ckptd-bench-")),
        Path(tempfile.mkdtemp(prefix="ckptd-bench-", dir=SHM)),
    )
    try:
        source = memory / "image"
        block = secrets.token_bytes(_RANDOM)
        with source.open("wb") as file:
            for _ in range(size // _RANDOM):
                file.write(block)
        digest = digest_of(sums_of(source.read_bytes()), source.stat().st_size)
        with training(step_ms, folder / "steps") as steps:  # begun first: it must not inherit our niceness
            quiet = _settled(steps)
            os.nice(_NICE)
            beside = turns(source, folder, digest, rounds)
            busy = steps()
        alone = turns(source, folder, digest, rounds)
        slower = statistics.median(busy) / statistics.median(quiet) - 1
        return rows(alone, beside) | {"state_bytes": size, "step_ms": step_ms, "training_slowdown": slower}
    finally:
        for path in (folder, memory):
            shutil.rmtree(path, ignore_errors=True)


def _settled(steps: Callable[[], list[float]], count: int = 10) -> list[float]:
    """The next steps of the training, that many or more."""
    found, deadline = list[float](), time.monotonic() + _TRAINS_S
    while len(found) < count:
        if time.monotonic() > deadline:
            raise NotInTimeError(f"the training beside has made {len(found)} of {count} steps in {_TRAINS_S:.0f} s")
        time.sleep(0.1)
        found += steps()
    return found


def show(found: dict[str, Any]) -> None:
    print(f"{machine()}; {size_name(found['state_bytes'])}")
    for name in ("alone", "beside_training"):
        one = found[name]
        speeds = "   ".join(f"{way} {one[way]['bytes_s'] / 1e9:.2f} GB/s" for way in WAYS)
        low, high = one["of_dd_spread"]
        print(f"{name:16} {speeds}   ckptd of dd {one['of_dd']:.2f} ({low:.2f} to {high:.2f})")
    print(f"the training's steps took {found['training_slowdown']:+.1%} meanwhile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", default="256MiB", help="bytes of one image (default 256MiB)")
    parser.add_argument("--rounds", type=int, default=5, help="writes of each way (default 5)")
    parser.add_argument("--step-ms", type=float, default=200.0, help="of the training beside it (default 200)")
    parser.add_argument("--train", type=int, metavar="MATMULS", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write the results here, as JSON")
    options = parser.parse_args()
    end_tidily()
    if options.train:
        train(options.train)
    found = {"date": date.today().isoformat(), **measure(parse_size(options.state), options.rounds, options.step_ms)}
    show(found)
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        write(options.report / "persist.json", found)


if __name__ == "__main__":
    main()
