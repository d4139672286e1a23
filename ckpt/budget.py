"""The memory that the snapshots of a node take at the most, and whether the machine has it. Pure. Bytes throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.ckpt.model import PIECE, pieces_of

Kind = Literal["tmpfs", "cgroup", "machine"]

HEADROOM: dict[Kind, int] = {"tmpfs": 4 << 20, "cgroup": 64 << 20, "machine": 64 << 20}
"""Left to records, and to everything else that runs here."""
ADVICE: dict[Kind, str] = {
    "tmpfs": "enlarge the tmpfs (containers: --shm-size, or an emptyDir of medium Memory), set CKPTD_SEGMENT_DIR elsewhere",
    "cgroup": "raise the memory limit of the daemon's container or cgroup",
    "machine": "free memory, or use a machine that has more",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that bounds memory here: what it is, how much of it is free now, and how much it has in all."""

    kind: Kind
    name: str
    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a node needs at its peak: all slots in use, and a parity in the making beside the sealed one."""

    slots: int
    payload: int
    """One image of each of its ranks."""
    k: int
    m: int

    @property
    def segment(self) -> int:
        """One of the k parts that the payload is cut into, in whole pieces; so is each parity."""
        return -(-pieces_of(self.payload) // self.k) * PIECE

    @property
    def images(self) -> int:
        return self.slots * self.payload

    @property
    def parities(self) -> int:
        """Twice m of them: while a step is sealed, those of the sealed one before it are still kept."""
        return 2 * self.m * self.segment

    @property
    def total(self) -> int:
        return self.images + self.parities

    def __str__(self) -> str:
        parity = f" and {2 * self.m} parities of {self.segment} bytes" if self.m else ""
        return f"{self.slots} slots of {self.payload} bytes each{parity}: {self.total} bytes"


def check_room(need: Need, *, taken: int, more: int, limits: Sequence[Limit], budget: int) -> None:
    """Raise MemoryBudgetError, with every number and what to do, unless what is needed fits.

    `taken`: what slots and parities take already. `more`: what they will take beyond that. `budget`: memory_bytes, or 0.
    """
    if not more:
        return
    short = [limit for limit in limits if more + HEADROOM[limit.kind] > limit.free]
    over = budget and taken + more > budget
    if not short and not over:
        return
    have = [f"{limit.name} has {limit.free} bytes free of {limit.total}" for limit in limits]
    have += [f"memory_bytes is {budget}"] if budget else []
    advice = [ADVICE[limit.kind] for limit in short] + (["raise memory_bytes"] if over else [])
    if need.slots > 2:
        fewer = Need(slots=2, payload=need.payload, k=need.k, m=need.m).total
        advice.append(f"set slots to 2, which needs {fewer} bytes")
    if need.m:
        advice.append("use larger groups or a smaller parity")
    raise MemoryBudgetError(
        f"the snapshots of this node need {need}; {taken} are taken and {more} more are needed: {', '.join(have)}; "
        f"{', or '.join(advice)}"
    )


def check_budget(budget: int, limits: Sequence[Limit]) -> None:
    """Raise MemoryBudgetError when memory_bytes promises what no limit would ever allow."""
    for limit in limits:
        if budget > limit.total:
            raise MemoryBudgetError(
                f"memory_bytes is {budget}, but {limit.name} has {limit.total} bytes in all; lower memory_bytes, or "
                f"{ADVICE[limit.kind]}"
            )
