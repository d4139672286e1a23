"""How fast parities are made and lost segments restored, beside the libraries underneath on the same buffers.

    python -m benchmarks.codec [--repeat N] [--mib SIZE] [--report FILE.json]

GB/s counts the k data symbols of a stripe, once, for encoding all m parities and for restoring the most data that can
be lost. "direct" is the library called with the whole buffers: `ec_encode_data` through ctypes with tables and pointers
made beforehand, zfec, or numpy.bitwise_xor. All take turns in each round, each after a plain copy of the data, so that
a neighbour on the machine slows all alike and each finds the same caches. A ratio is of two times of one round.

In the report: `isal_vs_direct` and `zfec_vs_direct` over every shape, encoding and restoring; `isal_vs_zfec` is our
encode of RS(4,2) against zfec called directly.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import zfec

from benchmarks import report
from ckptd.erasure import Code, isal_here, serving
from ckptd.erasure.isal import IsaL
from ckptd.erasure.portable import Bytes, Recipe

SHAPES = ((2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (8, 3), (10, 4))
NAMED = (4, 2)
"""The code that the comparison with zfec is promised for."""
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one code, one kind of work and one backend."""

    k: int
    m: int
    work: str
    backend: str
    ours: list[float]
    """Seconds of each round; so are the others."""
    direct: list[float]
    copy: list[float]
    gb: float
    """The data of one call."""

    def rates(self, seconds: list[float]) -> list[float]:
        return [self.gb / taken for taken in seconds]

    @property
    def ratios(self) -> list[float]:
        """How fast ours is beside the library, round by round."""
        return [direct / ours for ours, direct in zip(self.ours, self.direct, strict=True)]

    def as_json(self) -> dict[str, Any]:
        rates = {"gb_per_s": self.ours, "direct_gb_per_s": self.direct, "copy_gb_per_s": self.copy}
        values = {**{name: self.rates(seconds) for name, seconds in rates.items()}, "vs_direct": self.ratios}
        parts = [report.measured(name, found) for name, found in values.items()]
        named = {"k": self.k, "m": self.m, "work": self.work, "backend": self.backend}
        return {**named, **{key: value for part in parts for key, value in part.items()}}


@dataclass(frozen=True, slots=True)
class Stripe:
    """One stripe in memory: the data, its parities, and room for what is restored."""

    code: Code
    data: list[Bytes]
    parities: list[Bytes]
    out: list[Bytes]

    @property
    def lost(self) -> range:
        return range(min(self.code.k, self.code.m))

    @property
    def used(self) -> tuple[int, ...]:
        """The symbols that data are restored from: parities in the place of the lost."""
        k, lost = self.code.k, len(self.lost)
        return (*range(k, k + lost), *range(lost, k))

    @property
    def blocks(self) -> list[Bytes]:
        return [*self.parities[: len(self.lost)], *self.data[len(self.lost) :]]


def stripe(k: int, m: int, length: int) -> Stripe:
    rng = np.random.default_rng(k * 256 + m)
    data = [rng.integers(0, 256, length, dtype=np.uint8) for _ in range(k)]
    parities, out = ([np.zeros(length, np.uint8) for _ in range(count)] for count in (m, min(k, m)))
    Code(k=k, m=m).encode(data, range(m), parities)
    return Stripe(Code(k=k, m=m), data, parities, out)


def ours(stripe: Stripe, backend: str) -> dict[str, Work]:
    symbols = dict(zip(stripe.used, stripe.blocks, strict=True))
    encode = partial(stripe.code.encode, stripe.data, range(stripe.code.m), stripe.parities, backend=backend)
    decode = partial(stripe.code.decode, symbols, stripe.lost, stripe.out, backend=backend)
    return {"encode": encode, "decode": decode}


def direct_xor(blocks: list[Bytes], out: Bytes) -> None:
    np.bitwise_xor(blocks[0], blocks[1], out=out)
    for block in blocks[2:]:
        np.bitwise_xor(out, block, out=out)


def direct_isal(recipe: Recipe, blocks: list[Bytes], out: list[Bytes]) -> Work:
    """`ec_encode_data` with everything that it takes made beforehand."""
    found = isal_here()
    assert isinstance(found, IsaL)
    encode = ctypes.CDLL(found.path).ec_encode_data
    encode.argtypes, encode.restype = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3, None
    pointers = [(ctypes.c_void_p * len(views))(*(view.ctypes.data for view in views)) for views in (blocks, out)]
    return partial(encode, len(blocks[0]), recipe.k, len(out), found.tables(recipe), *pointers)


