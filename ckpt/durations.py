"""Times as people write them: 500ms, 90s, 5min, 1.5h, 7d, 2w."""

from __future__ import annotations

import re

from ckptd.ckpt.errors import UsageError

SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_DURATION = re.compile(rf"([0-9]{{1,9}}(?:\.[0-9]{{1,6}})?) ?({'|'.join(SECONDS)})")


def seconds_of(text: str) -> float | None:
    """The seconds that a text says, 0 included; None where it says no time."""
    match = _DURATION.fullmatch(text.strip())
    return float(match[1]) * SECONDS[match[2]] if match else None


def age_of(text: str, option: str) -> float:
    """Seconds, as 90s, 30min, 12h, 7d or 2w. Raises UsageError, which names the option."""
    seconds = seconds_of(text)
    if seconds is None:
        raise UsageError(f"{option} {text!r}: expected an age, as 30min, 12h, 7d or 2w")
    return seconds
