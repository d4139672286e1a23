"""What a node owes the others: parities to keep, its lost images to rebuild, its images to write to storage.

One job of each kind runs at a time; which one is due follows from the ledger, so nothing is queued that could be stale.
"""

from __future__ import annotations

from ckptd.ckpt.barred import Barred
from ckptd.ckpt.config import Config
from ckptd.ckpt.groups import parities_of
from ckptd.ckpt.inventory import Held, Ledger, Parity, Part
from ckptd.ckpt.model import Image, Table, Version
from ckptd.ckpt.recovery import forsaken, plan, sources_for, tables_of
from ckptd.ckpt.retention import doomed
from ckptd.daemon import events as ev
from ckptd.daemon.catalog import Catalog, Filling, Free, Holding
from ckptd.daemon.work import Work

RETRY_S = 0.5
"""How long a job that failed waits before it is tried again: peers need a moment to come back or be declared lost."""
WRITE_RETRY_S = 5.0
"""The same for storage, whose troubles last longer."""


class Duties:
    """The parities that this node holds and the jobs that it runs. Pure."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._parities: dict[Parity, Table] = {}
        self._protecting: Work[Version] = Work("protect", RETRY_S)
        self._rebuilding: Work[ev.Rebuild] = Work("rebuild", RETRY_S)
        self._repairing: Work[ev.Repair] = Work("repair", RETRY_S)
        self._suspect: set[Parity] = set()
        """Parities with damaged pieces: they are made anew, and serve the others until then."""
        self._writing: Work[Version] = Work("write", WRITE_RETRY_S)
        self._publishing: Work[Version] = Work("publish", WRITE_RETRY_S)
        self._unwritable: Version | None = None
        self.protected: dict[str, float] = {}
        """What the last parities took: seconds of waiting for bytes and of coding, bytes that were read and spared."""

    # ---- what it has ----------------------------------------------------------------------------

    def parities(self) -> tuple[Parity, ...]:
        return tuple(sorted(self._parities, key=lambda p: (p.version, p.table, p.stripe, p.row)))

    def tables(self) -> tuple[Table, ...]:
        """The tables of the parities held, each once."""
        return tuple(dict.fromkeys(self._parities[parity] for parity in self.parities()))

    def found(self, parities: tuple[ev.FoundParity, ...]) -> None:
        self._parities |= {found.parity: found.table for found in parities}

    def fills(self, slot: ev.SlotId) -> bool:
        """Whether a rebuild is writing to this slot."""
        job = self._rebuilding.job
        return job is not None and any(target == slot for _, target in job.slots)

    def pinned(self, ledger: Ledger | None, part: Part | None) -> set[Version]:
        """Versions whose images must stay although a newer one is sealed: they are on their way to storage, or repaired.

        What is written needs no slot any more, and a storage that fails must not stop the snapshots in memory. A repair
        writes to its slot until it ends: whoever filled it meanwhile would have its bytes changed before they are summed.
        """
        pinned = {self._writing.job} if self._writing.job else set()
        if self._repairing.job:
            pinned.add(self._repairing.job.version)
        if ledger and ledger.persist and ledger.persist != self._unwritable and self._unwritten(ledger, part):
            pinned.add(ledger.persist)
        return pinned

    def _unwritten(self, ledger: Ledger, part: Part | None) -> tuple[Image, ...]:
        """The images that this node should write to storage and has not; more are added when it takes over a payload."""
        table = ledger.table(ledger.persist) if ledger.persist else None
        images = table.payload(self._config.node).images if table else ()
        written = part.images if part and part.version == ledger.persist else ()
        return tuple(image for image in images if image not in written)

    def outdated(self, sealed: Version | None, ledger: Ledger | None) -> list[ev.Effect]:
        """The parities of versions older than the newest sealed one go; of that one, those that were made under older maps,
        once it is protected under the newest.
        """
        if sealed is None:
            return []
        older = [parity for parity in self._parities if parity.version < sealed]
        if ledger and ledger.shielded == sealed:
            older += [p for p, table in self._parities.items() if p.version == sealed and table.map < ledger.map]
        return self._drop(older)

    def give_up(self, version: Version) -> list[ev.Effect]:
        """The parities of a forsaken version go with the image that made way here: they protect nothing any more."""
        return self._drop([parity for parity in self._parities if parity.version == version])

    def _drop(self, parities: list[Parity]) -> list[ev.Effect]:
        for parity in parities:
            del self._parities[parity]
        self._suspect &= self._parities.keys()
        return [ev.DropParity(parity) for parity in parities]

    # ---- what it should be doing ------------------------------------------------------------------

    def work(self, ledger: Ledger, catalog: Catalog, part: Part | None, now: float) -> list[ev.Effect]:
        """Start the jobs that are due and not running."""
        return [
            *self._protect(ledger, now),
            *self._rebuild(ledger, catalog, part, now),
            *self._persist(ledger, catalog, part, now),
        ]

    def _protect(self, ledger: Ledger, now: float) -> list[ev.Effect]:
        if not self._protecting.is_due(now):
            return []
        table = ledger.table(ledger.protect) if ledger.protect else None
        owed = parities_of(table, self._config.node) if table else ()
        missing = tuple(parity for parity in owed if parity not in self._parities)
        if not missing and self._suspect:
            missing = (min(self._suspect, key=lambda parity: (parity.version, parity.stripe)),)
            table = self._parities[missing[0]]
        if not missing or table is None:
            return []
        self._protecting.start(table.version)
        return [ev.MakeParity(table, missing, ledger)]

    def _rebuild(self, ledger: Ledger, catalog: Catalog, part: Part | None, now: float) -> list[ev.Effect]:
        if not self._rebuilding.is_due(now):
            return []
        restorable = self._restorable(ledger, catalog)
        gone = forsaken(ledger) if restorable else set()
        for table in restorable:
            effects: list[ev.Effect] = []
            targets = []
            for image in self._lacks(table, catalog):
                slot = catalog.choose(image.rank, ledger.sealed, self.pinned(ledger, part), gone)
                newer = [v for v in catalog.versions(image.rank) if v > table.version and v not in gone]
                if slot is None or (newer and table.version != ledger.sealed):
                    continue  # the rank is alive and capturing here: its next snapshot makes this one unnecessary
                if isinstance(catalog.state(slot), Holding):
                    effects.append(ev.DropRecord(slot))
                catalog.act(slot, "grant", Filling(table.version))
                targets.append((image, slot))
            if targets:
                job = ev.Rebuild(table, tuple(targets), ledger)
                self._rebuilding.start(job)
                named = (("epoch", table.version.epoch), ("step", table.version.step), ("images", len(targets)))
                return [*effects, ev.Note("rebuild", named), job]
        return []

    def _restorable(self, ledger: Ledger, catalog: Catalog) -> list[Table]:
        """The versions whose lost images belong here again: the one that a restart would choose, then the sealed one."""
        recent = [table for table in ledger.tables if ledger.sealed is None or table.version >= ledger.sealed]
        if not any(self._lacks(table, catalog) for table in recent):
            return []
        known = tables_of(ledger)
        chosen = plan(ledger, ()).version
        versions = [version for version in (chosen, ledger.sealed) if version is not None and version in known]
        wanted = [known[version] for version in dict.fromkeys(versions) if version >= (ledger.sealed or version)]
        return [tables[0] for tables in wanted if not isinstance(sources_for(ledger, tables), str)]

    def _lacks(self, table: Table, catalog: Catalog) -> list[Image]:
        payload = table.payload(self._config.node)
        return [image for image in payload.images if catalog.find(image.rank, table.version) is None]

    def _persist(self, ledger: Ledger, catalog: Catalog, part: Part | None, now: float) -> list[ev.Effect]:
        version = ledger.persist
        table = ledger.table(version) if version else None
        if table is None or version is None or not self._writing.is_due(now):
            return []
        images = self._unwritten(ledger, part)
        found = [(image, catalog.find(image.rank, version)) for image in images]
        slots = tuple((image, slot) for image, slot in found if slot is not None)
        if not images or len(slots) < len(images):
            return []
        self._writing.start(version)
        return [ev.Write(version, table.world, slots)]

    def hurry(self) -> None:
        """Forget the pauses after failures: somebody asks for the work now."""
        for work in self._works:
            work.hurry()

    @property
    def rebuilding(self) -> bool:
        """Whether a rebuild is running."""
        return self._rebuilding.job is not None

    def lacking(self, ledger: Ledger, catalog: Catalog) -> list[tuple[Version, int]]:
        """The (version, rank) of this node's payloads that it should hold and does not, newest first."""
        return [(table.version, image.rank) for table in ledger.tables for image in self._lacks(table, catalog)]

    def publish(self, table: Table, now: float) -> list[ev.Effect]:
        """Write the manifest, once."""
        if not self._publishing.is_due(now):
            return []
        self._publishing.start(table.version)
        return [ev.Publish(table)]

    # ---- what comes back --------------------------------------------------------------------------

    def parity_made(self, event: ev.ParityMade, now: float) -> list[ev.Effect]:
        self._protecting.end(now, failed=bool(event.reason))
        self._parities |= dict.fromkeys(event.made, event.table)
        self._suspect -= set(event.made)
        if event.made:
            self.protected = {
                "waited_s": event.waited_s, "coded_s": event.coded_s, "read_bytes": event.read_bytes,
                "copied_bytes": event.copied_bytes, "updated_bytes": event.updated_bytes,
            }  # fmt: skip
        if not event.reason:
            fields = (("epoch", event.table.version.epoch), ("step", event.table.version.step))
            return [ev.Note("protected", (*fields, *self.protected.items()))] if event.made else []
        # What can't be made anew is lost: as long as it stands here, restarts count on it.
        lost = [parity for parity in self._suspect if parity.table == event.table.name]
        return [*self._drop(lost), _failure("parity_failed", event.table.version, event.reason)]

    def rebuilt(self, event: ev.Rebuilt, catalog: Catalog, now: float) -> list[ev.Effect]:
        job = self._rebuilding.end(now, failed=bool(event.reason))
        done = {found.slot: found for found in event.slots}
        for _, slot in job.slots:
            if slot in done:
                found = done[slot]
                catalog.act(slot, "rebuilt", Holding(Held(found.version, found.world, found.image, found.origin)))
            else:
                catalog.act(slot, "abort", Free())
        return [] if not event.reason else [_failure("rebuild_failed", event.table.version, event.reason)]

    def written(self, event: ev.Written, now: float) -> list[ev.Effect]:
        self._writing.end(now, failed=bool(event.reason))
        if not event.reason:
            return []
        self._unwritable = event.version
        return [_failure("write_failed", event.version, event.reason)]

    def published(self, event: ev.Published, barred: Barred, now: float) -> list[ev.Effect]:
        self._publishing.end(now, failed=bool(event.reason))
        if event.reason:
            return [_failure("publish_failed", event.version, event.reason)]
        note = ev.Note("persisted", (("epoch", event.version.epoch), ("step", event.version.step)))
        # What is newer than this one was not seen when it was chosen, and is not judged now.
        known = [step for step in event.stored if step.version <= event.version]
        return [note, *map(ev.Remove, doomed(known, self._config.retention, barred))]

    def removed(self, event: ev.Removed) -> list[ev.Effect]:
        """A version in excess is gone; one that could not be removed is found again after the next one is persisted."""
        if event.reason:
            return [_failure("remove_failed", event.version, event.reason)]
        return [ev.Note("removed", (("epoch", event.version.epoch), ("step", event.version.step)))]

    def parity_damaged(self, parity: Parity, sealed: Version | None) -> list[ev.Effect]:
        """Pieces of it no longer match: `work` makes it anew, in another file. No seal to come may count on it."""
        if parity not in self._parities or parity in self._suspect:
            return []
        fields = (("epoch", parity.version.epoch), ("step", parity.version.step), ("stripe", parity.stripe))
        damaged = ev.Note("parity_damaged", fields)
        if sealed is None or parity.version > sealed:
            return [*self._drop([parity]), damaged]
        self._suspect.add(parity)
        return [damaged]

    def repair(self, event: ev.Damaged, held: Held, ledger: Ledger | None, now: float) -> list[ev.Effect] | None:
        """Have an image's damaged pieces decoded; None when there is no parity to do it with.

        One repair runs at a time. What is damaged meanwhile is found again by the next reader, or the scrubber.
        """
        known = tables_of(ledger).get(event.version, ()) if ledger else ()
        if ledger is None or not any(parities_of(table, self._config.node) for table in known):
            return None
        if not self._repairing.is_due(now):
            return []
        job = ev.Repair(event.slot, event.version, held.image, event.pieces, ledger)
        self._repairing.start(job)
        fields = (("epoch", event.version.epoch), ("step", event.version.step), ("rank", event.slot.rank))
        return [ev.Note("repair", (*fields, ("pieces", len(event.pieces)))), job]

    def repaired(self, event: ev.Repaired, now: float) -> None:
        """A repair has ended."""
        self._repairing.end(now, failed=bool(event.reason))

    @property
    def _works(self) -> tuple[Work[Version] | Work[ev.Rebuild] | Work[ev.Repair], ...]:
        return self._protecting, self._rebuilding, self._repairing, self._writing, self._publishing

    def check_invariants(self) -> None:
        for work in self._works:
            work.check_invariants()
        for parity, table in self._parities.items():
            assert parity in parities_of(table, self._config.node), f"{parity} is not this node's to keep"
        assert self._suspect <= self._parities.keys(), "a parity is made anew that is not here"


def _failure(event: str, version: Version, reason: str) -> ev.Note:
    return ev.Note(event, (("epoch", version.epoch), ("step", version.step), ("reason", reason)))
