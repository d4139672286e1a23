"""The numbers of the rules, each with where it comes from. `docs/watching.md` says what they mean together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptd.daemon.watch.observations import Phase


def _grace() -> Mapping[Phase, float]:
    return {Phase.START: 600.0, Phase.COMPILE: 900.0, Phase.EVALUATION: 3600.0, Phase.CHECKPOINT: 600.0}


@dataclass(frozen=True, slots=True)
class Limits:
    """When something counts. Times in seconds of the judge's clock unless another is named."""

    hang_s: float = 5.0
    hang_iterations: float = 5.0
    """A rank hangs that has not moved for the longer of the two (design, section 8)."""
    busy_hang: float = 3.0
    """A rank that everybody waits for and that does move, in circles or in its reports only, is given so many times that."""
    grace_s: Mapping[Phase, float] = field(default_factory=_grace)
    """How long a rank may stay in a phase in which it is known to stand still."""
    first_steps: int = 3
    """The first steps of a life set up connections and compile: they have the grace of a start, and are never slow."""

    silent_s: float = 3.0
    """A node whose reports do not come for so long, and which the others do not reach either, is lost."""
    silent_alone_s: float = 10.0
    """The same when no other node has tried to reach it, and the job stands still."""
    fresh_s: float = 2.5
    """A report that is older says nothing about now."""
    close_s: float = 0.2
    """Deaths so close together have one cause, or two that can't be put in order."""

    late_s: float = 0.020
    late_mads: float = 6.0
    late_of: int = 8
    window: int = 10
    """Slow is who is late by more than `max(late_s, late_mads MAD)` in `late_of` of `window` iterations (C4, four
    syndromes; the numbers are the design's)."""
    apart: float = 1.5
    """Slow is who is later than the latest of the others by this factor: of a thousand equal ranks some is always last."""
    all_alike: float = 1.25
    """The whole job is slow when its steps take so many times what they took."""

    hot: float = 1.5
    link_of: int = 16
    link_window: int = 20
    """A link is slow whose transfers take so many times the usual, in `link_of` of `link_window` samples (C4, delay
    matrix; twice as many as of steps, as others' traffic comes in bursts of seconds)."""
    link_mads: float = 8.0
    """And that stands out by so many MAD from the others: there are more links than ranks, so more are slow by nature."""
    hot_share: float = 0.5
    """A row or a column is hot when more than this share of its cells is."""
    lost_of: int = 4
    lost_apart_s: float = 6.0
    """A link loses segments when it has done so in so many moments within `frame_s`, each of them so long after the one
    before. What others' traffic pushes out goes in bursts of seconds, as above; what a bad cable or port loses does not."""
    frame_s: float = 45.0
    """A link that was measured less often than that lets it fill its window is not judged: it may have changed since."""
