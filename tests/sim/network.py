"""The simulated network: letters are delayed, lost, repeated, overtaken; links are cut, in one direction too, or slow."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

_LATE_S = (0.3, 3.0)


@dataclass
class Net:
    """How letters travel. A link is (from, to)."""

    delay_s: tuple[float, float] = (0.001, 0.01)
    loss: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    """How many letters come seconds late, behind newer ones."""
    slow: dict[tuple[int, int], float] = field(default_factory=dict)
    """Links on which everything takes that much longer."""

    def delays(self, rng: Random, link: tuple[int, int]) -> list[float]:
        """After which times the copies of one letter come: none when it is lost, two when it is repeated."""
        copies = 0 if rng.random() < self.loss else 1 + (rng.random() < self.repeat)
        more = self.slow.get(link, 0.0)
        return [
            more + rng.uniform(*(_LATE_S if self.late and rng.random() < self.late else self.delay_s))
            for _ in range(copies)
        ]
