"""Train a byte-level GPT on the sources of Python's standard library, with a snapshot of the job at every step.

    python -m ckptd.examples.train_gpt --steps 100                                    # one process
    torchrun --nproc-per-node 2 -m ckptd.examples.train_gpt --steps 100               # data-parallel over gloo

Kill it at any moment and start the same command again: it goes on from the last snapshot, bit for bit as if nothing
had happened. `main` at the end of this file is the whole story; the rest is an ordinary small model and its data.
"""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that everybody knows it by)
from torch.nn.parallel import DistributedDataParallel

from ckptd import Checkpointer

PEER_TIMEOUT = timedelta(seconds=60)
"""How long a collective waits for a silent peer. torch's default of 30 minutes would turn a lost node into a long nap."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train and for how long; every field is a command line option of the same name."""

    steps: int = 100
    seed: int = 1
    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 64
    batch: int = 8
    dropout: float = 0.1
    lr: float = 1e-3
    threads: int = 1
    text_bytes: int = 4_000_000
    pace: float = 0.0
    """Seconds that a step takes at least: a small model on a small machine stands for a big one."""
    every: str = "1"
    """Steps or time between two snapshots, or auto."""
    sigterm_grace_s: float = 0.0
    """On SIGTERM take one last snapshot within so many seconds; 0 leaves the signal alone."""
    events: str = ""
    checkpoint: bool = True


class Block(nn.Module):
    """One transformer layer: causal self-attention, then a two-layer perceptron, each with a residual."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width = options.width
        self.heads = options.heads
        self.dropout = options.dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(options.dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], dropout_p=dropout, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder over bytes. Input: batch x (context + 1) bytes; output: the mean loss of predicting each next byte."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, options.width)
        self.position = nn.Embedding(options.context, options.width)
        self.blocks = nn.Sequential(*(Block(options) for _ in range(options.layers)))
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, 256, bias=False)
        self.head.weight = self.embed.weight  # tied, as usual
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        given, wanted = text[:, :-1], text[:, 1:]
        x = self.embed(given) + self.position.weight
        return F.cross_entropy(self.head(self.norm(self.blocks(x))).flatten(0, 1), wanted.flatten())


class Text:
    """The training data: fixed windows of the text in a scattered order, dealt out to the ranks like cards.

    It is `Stateful`: its state is one number, the windows that the whole job has used, so it survives restarts, also
    onto another number of ranks.
    """

    STRIDE = 7919  # neighbouring windows look alike; a prime walks through all of them in a scattered order

    def __init__(self, text: bytes, options: Options, rank: int, world: int) -> None:
        self.batch, self.rank, self.world = options.batch, rank, world
        self.used = 0
        count = len(text) // (options.context + 1)
        self.windows = torch.frombuffer(bytearray(text), dtype=torch.uint8)[: count * (options.context + 1)]
        self.windows = self.windows.view(count, options.context + 1)

    def next_batch(self) -> Tensor:
        mine = self.used + self.rank + self.world * torch.arange(self.batch)
        self.used += self.world * self.batch
        return self.windows[mine * self.STRIDE % len(self.windows)].long()

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used = state["used"]


def standard_library(limit: int) -> bytes:
    """The first `limit` bytes of the standard library's modules in alphabetical order: text that everybody has."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    if len(text) < 100_000:
        raise SystemExit(f"no Python sources in {sysconfig.get_path('stdlib')}: this interpreter came without them")
    return bytes(text[:limit])


class EventLog:
    """Appends what happens to `PREFIX.rank-R.jsonl`, a JSON object a line; without a prefix rank 0 prints its losses."""

    def __init__(self, prefix: str, rank: int) -> None:
        self.rank = rank
        self.path = Path(f"{prefix}.rank-{rank}.jsonl") if prefix else None

    def write(self, event: str, **fields: Any) -> None:
        if self.path:
            about = {"event": event, "t": time.time(), "rank": self.rank, "pid": os.getpid()}
            with self.path.open("a") as file:
                file.write(json.dumps(about | fields) + "\n")
        elif self.rank == 0:
            if "loss" in fields:  # exact bits are for programs
                fields["loss"] = f"{float.fromhex(fields['loss']):.6f}"
            print(event, *(f"{name}={value}" for name, value in fields.items()), flush=True)


class NoCheckpoint:
    """Stands in for the Checkpointer in a run that keeps nothing."""

    def restore(self) -> int:
        return 0

    def step(self, step: int) -> None: ...

    def wait(self, level: str, timeout_s: float) -> None: ...

    def close(self) -> None: ...


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Name the exact bits of every parameter and every optimizer tensor."""
    bits = xxhash.xxh3_128()
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        for tensor in (parameter.detach(), *(state[name] for name in sorted(state))):
            bits.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return bits.hexdigest()


def parse(argv: list[str] | None = None) -> Options:
    """The command line: an option for each field of `Options`."""
    parser = argparse.ArgumentParser(description="Train a small GPT on the standard library's sources, with ckptd.")
    for name, value in Options().__dict__.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(f"--no-{flag}", dest=name, action="store_false")
        else:
            parser.add_argument(f"--{flag}", type=type(value), default=value, help=f"default: {value!r}")
    return Options(**vars(parser.parse_args(argv)))


def distribute(model: nn.Module) -> nn.Module:
    """Wrap the model for data-parallel training, if there is more than one rank."""
    if not dist.is_initialized():
        return model
    # DDP starts with one layout of its gradient buckets and builds another after the first backward pass. A restarted
    # job would reduce its first step in the first layout where the uninterrupted one used the second, and as a ring
    # adds the ranks up in an order that depends on the place in the bucket, the sums would round differently. With
    # find_unused_parameters the layout is never rebuilt.
    return DistributedDataParallel(model, find_unused_parameters=True)


def main(options: Options) -> None:
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    log = EventLog(options.events, rank)
    log.write("start", world=world, steps=options.steps)
    torch.set_num_threads(options.threads)
    if world > 1:
        dist.init_process_group("gloo", timeout=PEER_TIMEOUT)

    torch.manual_seed(options.seed)  # all ranks begin with the same weights,
    model = distribute(GPT(options))
    torch.manual_seed(options.seed + 1 + rank)  # and drop out different activations
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)
    data = Text(standard_library(options.text_bytes), options, rank, world)

    ck: Checkpointer | NoCheckpoint = NoCheckpoint()
    if options.checkpoint:
        ck = Checkpointer(
            every=options.every, sigterm_grace_s=options.sigterm_grace_s or None,
            model=model, optimizer=optimizer, scheduler=scheduler, data=data,
        )  # fmt: skip
    step = ck.restore()
    log.write("restored", step=step)
    while step < options.steps:
        begun = time.monotonic()
        loss = model(data.next_batch())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        step += 1
        ck.step(step)
        log.write("step", step=step, loss=loss.item().hex())
        time.sleep(max(0.0, options.pace - (time.monotonic() - begun)))

    ck.wait("sealed", timeout_s=60.0)
    ck.close()
    log.write("done", step=step, digest=digest(model, optimizer))
    if world > 1:
        dist.barrier()  # nobody leaves while a peer still talks
        dist.destroy_process_group()


if __name__ == "__main__":
    main(parse())
