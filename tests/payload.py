"""The bytes that the tests capture instead of a training state: other ones for every rank of every version."""

from __future__ import annotations

import random
from pathlib import Path

from ckptd.ckpt.model import Version

JOB = "t"


def bytes_of(version: Version, rank: int, size: int | None = None) -> bytes:
    """The image of a rank at a version; by default of a length that is no whole number of pieces."""
    length = 600_000 + 1000 * rank if size is None else size
    block = random.Random(f"{version.epoch} {version.step} {rank}").randbytes(1_000_003)
    return (block * (length // len(block) + 1))[:length]


def flip(path: Path, offset: int = 1000) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