def direct(stripe: Stripe, backend: str) -> dict[str, Work]:
    k, m = stripe.code.k, stripe.code.m
    rows, used = tuple(range(k, k + m)), stripe.used
    if backend == "isal":
        encoding, decoding = Recipe(k, m, tuple(range(k)), rows), Recipe(k, m, used, tuple(stripe.lost))
        return {
            "encode": direct_isal(encoding, stripe.data, stripe.parities),
            "decode": direct_isal(decoding, stripe.blocks, stripe.out),
        }
    if backend == "zfec":
        encoder, decoder = zfec.Encoder(k, k + m), zfec.Decoder(k, k + m)
        return {
            "encode": partial(encoder.encode, stripe.data, list(rows)),
            "decode": partial(decoder.decode, stripe.blocks, list(used)),
        }
    return {
        "encode": partial(direct_xor, stripe.data, stripe.parities[0]),
        "decode": partial(direct_xor, stripe.blocks, stripe.out[0]),
    }


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(k: int, m: int, length: int, repeat: int) -> list[Result]:
    made = stripe(k, m, length)
    source, target = np.ones(k * length, np.uint8), np.zeros(k * length, np.uint8)
    backends = [backend.name for backend in serving(k, m)]
    results = []
    for work in ("encode", "decode"):
        turns: dict[tuple[str, str], Work] = {}
        for backend in backends:
            turns |= {(backend, "ours"): ours(made, backend)[work], (backend, "direct"): direct(made, backend)[work]}
        taken: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        copies = []
        for round_ in range(repeat + 1):
            for turn in sorted(turns, reverse=round_ % 2 == 1):  # nobody is always the first
                copies.append(seconds(partial(np.copyto, target, source)))
                taken[turn].append(seconds(turns[turn]))
        # The first round touches memory and makes tables.
        results += [
            Result(k, m, work, name, taken[name, "ours"][1:], taken[name, "direct"][1:], copies, k * length / 1e9)
            for name in backends
        ]
    return results


def summary(results: list[Result]) -> dict[str, Any]:
    """The ratios that are promised; those of ISA-L only where it is."""
    found: dict[str, Any] = {}
    for backend in ("isal", "zfec"):
        ratios = [ratio for result in results if result.backend == backend for ratio in result.ratios]
        found |= report.measured(f"{backend}_vs_direct", ratios) if ratios else {}
    named = {r.backend: r for r in results if (r.k, r.m) == NAMED and r.work == "encode"}
    if "isal" in named:
        pairs = zip(named["zfec"].direct, named["isal"].ours, strict=True)
        found |= report.measured("isal_vs_zfec", [theirs / mine for theirs, mine in pairs])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15, help="rounds (default 15)")
    parser.add_argument(
        "--mib", type=int, default=4, help="MiB of one symbol (default 4, which is what a daemon codes at a time)"
    )
    report.add_report(parser)
    options = parser.parse_args()
    results = [result for k, m in SHAPES for result in measure(k, m, options.mib << 20, options.repeat)]
    found = summary(results)
    print(f"symbols of {options.mib} MiB, medians of {options.repeat} rounds [lowest, highest]; GB/s of data")
    print(" k  m                  ckptd                 direct  ratio    copy")
    for r in results:
        rates, middle = r.rates(r.ours), statistics.median
        numbers = f"{middle(rates):6.2f} [{min(rates):5.2f}, {max(rates):5.2f}]"
        beside = f"{middle(r.rates(r.direct)):8.2f} {middle(r.ratios):6.2f} {middle(r.rates(r.copy)):7.2f}"
        print(f"{r.k:2} {r.m:2}  {r.work}  {r.backend:4} {numbers} {beside}")
    for name in ("isal_vs_direct", "zfec_vs_direct", "isal_vs_zfec"):
        if name in found:
            print(f"{name}: {found[name]:.2f} {[round(ratio, 2) for ratio in found[f'{name}_spread']]}")
    origins = sorted({backend.origin for k, m in SHAPES for backend in serving(k, m)})
    details = {"mib": options.mib, "repeat": options.repeat, "backends": origins}
    report.write(options.report, {"codec": {**found, **details, "shapes": [r.as_json() for r in results]}})


if __name__ == "__main__":
    main()
