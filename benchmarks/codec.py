"""How fast parities are made and lost segments restored, beside the libraries underneath on the same buffers.

    python -m benchmarks.codec [--json] [--repeat N] [--mib SIZE]

GB/s counts the k data symbols of a stripe, once, for encoding all m parities and for restoring the most data that can
be lost. "direct" is zfec called with the whole buffers, or numpy.bitwise_xor over them; the two take turns, each after
a plain copy of the data. The copy is the yardstick of the machine: it reads the data once and writes as much.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import zfec

from ckptd.erasure import Code
from ckptd.erasure.code import Bytes

SHAPES = ((2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (8, 3))
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Result:
    k: int
    m: int
    work: str
    ours: float
    """GB/s, the median; so are `direct` and `copy`."""
    spread: float
    """(fastest - slowest) / median of ours."""
    direct: float
    copy: float

    @property
    def ratio(self) -> float:
        return self.ours / self.direct


def direct_xor(blocks: list[Bytes], out: Bytes) -> None:
    np.bitwise_xor(blocks[0], blocks[1], out=out)
    for block in blocks[2:]:
        np.bitwise_xor(out, block, out=out)


def works(k: int, m: int, length: int) -> dict[str, tuple[Work, Work]]:
    """Our call and the library's on the same buffers, by what is done."""
    rng = np.random.default_rng(k * 256 + m)
    data = [rng.integers(0, 256, length, dtype=np.uint8) for _ in range(k)]
    parities = [np.empty(length, np.uint8) for _ in range(m)]
    out = [np.empty(length, np.uint8) for _ in range(min(k, m))]
    code, rows, lost = Code(k=k, m=m), range(m), range(min(k, m))
    code.encode(data, rows, parities)
    numbers = [*range(k, k + len(lost)), *range(len(lost), k)]
    blocks = [*parities[: len(lost)], *data[len(lost) :]]
    symbols = dict(zip(numbers, blocks, strict=True))
    encode: Work = partial(direct_xor, data, out[0])
    decode: Work = partial(direct_xor, blocks, out[0])
    if m > 1:
        encode = partial(zfec.Encoder(k, k + m).encode, data, list(range(k, k + m)))
        decode = partial(zfec.Decoder(k, k + m).decode, blocks, numbers)
    return {
        "encode": (partial(code.encode, data, rows, parities), encode),
        "decode": (partial(code.decode, symbols, lost, out), decode),
    }


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(k: int, m: int, length: int, repeat: int) -> list[Result]:
    source, target = np.ones(k * length, np.uint8), np.empty(k * length, np.uint8)
    copying = partial(np.copyto, target, source)
    results = []
    for name, (ours, direct) in works(k, m, length).items():
        # In turns, so that a neighbour on the machine slows all alike; after a copy, so that both find the same caches.
        order = (copying, ours, copying, direct)
        turns = [[seconds(work) for work in order] for _ in range(repeat + 1)]
        copy, mine, _, theirs = ([k * length / 1e9 / taken for taken in c] for c in zip(*turns[1:], strict=True))
        median, spread = statistics.median(mine), max(mine) - min(mine)
        results.append(Result(k, m, name, median, spread / median, statistics.median(theirs), statistics.median(copy)))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeat", type=int, default=7, help="measurements of each (default 7)")
    parser.add_argument("--mib", type=int, default=8, help="MiB of one symbol (default 8)")
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, zfec {zfec.__version__}"
    parameters = {"machine": machine, "mib": options.mib, "repeat": options.repeat}
    results = [result for k, m in SHAPES for result in measure(k, m, options.mib << 20, options.repeat)]
    if options.json:
        print(json.dumps({**parameters, "results": [{**asdict(r), "ratio": r.ratio} for r in results]}))
        return
    print(f"{machine}; symbols of {options.mib} MiB, median of {options.repeat}; GB/s of data")
    print(" k  m          ckptd  spread   direct  ratio     copy")
    for r in results:
        numbers = f"{r.ours:7.2f} {r.spread:6.0%}  {r.direct:7.2f} {r.ratio:6.2f}  {r.copy:7.2f}"
        print(f"{r.k:2} {r.m:2}  {r.work} {numbers}")


if __name__ == "__main__":
    main()
