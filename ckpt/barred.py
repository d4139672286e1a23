"""Which steps no life is to begin from, and why: words that the nodes pass on to each other in reports and ledgers. Pure.

A bar is about what is restored and nothing else. What is barred is held, protected, rebuilt and persisted like any other
version.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.ckpt.model import Version

BARS_MAX = 16
"""Of more the newest count: one is made after a life that did not help, and five without progress end a job."""


@dataclass(frozen=True, slots=True, order=True)
class Bar:
    """No life is to begin from `version.step`, nor from a later step, as far as lives up to `version.epoch` captured them.

    Later steps too: they were trained from it, so whatever is wrong with it is wrong with them. One that is `alone` is about
    the bytes of that version and says nothing of others.
    """

    number: int
    """Grows with every bar; what is lifted is named by it."""
    version: Version
    reason: str
    alone: bool = False

    def covers(self, version: Version) -> bool:
        """Whether `version` is barred by this."""
        if self.alone:
            return version == self.version
        return version.epoch <= self.version.epoch and version.step >= self.version.step


@dataclass(frozen=True, slots=True)
class Barred:
    """All bars that are known."""

    lifted: int = 0
    """The greatest number of a bar that was lifted, with all up to it."""
    bars: tuple[Bar, ...] = ()
    """Those that hold, by number; BARS_MAX at most."""

    def why(self, version: Version) -> str:
        """Why `version` is not to be restored; '' when it may be."""
        return next((bar.reason for bar in reversed(self.bars) if bar.covers(version)), "")

    def adding(self, version: Version, reason: str, *, alone: bool = False) -> Barred:
        """With one bar more, unless one that is known bars all of that already."""
        if any(bar.covers(version) and (alone or not bar.alone) for bar in self.bars):
            return self
        number = max([self.lifted, *(bar.number for bar in self.bars)]) + 1
        return merged(self, Barred(self.lifted, (Bar(number, version, reason or "no reason was given", alone),)))

    def lifting(self) -> Barred:
        """With every bar lifted."""
        return Barred(max([self.lifted, *(bar.number for bar in self.bars)]))


def merged(*known: Barred) -> Barred:
    """What counts of all that is known: whoever hears the same words, in any order and however often, knows the same."""
    lifted = max((barred.lifted for barred in known), default=0)
    bars = sorted({bar for barred in known for bar in barred.bars if bar.number > lifted})
    return Barred(lifted, tuple(bars[-BARS_MAX:]))
