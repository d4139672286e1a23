"""Capture on a GPU: a model of 1.3 billion parameters with AdamW, a snapshot after every step.

    python -m benchmarks.gpu [--steps 20] [--layers 24] [--width 2048] [--slots 3] [--report DIR]

The yardstick is the link: one pinned copy of 1 GiB from the device, best of five. The same loop runs without snapshots and
with them, in turns, in this process; the daemon is another. Without a CUDA device it says so and ends with 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cluster import JOB, Cluster
from benchmarks.report import measured, write
from benchmarks.trainer import Hooks
from ckptd import Checkpointer, __version__

VOCABULARY, CONTEXT, BATCH = 50_304, 512, 4
WARM, ROUNDS, COPIES = 3, 3, 5
_LINK_BYTES = 1 << 30
_PATIENCE_S = 120.0


class Gpt(nn.Module):
    """A decoder of ordinary shape; with the defaults 1.3 billion parameters."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.zeros(CONTEXT, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 128, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) + self.position
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, device=tokens.device)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return nn.functional.linear(hidden, self.embedding.weight)


@dataclass(slots=True)
class Training:
    """The loop. Steps are timed to the end of their kernels."""

    model: Gpt
    optimizer: torch.optim.Optimizer
    hooks: Hooks
    done: int = 0
    blocked: list[float] = field(default_factory=list)

    def step(self, checkpointer: Checkpointer | None) -> float:
        began = time.perf_counter()
        tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT), device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            logits = self.model(tokens)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        torch.autograd.backward(loss)
        before = self.hooks.spent
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.blocked:
            self.blocked[-1] += self.hooks.spent - before  # the fence is the snapshot's before
        self.done += 1
        if checkpointer is not None:
            called = time.perf_counter()
            checkpointer.step(self.done)
            self.blocked.append(time.perf_counter() - called)
        torch.cuda.current_stream().synchronize()  # of the training alone: the copies have a stream of their own
        return time.perf_counter() - began


def link_bytes_s() -> float:
    """What the link does: device to pinned host memory, best of five."""
    source = torch.empty(_LINK_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty(_LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    best = float("inf")
    for _ in range(COPIES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return _LINK_BYTES / best


def compare(training: Training, checkpointer: Checkpointer, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of a step without and with a snapshot at each, medians of rounds in turns."""
    without, with_ = [], []
    for _ in range(ROUNDS):
        without.append(statistics.median(training.step(None) for _ in range(steps)))  # the first has a fence: a median
        with_.append(statistics.median(training.step(checkpointer) for _ in range(steps)))
        checkpointer.wait("captured", timeout_s=_PATIENCE_S)
    return without, with_


def copy_rates(training: Training, checkpointer: Checkpointer, size: int) -> list[float]:
    """Bytes a second from the call to the daemon's record of the capture, with no training beside it."""
    rates = []
    for _ in range(COPIES):
        training.step(None)
        torch.cuda.synchronize()
        began = time.perf_counter()
        checkpointer.step(training.done)
        checkpointer.wait("captured", timeout_s=_PATIENCE_S)
        rates.append(size / (time.perf_counter() - began))
    return rates


def measure(steps: int, layers: int, width: int, slots: int) -> dict[str, Any]:
    """The report."""
    link = link_bytes_s()
    model = Gpt(layers, width).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    hooks = Hooks()
    training = Training(model, optimizer, hooks)
    for _ in range(WARM):
        training.step(None)
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(p.nbytes for p in model.parameters()) * 3
    with Cluster(1, parity=1, size=size, slots=slots, settings={"NICE": "19"}) as cluster:
        os.environ.update(CKPTD_RUN_DIR=str(cluster.run_dir(0)), CKPTD_JOB=JOB)
        with Checkpointer(model=model, optimizer=optimizer) as checkpointer:
            hooks.close_bracket()
            began = time.perf_counter()
            checkpointer.restore()
            setup = time.perf_counter() - began
            training.step(checkpointer)
            training.step(None)  # its fence belongs to the first snapshot
            first = training.blocked[0]
            checkpointer.wait("captured", timeout_s=_PATIENCE_S)
            training.blocked.clear()
            without, with_ = compare(training, checkpointer, steps)
            rates = copy_rates(training, checkpointer, size)
            stats = checkpointer.stats
    row = {
        "version": __version__,
        **measured("blocked_ms", [1e3 * seconds for seconds in training.blocked]),
        **measured("added_ms", [1e3 * (b - a) for a, b in zip(without, with_, strict=True)]),
        **measured("slowdown", [b / a - 1 for a, b in zip(without, with_, strict=True)]),
        "first_ms": 1e3 * first,
        "setup_ms": 1e3 * setup,
        **measured("copy_bytes_s", rates),
        "copy_of_link": statistics.median(rates) / link,
        "survives": ["trainer"],
        "captured": stats.captured,
        "skipped": stats.skipped,
        "failed": stats.failed + stats.aborted,
    }
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "parameters": parameters,
        "state_bytes": size,
        "link_bytes_s": link,
        "step_ms": 1e3 * statistics.median(without),
        "every": 1,
        "systems": {"ckptd captured": row},
    }


def run(folder: Path | None, *, steps: int = 20, layers: int = 24, width: int = 2048, slots: int = 3) -> None:
    """Measure, print, and write gpu.json into `folder`. Exits with 1 where there is no CUDA device."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: this section needs one (16 GB of state, 48 GB of tmpfs with the defaults)")
    found = measure(steps, layers, width, slots)
    row = found["systems"]["ckptd captured"]
    print(
        f"{found['device']}, {found['parameters'] / 1e9:.2f} B parameters, {found['state_bytes'] / 1e9:.1f} GB of state, "
        f"step {found['step_ms']:.0f} ms, link {found['link_bytes_s'] / 1e9:.1f} GB/s"
    )
    print(
        f"blocked {row['blocked_ms']:.2f} ms, slowdown {row['slowdown']:.2%}, "
        f"copy {row['copy_bytes_s'] / 1e9:.1f} GB/s ({row['copy_of_link']:.0%} of the link), "
        f"first {row['first_ms']:.0f} ms; {row['captured']} captured, {row['skipped']} skipped, {row['failed']} failed"
    )
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "gpu.json", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps of a round (default 20)")
    parser.add_argument("--layers", type=int, default=24, help="(default 24)")
    parser.add_argument("--width", type=int, default=2048, help="a multiple of 128 (default 2048)")
    parser.add_argument("--slots", type=int, default=3, help="snapshots that the tmpfs has room for (default 3)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write gpu.json there")
    options = parser.parse_args()
    run(options.report, steps=options.steps, layers=options.layers, width=options.width, slots=options.slots)


if __name__ == "__main__":
    main()
