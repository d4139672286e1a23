"""Which persisted steps may go. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckptd.ckpt.barred import Barred
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import Version

WRITING_S = 3600.0
"""What nobody has written to for so long was left behind by a writer that died."""


def excess(
    stored: Iterable[Version], keep_last: int, keep_every: int = 0, barred: Barred | None = None
) -> tuple[Version, ...]:
    """The versions on storage that are older than the `keep_last` newest, and of no step that is a multiple of `keep_every`.

    What is `barred` is none of the newest, and stays as long as it is not older than those: a job that passes it over would
    else have fewer steps to go back to than were asked for. Oldest first, so that an interruption leaves the newer ones.
    Nothing is in excess when `keep_last` is 0.
    """
    known = sorted(stored)
    worth = [version for version in known if barred is None or not barred.why(version)]
    if not keep_last or len(worth) < keep_last:
        return ()
    return tuple(v for v in known if v < worth[-keep_last] and (not keep_every or v.step % keep_every))


@dataclass(frozen=True, slots=True)
class Rule:
    """What is to be kept of a job's steps."""

    last: int = 0
    """The newest so many complete steps; 0 with an age: the newest alone; 0 without: all."""
    every: int = 0
    """And every multiple of so many steps; 0: none."""
    older_than_s: float | None = None
    """And everything that is younger."""

    def check(self) -> Rule:
        """Return the rule, or raise UsageError where it can't be meant."""
        if self.last < 0 or self.every < 0:
            raise UsageError(f"keep-last {self.last}, keep-every {self.every}: expected numbers from 0 on")
        if self.every and not self.last and self.older_than_s is None:
            raise UsageError("keep-every alone says nothing of the newest steps; add --keep-last or --older-than")
        return self


@dataclass(frozen=True, slots=True)
class Kept:
    """A published step, as far as the rule asks."""

    version: Version
    age_s: float | None
    """Seconds since it was written, by whatever clocks said so; None where nothing does."""
    complete: bool


def doomed(steps: Sequence[Kept], rule: Rule, barred: Barred | None = None) -> tuple[Version, ...]:
    """The published steps that the rule does not keep, oldest first.

    Never the newest complete one, nor anything that is newer: so nothing goes where no step is complete. Broken and `barred`
    ones don't count among those to keep.
    """
    complete = [step.version for step in steps if step.complete]
    if not complete or not (rule.last or rule.older_than_s is not None):
        return ()
    kept = set(complete) - set(excess(complete, max(1, rule.last), rule.every, barred))
    old = {step.version for step in steps} if rule.older_than_s is None else _older(steps, rule.older_than_s)
    return tuple(
        version
        for version in sorted(old)
        if version not in kept and version < max(complete) and (not rule.every or version.step % rule.every)
    )


def _older(steps: Sequence[Kept], than_s: float) -> set[Version]:
    """The steps that are as old as that, for certain.

    The times are those of the machines that wrote, or of a file server, and one of their clocks may be wrong. A step that
    says nothing, or comes from the future, is not old. None is older than one that was trained before it: a node
    that took its time from 1970 gives the others no reason to remove what it has just written.
    """
    found, least_s = set(), math.inf
    for step in sorted(steps, key=lambda step: step.version):
        if step.age_s is None or step.age_s < 0.0:
            continue
        least_s = min(least_s, step.age_s)
        if least_s >= than_s:
            found.add(step.version)
    return found
