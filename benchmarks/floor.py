"""What protecting and rebuilding must cost on this machine at the least, from what its parts cost alone.

The parts are measured on cold buffers as large as a payload, on all cores at once as the daemons use them: xxh3_64 over
pieces of 256 KiB, one row of the codec encoded and one symbol decoded in windows of 8 MiB, a copy, and the bare loop of
`benchmarks/bare.py` on k streams at once, which receives into windows of 8 MiB. All are CPU seconds a GB.

    seal, a GB of payload:    sum + m (send + receive + sum) + m encode + m/k sum
                              the capture's sums; m parities are made, each from k segments, which are a payload's bytes,
                              sent, received, checked on arrival and read by the codec; the parities' own sums
    rebuild, a GB rebuilt:    k (send + receive + sum) + decode + sum + touch
                              k symbols arrive for each that is lost; the whole image is checked at the end; the memory
                              of a replacement is new, and the first touch of a page (`touch`: a file on the tmpfs made and
                              faulted in) costs several times its copy

`encode` is for a GB that is *read*, `decode` for a GB that is *restored*, for which it reads k. Sender and receiver share
the cores here, so the time is at the least the greater of CPU seconds / cores and bytes sent / the rate of the bare loop.
Not in it: a copy, as nothing has to be copied; and what daemons say to each other while nothing happens.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks import bare
from ckptd.ckpt import shm
from ckptd.ckpt.model import PIECE
from ckptd.ckpt.pieces import sums_of
from ckptd.erasure import Code

WINDOW = 32 * PIECE
CORES = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Costs:
    """What the parts cost in one round: CPU seconds a GB, and GB/s where it says so."""

    copy: float
    sum: float
    encode: float
    """One row, a GB of data that it reads."""
    decode: float
    """One symbol, a GB that is restored."""
    send: float
    receive: float
    touch: float
    link_gb_s: float
    """Of k streams of the bare loop together."""

    @staticmethod
    def mean(rounds: Sequence[Costs]) -> Costs:
        """The means of several rounds."""
        return Costs(*(fmean(getattr(costs, name) for costs in rounds) for name in Costs.__dataclass_fields__))

    def seal_cpu(self, k: int, m: int) -> float:
        """CPU seconds of all nodes for a GB of payload."""
        return self.sum + m * (self.send + self.receive + self.sum + self.encode) + m / k * self.sum

    def seal_s(self, k: int, m: int) -> float:
        """Seconds for a GB of payload, of all nodes together."""
        return max(self.seal_cpu(k, m) / CORES, m / self.link_gb_s)

    def rebuild_receiver_cpu(self, k: int) -> float:
        """CPU seconds of the node that gets a GB back."""
        return k * (self.receive + self.sum) + self.decode + self.sum + self.touch

    def rebuild_senders_cpu(self, k: int) -> float:
        """CPU seconds of all others together, for a GB that is rebuilt."""
        return k * self.send

    def rebuild_gb_s(self, k: int) -> float:
        """GB a second that are rebuilt, on all nodes together."""
        cpu = self.rebuild_receiver_cpu(k) + self.rebuild_senders_cpu(k)
        return 1 / max(cpu / CORES, k / self.link_gb_s)


class Floor:
    """Measures the parts, for payloads of `size` bytes. Its process and its file are gone after the `with`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._folder = Path(tempfile.mkdtemp(prefix="ckptd-floor-", dir="/dev/shm"))
        try:
            self._prepare()
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def __enter__(self) -> Floor:  # noqa: PYI034 - `Self` needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._holder.close()
        finally:
            shutil.rmtree(self._folder)

    def measure(self, k: int, m: int) -> Costs:
        """One round of all parts."""
        segment = self._size // k // WINDOW * WINDOW or WINDOW
        code, data = Code(k, m), [self._source[i * segment : (i + 1) * segment] for i in range(k)]
        lost, others = code.k - 1, data[: k - 1]
        parity, out = self._target[:segment], self._target[segment : 2 * segment]

        def encode(start: int, end: int) -> None:
            for at in range(start, end, WINDOW):
                to = min(end, at + WINDOW)
                code.encode([part[at:to] for part in data], [0], [parity[at:to]])

        def decode(start: int, end: int) -> None:
            for at in range(start, end, WINDOW):
                to = min(end, at + WINDOW)
                symbols = {i: part[at:to] for i, part in enumerate(others)} | {k: parity[at:to]}
                code.decode(symbols, [lost], [out[at:to]])

        size = self._size
        copied = _cpu_on_all_cores(lambda a, b: np.copyto(self._target[a:b], self._source[a:b]), size)
        summed = _cpu_on_all_cores(lambda a, b: _sum(self._view[a:b]), size)
        encoded, decoded = _cpu_on_all_cores(encode, segment), _cpu_on_all_cores(decode, segment)
        assert np.array_equal(out[:PIECE], data[lost][:PIECE]), "what was decoded is what was encoded"
        sent, received, seconds = self._loop(k)
        gb = size / 1e9
        return Costs(
            copied / gb, summed / gb, encoded * 1e9 / (segment * k), decoded * 1e9 / segment,
            sent / gb, received / gb, self._touch() / gb, gb / seconds,
        )  # fmt: skip

    def _touch(self) -> float:
        """CPU seconds of making a file as large as a payload."""
        used = bare.cpu_seconds()
        shm.make_file(self._folder / "new", self._size)
        used = bare.cpu_seconds() - used
        (self._folder / "new").unlink()
        return used

    def _prepare(self) -> None:
        path = self._folder / "held"
        shm.make_file(path, self._size)
        shm.make_file(self._folder / "target", self._size)
        self._view = memoryview(shm.map_file(path, self._size, write=True))
        self._source = np.frombuffer(self._view, np.uint8)
        self._target = np.frombuffer(shm.map_file(self._folder / "target", self._size, write=True), np.uint8)
        for mapped in (self._view, self._target.data):
            shm.touch(mapped)
        self._source[:] = np.resize(np.frombuffer(secrets.token_bytes(1_000_003), np.uint8), self._size)
        self._holder = bare.Holder("benchmarks.bare", ["--hold", str(path)])

    def _loop(self, k: int) -> tuple[float, float, float]:
        """CPU seconds of the sender, of the receiver, and seconds, to move a payload over k streams at once."""
        step = -(-self._size // k)
        connections = [self._holder.connect() for _ in range(k)]
        windows = [np.ones(2 * WINDOW, np.uint8).data for _ in range(k)]

        def stream(index: int) -> None:
            start, end = index * step, min(self._size, (index + 1) * step)
            bare.ask(connections[index], "bare", start, end)
            for number, at in enumerate(range(start, end, WINDOW)):
                begin = number % 2 * WINDOW
                bare.receive(connections[index], windows[index][begin : begin + min(WINDOW, end - at)])

        with ThreadPoolExecutor(k) as pool:
            sent, received, started = self._holder.cpu(), bare.cpu_seconds(), time.perf_counter()
            list(pool.map(stream, range(k)))
            seconds = time.perf_counter() - started
            received = bare.cpu_seconds() - received
        sent = self._holder.cpu() - sent
        for connection in connections:
            connection.close()
        return sent, received, seconds


def _sum(view: memoryview) -> None:
    sums_of(view)


def _cpu_on_all_cores(work: Callable[[int, int], None], size: int) -> float:
    """CPU seconds of `work(start, end)` over `size` bytes, which are shared out over as many threads as there are cores."""
    step = -(-size // CORES // PIECE) * PIECE
    spans = [(start, min(size, start + step)) for start in range(0, size, step)]
    with ThreadPoolExecutor(len(spans)) as pool:
        used = bare.cpu_seconds()
        list(pool.map(lambda span: work(*span), spans))
        return bare.cpu_seconds() - used
