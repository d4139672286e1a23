"""The slots of a node: which are free, being filled, being summed, or hold an image; and which may be filled again.

One machine per slot. `TRANSITIONS` is the whole truth about it: an act that is absent from a state is refused.

A rule carries P1 here: an image is given up only when a newer version was sealed, or when its own never will be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ckptd.ckpt.inventory import Held
from ckptd.ckpt.model import Version
from ckptd.daemon.events import SlotId
from ckptd.daemon.machine import IllegalAct, Transitions, follow


@dataclass(frozen=True, slots=True)
class Free:
    """Its bytes mean nothing."""


@dataclass(frozen=True, slots=True)
class Filling:
    """Granted to a trainer, or to a rebuild, which may write to it."""

    version: Version


@dataclass(frozen=True, slots=True)
class Recording:
    """Committed: nobody writes any more, the daemon sums the pieces and writes the record."""

    version: Version


@dataclass(frozen=True, slots=True)
class Holding:
    """An image that can be served; its record is in the segment directory."""

    held: Held

    @property
    def version(self) -> Version:
        return self.held.version


State = Free | Filling | Recording | Holding

TRANSITIONS: Transitions[type[State]] = {
    Free: {"grant": Filling, "find": Holding},
    Filling: {"commit": Recording, "abort": Free, "rebuilt": Holding},
    Recording: {"recorded": Holding, "rejected": Free},
    Holding: {"grant": Filling, "damaged": Free, "give up": Free},
}


class Catalog:
    """The slots of every rank that this node has seen. `slots` is how many each rank has."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._states: dict[SlotId, State] = {}

    def state(self, slot: SlotId) -> State:
        return self._states.get(slot, Free())

    def act(self, slot: SlotId, act: str, new: State) -> None:
        """Move a slot by a named act. Raises IllegalAct when the table has no such transition."""
        old = self.state(slot)
        after = follow(TRANSITIONS, type(old), act, slot)
        if after is not type(new):
            raise IllegalAct(f"{slot}: {act} from {old} leads to {after.__name__}, not to {new}")
        self._states[slot] = new

    def holding(self) -> Iterator[tuple[SlotId, Held]]:
        """The slots that can be served, in a stable order."""
        for slot in sorted(self._states, key=lambda slot: (slot.rank, slot.index)):
            state = self._states[slot]
            if isinstance(state, Holding):
                yield slot, state.held

    def find(self, rank: int, version: Version) -> SlotId | None:
        """The slot that holds this rank's image of this version."""
        return next((s for s, held in self.holding() if s.rank == rank and held.version == version), None)

    def filling(self, rank: int) -> list[SlotId]:
        return [s for s, state in self._states.items() if s.rank == rank and isinstance(state, Filling)]

    def versions(self, rank: int) -> list[Version]:
        """The versions of which this node holds the rank's image."""
        return [held.version for slot, held in self.holding() if slot.rank == rank]

    def free(self, rank: int) -> int:
        """How many slots the rank may fill at once."""
        return sum(isinstance(self.state(SlotId(rank, index)), Free) for index in range(self._slots))

    def unfinished(self, rank: int) -> tuple[Version, ...]:
        """The versions that slots of the rank are being filled with, or summed of."""
        slots = (state for slot, state in self._states.items() if slot.rank == rank)
        return tuple(sorted(state.version for state in slots if isinstance(state, Filling | Recording)))

    def recording(self) -> bool:
        """Whether any committed image is still being summed."""
        return any(isinstance(state, Recording) for state in self._states.values())

    def choose(
        self, rank: int, sealed: Version | None, pinned: Collection[Version], forsaken: Collection[Version] = ()
    ) -> SlotId | None:
        """A slot that `rank` may fill: a free one, else the oldest image that may be given up, else None.

        `sealed` is the newest sealed version, `pinned` are versions that a writer to storage still reads, and
        `forsaken` unsealed ones that never will be sealed.
        """
        slots = [SlotId(rank, index) for index in range(self._slots)]
        for slot in slots:
            if isinstance(self.state(slot), Free):
                return slot
        given_up = []
        for slot in slots:
            state = self.state(slot)
            if not isinstance(state, Holding) or state.version in pinned or state.version == sealed:
                continue
            if (sealed is not None and state.version < sealed) or state.version in forsaken:
                given_up.append((state.version, slot.index, slot))
        return min(given_up)[2] if given_up else None

    def check_invariants(self) -> None:
        """Each image stands once, and nobody is granted more slots than allowed (an image found in one is kept)."""
        taken = [(slot.rank, state.version) for slot, state in self._states.items() if not isinstance(state, Free)]
        assert len(set(taken)) == len(taken), f"an image stands twice: {sorted(taken)}"
        for slot, state in self._states.items():
            if not 0 <= slot.index < self._slots:
                kept = isinstance(state, Free | Holding)
                assert kept, f"{slot} is beyond the {self._slots} slots of a rank and {state}"
