"""Which replica captures which rows of the state that all replicas hold alike.

All replicated tensors are laid end to end in name order, the line of bytes is cut into equal parts, and each cut is moved
back to the beginning of the row (along dimension 0) that it falls into. So every rank computes the same split by itself,
each copies about 1/replicas of the bytes, and a part of a tensor is one contiguous run of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A replicated tensor: `rows` runs of `row_bytes` bytes. One without dimensions is one row."""

    name: str
    rows: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """Rows `start` to `start + count` of the tensor `name`; all of them when it was not cut."""

    name: str
    start: int
    count: int


def split(items: Iterable[Item], replicas: int) -> list[list[Share]]:
    """The shares of each replica, in name order. Every row is in exactly one of them, and so is every empty tensor.

    No replica gets more bytes than total/replicas plus the largest row.
    """
    assert replicas >= 1, replicas
    ordered = sorted(items, key=lambda item: item.name)
    assert len({item.name for item in ordered}) == len(ordered), "two tensors share a name"
    total = sum(item.rows * item.row_bytes for item in ordered)
    shares: list[list[Share]] = [[] for _ in range(replicas)]
    before = 0  # bytes of the tensors before this one
    owner = 0
    for item in ordered:
        size = item.rows * item.row_bytes
        start = 0
        while owner + 1 < replicas and (owner + 1) * total // replicas < before + size:
            # Rounded down, and so is the move to a row's beginning: the bound above holds. Empty tensors never get here.
            cut = ((owner + 1) * total // replicas - before) // item.row_bytes
            if cut > start:
                shares[owner].append(Share(item.name, start, cut - start))
                start = cut
            owner += 1
        if item.rows > start or not size:
            shares[owner].append(Share(item.name, start, item.rows - start))
        before += size
    return shares
