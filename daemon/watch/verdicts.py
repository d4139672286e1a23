"""What the judge says: a class, who is suspected, and why, in words with the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Syndrome(Enum):
    """The classes of the design, section 8; the four in the middle are C4's syndromes."""

    CRASH = "crash"
    NODE_LOST = "node lost"
    COMMUNICATION_HANG = "communication hang"
    NON_COMMUNICATION_HANG = "non-communication hang"
    COMMUNICATION_SLOW = "communication slow"
    NON_COMMUNICATION_SLOW = "non-communication slow"
    NODE_UNHEALTHY = "node unhealthy"
    """The site's own checker says so."""
    NOBODY = "nobody's fault"


STANDS = frozenset({Syndrome.CRASH, Syndrome.NODE_LOST, Syndrome.COMMUNICATION_HANG, Syndrome.NON_COMMUNICATION_HANG})
"""After these the job stands still until somebody acts."""


class Confidence(Enum):
    CERTAIN = "certain"
    """Seen, not concluded."""
    LIKELY = "likely"
    """Concluded from what several ranks or nodes say."""
    GUESS = "guess"
    """What is left when nothing stands out."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that is wrong with one life of a job."""

    syndrome: Syndrome
    reason: str
    ranks: tuple[int, ...] = ()
    """Suspected ranks, ascending."""
    nodes: tuple[int, ...] = ()
    """Suspected nodes, ascending: those of the ranks, or one whose links are all slow."""
    links: tuple[tuple[int, int], ...] = ()
    """Suspected links, as (receiver, sender)."""
    confidence: Confidence = Confidence.LIKELY
    loss_s: float = 0.0
    """What it costs the job in every iteration, in seconds; a job that stands still loses everything anyway."""
    evidence: tuple[tuple[str, float], ...] = ()
    """The numbers that the rule has compared, by name."""
    epoch: int = 0


def several(numbers: Iterable[int], what: str) -> str:
    """`rank 3`, `ranks 3, 4 and 7`, `ranks 0, 1, 2 and 61 more`."""
    items = [str(number) for number in numbers]
    if len(items) == 1:
        return f"{what} {items[0]}"
    shown, rest = (items[:-1], items[-1]) if len(items) <= 6 else (items[:4], f"{len(items) - 4} more")
    return f"{what}s {', '.join(shown)} and {rest}" if items else f"no {what}"
