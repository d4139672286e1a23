"""Sizes and ages as people write them on a command line."""

from __future__ import annotations

import re

from ckptd.ckpt.durations import SECONDS
from ckptd.ckpt.errors import UsageError

SIZE_MAX = 1 << 46
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kMGT]i?)?B?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_size(text: str, option: str) -> int:
    """A number of bytes, as 1000, 20GB or 18.5GiB. Raises UsageError, which names the option."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if not 1 <= size <= SIZE_MAX:
        raise UsageError(f"{option} {text!r}: expected bytes up to {SIZE_MAX}, as 1000, 20GB or 18.5GiB")
    return size


def age_words(seconds: float) -> str:
    """An age in the largest unit that fits, rounded down: 3 d, 5 h, 20 min, 8 s."""
    for unit in ("d", "h", "min"):
        if seconds >= SECONDS[unit]:
            return f"{int(seconds // SECONDS[unit])} {unit}"
    return f"{max(0, int(seconds))} s"
