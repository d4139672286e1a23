"""Sizes as people write them."""

from __future__ import annotations

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of a text like 256MiB. Raises ValueError."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            size = int(float(text.removesuffix(unit)) * factor)
            if size > 0:
                return size
    raise ValueError(f"found size {text!r}, expected a number and {', '.join(_UNITS)}, like 256MiB")


def size_name(size: int) -> str:
    """The shortest such text: 256MiB, 1GiB; bytes that are no whole number of KiB are rounded down to one."""
    unit, factor = next((u, f) for u, f in reversed(_UNITS.items()) if size >= f and (size % f == 0 or u == "KiB"))
    return f"{size // factor}{unit}"
