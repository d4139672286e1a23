"""Where the data and the parities of a protection group live: n = k + m members, n stripes, rotated parity.

Every payload is padded to k equal segments. Stripe j takes one segment of each of k members and gives m parities to the
other m, so that every member is a data node in k stripes and a parity owner in m: the memory for parity is m/k of the
payload, and no member is a hot spot. The rotation is that of RAID 5, done in memory across nodes by REFT's RAIM5 (arXiv
2310.12670) for m = 1; here for any m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

MEMBERS_MAX = 256
"""The members of a group at most: GF(2^8) has no more distinct symbols."""


def check_counts(k: int, m: int) -> None:
    """Raise ValueError unless k data symbols and m parities can make a group."""
    if k < 1 or m < 0 or k + m > MEMBERS_MAX:
        raise ValueError(f"k={k} and m={m}: expected k >= 1, m >= 0 and k + m <= {MEMBERS_MAX}")


@lru_cache(maxsize=4096)
def _owned(n: int, m: int, position: int) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(((position - row) % n, row) for row in range(m)))


@dataclass(frozen=True, slots=True)
class Layout:
    """The stripes of one group of n = k + m members, which are named by their positions 0..n-1.

    The picture for k=2, m=1. A column is a member, a row is a stripe, "s1" is the member's segment 1, "P0" is parity 0:

    >>> print(Layout(k=2, m=1).picture())
    stripe 0: P0 s0 s0
    stripe 1: s0 P0 s1
    stripe 2: s1 s1 P0

    With m = 0 nothing is ever encoded: each member still owns its k segments, one in every stripe.

    The constructor and every method raise ValueError for a number that is out of its range.
    """

    k: int
    """Data symbols of a stripe, and segments of a payload; at least 1."""
    m: int
    """Parities of a stripe, and members that can be lost at once; at least 0."""

    def __post_init__(self) -> None:
        check_counts(self.k, self.m)

    @property
    def n(self) -> int:
        """Members of the group, and stripes."""
        return self.k + self.m

    def parity_positions(self, stripe: int) -> tuple[int, ...]:
        """The m positions that own the parities of a stripe, by row."""
        self._check("stripe", stripe, self.n)
        return tuple((stripe + row) % self.n for row in range(self.m))

    def data_positions(self, stripe: int) -> tuple[int, ...]:
        """The k positions that contribute to a stripe, by the number of their data symbol."""
        self._check("stripe", stripe, self.n)
        return tuple((stripe + self.m + symbol) % self.n for symbol in range(self.k))

    def symbol_of(self, position: int, stripe: int) -> int:
        """What a position holds of a stripe, as `Code` numbers it: 0..k-1 a data symbol, k+i the parity of row i."""
        self._check("position", position, self.n)
        self._check("stripe", stripe, self.n)
        return (position - stripe - self.m) % self.n

    def segment_of(self, position: int, stripe: int) -> int | None:
        """Which of its segments 0..k-1 a position contributes to a stripe; None where it owns a parity.

        A member hands out its segments in the order of the stripes in which it is a data node.
        """
        if self.symbol_of(position, stripe) >= self.k:
            return None
        return stripe - sum(owned < stripe for owned, _ in self.owned(position))

    def stripe_of(self, position: int, segment: int) -> int:
        """The stripe to which a position contributes this segment: the inverse of `segment_of`."""
        self._check("segment", segment, self.k)
        stripe = segment
        for owned, _ in self.owned(position):
            if owned <= stripe:
                stripe += 1
        return stripe

    def owned(self, position: int) -> tuple[tuple[int, int], ...]:
        """The m pairs (stripe, row) whose parity a position owns, by stripe."""
        self._check("position", position, self.n)
        return _owned(self.n, self.m, position)

    def segment_units(self, payload_units: Sequence[int]) -> int:
        """The length c of a segment in units (a unit is one checksum piece), from the payloads of all n members.

        The longest payload decides; shorter ones count as padded with zeros to k * c units.
        """
        if len(payload_units) != self.n:
            raise ValueError(f"payloads: found {len(payload_units)}, expected one for each of n={self.n} members")
        if min(payload_units) < 0:
            raise ValueError(f"payload: found {min(payload_units)} units, expected 0 or more")
        return -(-max(payload_units) // self.k)

    def locate(self, unit: int, c: int) -> tuple[int, int]:
        """The segment that holds a unit of a payload, and the unit's offset in it, where segments are c units long."""
        self._check("unit", unit, self.k * c)
        return divmod(unit, c)

    def picture(self) -> str:
        """The whole layout as text, one line a stripe, for people."""
        return "\n".join(
            f"stripe {stripe}: " + " ".join(self._cell(position, stripe) for position in range(self.n))
            for stripe in range(self.n)
        )

    def _cell(self, position: int, stripe: int) -> str:
        segment = self.segment_of(position, stripe)
        return f"P{self.symbol_of(position, stripe) - self.k}" if segment is None else f"s{segment}"

    def _check(self, name: str, number: int, limit: int) -> None:
        # Arithmetic modulo n would accept any number and answer for another member.
        if not 0 <= number < limit:
            raise ValueError(f"{name} {number}: expected 0 <= {name} < {limit} in a group of k={self.k}, m={self.m}")
