"""Finds the few faults that a failure needs: drops them while the run still fails in the same way (delta debugging)."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.runs import Failure

Attempt = Callable[[set[int]], Failure | None]
"""Run with these faults only."""


def shrink(failure: Failure, attempt: Attempt) -> Failure:
    """The smallest failure of the same kind that was found: no single fault can be left out of it.

    Halves are tried first, then quarters, and so on (ddmin; Zeller and Hildebrandt, "Simplifying and Isolating
    Failure-Inducing Input", 2002).
    """
    kept = [fault.number for fault in failure.scenario.faults]
    parts = 2
    while kept:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            without = kept[:start] + kept[start + size :]
            smaller = attempt(set(without))
            if smaller is not None and smaller.kind == failure.kind:
                kept, failure, parts = without, smaller, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(kept))
    return failure
