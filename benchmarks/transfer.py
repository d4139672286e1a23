"""How fast one node reads a slot of another, beside a bare sendall/recv_into loop over the same bytes in the same run.

    python -m benchmarks.transfer [--mib 512] [--repeat 7] [--report FILE.json]

Two processes on this machine's loopback. One holds a slot file on the tmpfs and serves it by the production server, and
over bare connections by `sendall` of the mapping or `sendfile` of the file; the other reads it into a mapping of its own,
by the production reader (every piece checked) or by a bare `recv_into` loop (nothing checked). They take turns, on one
and on two streams. CPU seconds are both processes' together. Expected: at least 0.9 of the bare loop's rate and at most
1.1 times its CPU seconds; `sendfile` is the bare loop with the other call, for the choice between the two.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bare
from benchmarks.report import add_report, measured, write
from ckptd.ckpt import shm
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import sums_of
from ckptd.daemon.events import SlotId
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import Member
from ckptd.daemon.segments import Segments
from ckptd.daemon.transport import Endpoint, Holder, Range

VERSION, SLOT = Version(1, 1), SlotId(0, 0)
WAYS = ("bare", "ckptd", "sendfile")
STREAMS = (1, 2)


@dataclass(frozen=True, slots=True)
class Turn:
    rate: float
    """GB/s."""
    cpu: float
    """CPU seconds a GB, of both processes."""


# ---- the process that holds the bytes ---------------------------------------------------------------


def hold(folder: Path, size: int) -> None:
    """Serve a slot of `size` bytes until stdin ends; every line on stdin is answered by the CPU seconds so far."""
    segments = Segments(folder)
    path = segments.file_for(SLOT, size)
    with segments.writable(path, size) as target:
        shm.touch(target)
        for start in range(0, size, PIECE):
            target[start : start + PIECE] = secrets.token_bytes(min(PIECE, size - start))
    image = segments.record(SLOT, VERSION, 1)
    view = memoryview(shm.map_file(path, size, write=False))
    holder = Holder(segments.image, segments.parity, segments.check)
    server = RangeServer(bare.HOST, holder, Member(job="bench", node=1, secret=b"s" * 32))
    ports = {"ranges": server.port, "bare": bare.listen(path, view)}
    print(json.dumps({**ports, "digest": image.digest}), flush=True)
    bare.answer_cpu()
    server.close()
    segments.close(clean=True)


# ---- the process that reads -------------------------------------------------------------------------


class Reading:
    """Reads the other process's slot in every way that is compared."""

    def __init__(self, folder: Path, size: int) -> None:
        arguments = ["--hold", str(folder / "holder"), "--mib", str(size >> 20)]
        self._holder = bare.Holder("benchmarks.transfer", arguments)
        shm.make_file(folder / "target", size)
        self._into = memoryview(shm.map_file(folder / "target", size, write=True))
        shm.touch(self._into)
        self._image = Image(0, size, self._holder.said["digest"])
        self._endpoint = Endpoint(1, bare.HOST, self._holder.said["ranges"])
        self._reader = RangeReader(Member(job="bench", node=0, secret=b"s" * 32))
        self._bare = [self._holder.connect() for _ in range(max(STREAMS))]

    def turn(self, way: str, streams: int) -> Turn:
        """Read everything once."""
        size, step = self._image.size, self._image.pieces // streams * PIECE
        spans = [(i * step, size if i == streams - 1 else (i + 1) * step) for i in range(streams)]
        read: Callable[[int], None] = lambda i: self._read(way, i, *spans[i])  # noqa: E731
        with ThreadPoolExecutor(streams) as pool:
            used, started = self._cpu(), time.perf_counter()
            list(pool.map(read, range(streams)))
            seconds = time.perf_counter() - started
        return Turn(size / 1e9 / seconds, (self._cpu() - used) / (size / 1e9))

    def check(self) -> None:
        """What arrived is what is held."""
        wanted, expected = Range(VERSION, self._image, 0, self._image.pieces), sums_of(self._into)
        self._into[:] = bytes(len(self._into))
        self._reader.read(self._endpoint, wanted, self._into)
        assert sums_of(self._into) == expected

    def close(self) -> None:
        self._reader.close()
        for connection in self._bare:
            connection.close()
        self._holder.close()

    def _read(self, way: str, stream: int, start: int, end: int) -> None:
        view = self._into[start:end]
        if way == "ckptd":
            wanted = Range(VERSION, self._image, start // PIECE, -(-(end - start) // PIECE))
            self._reader.read(self._endpoint, wanted, view)
            return
        bare.ask(self._bare[stream], way, start, end)
        bare.receive(self._bare[stream], view)

    def _cpu(self) -> float:
        return self._holder.cpu() + bare.cpu_seconds()


def compare(size: int, repeat: int) -> dict[int, dict[str, list[Turn]]]:
    """Turns by number of streams and way."""
    folder = Path(tempfile.mkdtemp(prefix="ckptd-transfer-", dir="/dev/shm"))
    turns: dict[int, dict[str, list[Turn]]] = {streams: {way: [] for way in WAYS} for streams in STREAMS}
    try:
        reading = Reading(folder, size)
        try:
            for number in range(repeat + 1):
                for streams in STREAMS:
                    for way in (*WAYS[number % 3 :], *WAYS[: number % 3]):  # nobody always comes after the same one
                        turn = reading.turn(way, streams)
                        if number:  # the first warms up
                            turns[streams][way].append(turn)
            reading.check()
        finally:
            reading.close()
    finally:
        shutil.rmtree(folder)
    return turns


def summary(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Ratios of turns of the same round, and the absolute figures they are of."""
    loop, ours, other = (turns[way] for way in WAYS)
    content = measured("rate_vs_bare", [a.rate / b.rate for a, b in zip(ours, loop, strict=True)])
    content |= measured("cpu_vs_bare", [a.cpu / b.cpu for a, b in zip(ours, loop, strict=True)])
    content |= measured("sendfile_rate_vs_sendall", [a.rate / b.rate for a, b in zip(other, loop, strict=True)])
    content |= measured("sendfile_cpu_vs_sendall", [a.cpu / b.cpu for a, b in zip(other, loop, strict=True)])
    for way in WAYS:
        content |= measured(f"{way}_gb_s", [turn.rate for turn in turns[way]])
        content |= measured(f"{way}_cpu_s_per_gb", [turn.cpu for turn in turns[way]])
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="size of the slot (default 512)")
    parser.add_argument("--repeat", type=int, default=7, help="turns of each (default 7)")
    parser.add_argument("--hold", type=Path, help=argparse.SUPPRESS)
    add_report(parser)
    options = parser.parse_args()
    if options.hold:
        hold(options.hold, options.mib << 20)
        return
    turns = compare(options.mib << 20, options.repeat)
    print(f"a slot of {options.mib} MiB, median of {options.repeat}: GB/s and CPU seconds a GB of both processes")
    print("streams  way       GB/s  CPU s/GB")
    for streams, ways in turns.items():
        for way, found in ways.items():
            rate, cpu = statistics.median(t.rate for t in found), statistics.median(t.cpu for t in found)
            print(f"{streams:7}  {way:8} {rate:5.2f}  {cpu:8.3f}")
    results = {streams: summary(ways) for streams, ways in turns.items()}
    for streams, ratios in results.items():
        print(
            f"{streams} streams: rate {ratios['rate_vs_bare']:.2f}, CPU {ratios['cpu_vs_bare']:.2f} of the bare loop's"
        )
    content = results[1] | {"mib": options.mib, "repeat": options.repeat, "two_streams": results[2]}
    write(options.report, {"transfer": content})


if __name__ == "__main__":
    main()
