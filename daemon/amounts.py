"""Amounts in what ranks ask of their daemon, checked before they are used."""

from __future__ import annotations

from ckptd.ckpt.client import WAIT_MAX_S
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.tables import SIZE_MAX, number


def seconds(wait_s: float) -> float:
    """How long to wait for a slot. Raises UsageError."""
    if not 0.0 <= wait_s <= WAIT_MAX_S:  # which nan is not either
        raise UsageError(f"found a wait of {wait_s} s for a slot, expected 0 to {WAIT_MAX_S:.0f}")
    return wait_s


def size_of(size: int) -> int:
    """The bytes of an image. Raises UsageError, CorruptionError."""
    if size == 0:
        raise UsageError("an image of 0 bytes; a safetensors file has at least a header")
    return number("size", size, SIZE_MAX)
