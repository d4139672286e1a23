"""What becomes of this node's slots: which one a trainer may fill, and what is found to stand in them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import StaleStepError
from ckptd.ckpt.inventory import Held, Ledger, Part
from ckptd.ckpt.model import Version
from ckptd.ckpt.recovery import making_way
from ckptd.daemon import events as ev
from ckptd.daemon.catalog import Catalog, Filling, Free, Holding, Recording
from ckptd.daemon.duties import Duties
from ckptd.daemon.events import named, note, refuse
from ckptd.daemon.ranks import Ranks

LAGS_MAX = 8
"""Versions of which it is remembered when they were captured: those that may be sealed yet."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the node knows when something happens to a slot."""

    ledger: Ledger | None
    sealed: Version | None
    part: Part | None
    life: int
    """The newest epoch in which a trainer is attached anywhere."""
    scanned: bool


class Slots:
    """The catalog of a node's slots, and the events that move it."""

    def __init__(self, config: Config, ranks: Ranks, duties: Duties) -> None:
        self.catalog = Catalog(config.slots)
        self._node = config.node
        self.skipped = 0
        self.waited, self.waited_s = 0, 0.0
        """How many captures had to wait for a slot, and how long in all."""
        self._ranks, self._duties = ranks, duties
        self._changed = False
        self._captured_at: dict[Version, float] = {}

    def lag_s(self, version: Version, now: float) -> float | None:
        """How long ago the last image of a version was captured here; None when it was captured elsewhere, or long ago."""
        since = self._captured_at.get(version)
        return None if since is None else now - since

    def take_changed(self) -> bool:
        """Whether there is something new to report since this was last asked."""
        changed, self._changed = self._changed, False
        return changed

    # ---- capture --------------------------------------------------------------------------------------

    def has_room(self, rank: int, version: Version, known: Known) -> bool:
        """Whether the rank would be granted a slot for the version now. Nothing changes."""
        return self._slot_for(rank, version, known) is not None

    def begin(self, event: ev.BeginAsked, known: Known) -> list[ev.Effect]:
        """A trainer wants a slot for a version: it gets one, or skips the snapshot."""
        own = [version for version in self.catalog.versions(event.rank) if version.epoch == event.version.epoch]
        problem = self._ranks.begin(event.rank, event.version, epoch=known.life, captured=max(own, default=None))
        if problem:
            return [refuse(event.ticket, problem)]
        self.discard_unfinished(event.rank)  # it may have begun another without ending that one
        self._changed = True
        self.waited, self.waited_s = self.waited + (event.waited_s > 0.0), self.waited_s + event.waited_s
        slot = self._slot_for(event.rank, event.version, known)
        if slot is None:
            self.skipped += 1
            return [ev.Answer(event.ticket, None), note("skipped", rank=event.rank, **named(event.version))]
        old = self.catalog.state(slot)
        effects: list[ev.Effect] = []
        if isinstance(old, Holding):
            forsaken = known.sealed is None or old.version > known.sealed
            effects = [ev.DropRecord(slot), *(self._duties.give_up(old.version) if forsaken else [])]
        self.catalog.act(slot, "grant", Filling(event.version))
        return [*effects, ev.MakeSlot(event.ticket, slot, event.version, event.size, event.lent)]

    def _slot_for(self, rank: int, version: Version, known: Known) -> ev.SlotId | None:
        """A slot that the rank may fill. Before the segments are scanned nobody knows what stands in them."""
        if not known.scanned:
            return None
        pinned = self._duties.pinned(known.ledger, known.part)
        slot = self.catalog.choose(rank, known.sealed, pinned)
        if slot is None and known.ledger is not None:
            slot = self.catalog.choose(rank, known.sealed, pinned, making_way(known.ledger, version))
        return slot

    def made(self, event: ev.SlotMade) -> list[ev.Effect]:
        """The file of a granted slot stands, or there is no room for it."""
        # Making it may have taken long: whoever asked may have been replaced, and must not learn of its successor's file.
        mine = self._owns(event.slot, event.version, Filling)
        if event.problem is None and mine:
            return [ev.Answer(event.ticket, ev.Granted(event.slot, event.path))]
        if mine:
            self.catalog.act(event.slot, "abort", Free())
            self._changed = True
        problem = event.problem or StaleStepError(f"{event.version}: the slot was taken back while its file was made")
        return [refuse(event.ticket, problem), note("refused", rank=event.slot.rank, reason=str(problem))]

    def commit(self, event: ev.CommitAsked) -> list[ev.Effect]:
        """A trainer has filled its slot."""
        trainer = self._ranks.get(event.slot.rank)
        if trainer is None or not self._owns(event.slot, event.version, Filling):
            reason = f"{event.version}: slot {event.slot.index} was not granted for it; the snapshot is dropped"
            return [refuse(event.ticket, StaleStepError(reason))]
        self.catalog.act(event.slot, "commit", Recording(event.version))
        return [ev.Answer(event.ticket, None), ev.Record(event.slot, event.version, trainer.world)]

    def abort(self, event: ev.AbortAsked) -> list[ev.Effect]:
        """A trainer throws away what it has begun."""
        if self._owns(event.slot, event.version, Filling):
            self.catalog.act(event.slot, "abort", Free())
            self._changed = True
        aborted = note("aborted", rank=event.slot.rank, reason=event.reason, **named(event.version))
        return [ev.Answer(event.ticket, None), aborted]

    def recorded(self, event: ev.Recorded, now: float) -> list[ev.Effect]:
        """A committed image was summed: it is captured, unless its record could not be written."""
        self._changed = True
        if event.image is None:
            self.catalog.act(event.slot, "rejected", Free())
            return [note("refused", reason=event.reason, rank=event.slot.rank, **named(event.version))]
        self._captured_at[event.version] = now
        self._captured_at = {version: self._captured_at[version] for version in sorted(self._captured_at)[-LAGS_MAX:]}
        self.catalog.act(event.slot, "recorded", Holding(Held(event.version, event.world, event.image)))
        return [note("captured", rank=event.slot.rank, **named(event.version))]

    def discard_unfinished(self, rank: int) -> list[ev.SlotId]:
        """Free what the rank was filling; return these slots."""
        unfinished = [slot for slot in self.catalog.filling(rank) if not self._duties.fills(slot)]
        for slot in unfinished:
            self.catalog.act(slot, "abort", Free())
        return unfinished

    def _owns(self, slot: ev.SlotId, version: Version, kind: type) -> bool:
        state = self.catalog.state(slot)
        return isinstance(state, kind) and getattr(state, "version", None) == version and not self._duties.fills(slot)

    # ---- what stands in them --------------------------------------------------------------------------

    def give_up_surplus(self, known: Known) -> list[ev.Effect]:
        """Old images of ranks that live elsewhere, or no more: nobody will ever ask for their slots.

        Not of ranks that live nowhere yet: they may come back here, and an old image is what is left if newer ones can't be
        read.
        """
        ledger, sealed = known.ledger, known.sealed
        if ledger is None or sealed is None:
            return []
        pinned, here = self._duties.pinned(ledger, known.part), {rank for rank, _ in self._ranks}
        # Not what this node said itself: after a restart that is of the daemon before, and its trainers come back.
        others = (report for report in ledger.reports if report.node != self._node)
        elsewhere = {rank for report in others for rank, _ in report.ranks} - here
        table = ledger.table(sealed)
        effects: list[ev.Effect] = []
        for slot, held in list(self.catalog.holding()):
            unwanted = slot.rank in elsewhere or (table is not None and slot.rank >= table.world)
            if unwanted and held.version < sealed and held.version not in pinned:
                self.catalog.act(slot, "give up", Free())
                self._changed = True
                effects += [ev.DropRecord(slot), ev.Retire(slot)]
        return effects

    def damaged(self, event: ev.Damaged, known: Known, now: float) -> list[ev.Effect]:
        """Pieces of an image fail their check. It serves the others until these are decoded anew, or that has failed."""
        state = self.catalog.state(event.slot)
        if not isinstance(state, Holding) or not self._owns(event.slot, event.version, Holding):
            return []
        if known.sealed is None or event.version > known.sealed:
            return self._lose(event.slot, state.held)  # what is damaged must not be counted on by a seal to come
        repair = self._duties.repair(event, state.held, known.ledger, now)
        return self._lose(event.slot, state.held) if repair is None else repair

    def repaired(self, event: ev.Repaired, now: float) -> list[ev.Effect]:
        """The repair of an image has ended."""
        self._duties.repaired(event, now)
        state = self.catalog.state(event.slot)
        if not isinstance(state, Holding) or state.version != event.version:
            return []
        if event.reason:
            return self._lose(event.slot, state.held, event.reason)
        return [note("repaired", rank=event.slot.rank, **named(event.version))]

    def _lose(self, slot: ev.SlotId, held: Held, reason: str = "") -> list[ev.Effect]:
        self.catalog.act(slot, "damaged", Free())
        self._changed = True
        why = {"reason": reason} if reason else {}
        return [ev.DropRecord(slot), note("damaged", rank=slot.rank, **named(held.version), **why)]
