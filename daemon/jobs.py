"""The long work behind the effects: each takes an effect and returns the event that says what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial

from ckptd.ckpt import shm
from ckptd.ckpt.client import Found
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, CorruptionError, StorageError, Unrecoverable
from ckptd.ckpt.inventory import Ledger, Origin
from ckptd.ckpt.manifest import file_name
from ckptd.ckpt.model import PIECE, Image, Table, Version
from ckptd.ckpt.pieces import piece_sum, runs
from ckptd.ckpt.recovery import is_complete, sources_for, survey, tables_of
from ckptd.ckpt.storage import Step, Storage
from ckptd.daemon import checking
from ckptd.daemon import events as ev
from ckptd.daemon.fetch import Fetcher
from ckptd.daemon.foresight import Foresight
from ckptd.daemon.opened import Opened, Part, Some, Whole
from ckptd.daemon.parities import Spent
from ckptd.daemon.progress import Add, Progress
from ckptd.daemon.segments import Segments, Stretch

PERSIST, PUBLISH = "persist", "publish"
"""The work that waits for storage to take something, by the names of its progress."""


class Jobs:
    """What the driver's job threads run."""

    def __init__(self, config: Config, segments: Segments, fetcher: Fetcher, storage: Storage | None) -> None:
        self._config, self._segments, self._fetcher, self._storage = config, segments, fetcher, storage
        self.progress = Progress()
        self.foresight = Foresight(fetcher, segments.foreseen)
        self.storage_problem = ""
        """Why the last write or manifest did not get to storage; empty once one does."""
        self.on_spoiled: Callable[[Version, str], None] = lambda version, reason: None
        """Is told when an image of a persisted version was read that is not what its manifest says."""

    def record(self, effect: ev.Record) -> ev.Recorded:
        try:
            image = self._segments.record(effect.slot, effect.version, effect.world)
        except CkptdError as error:
            return ev.Recorded(effect.slot, effect.version, effect.world, None, str(error))
        except OSError as error:
            reason = f"{self._segments.directory}: {error.strerror}; free some of its space, or lower --slots"
            return ev.Recorded(effect.slot, effect.version, effect.world, None, reason)
        return ev.Recorded(effect.slot, effect.version, effect.world, image)

    def make_parity(self, effect: ev.MakeParity) -> ev.ParityMade:
        made, reasons, spent = [], [], Spent()
        for parity in effect.parities:
            try:
                standing = self._segments.parity(parity)
                # A suspect one may have been made anew since it was found damaged.
                if standing is None or self._segments.check(standing) != []:
                    spent += self._fetcher.parities.make(effect.ledger, effect.table, parity)
                made.append(parity)
            except (CkptdError, OSError) as error:
                reasons.append(str(error))
        return ev.ParityMade(effect.table, tuple(made), "; ".join(reasons), *astuple(spent))

    def rebuild(self, effect: ev.Rebuild) -> ev.Rebuilt:
        found, reasons = [], []
        with self.progress.of("rebuild", sum(image.size for image, _ in effect.slots)) as add:
            for image, slot in effect.slots:
                try:
                    found.append(self._rebuild_one(effect, image, slot))
                except (CkptdError, OSError) as error:
                    reasons.append(str(error))
                add(image.size)
        return ev.Rebuilt(effect.table, tuple(found), "; ".join(reasons))

    def _rebuild_one(self, effect: ev.Rebuild, image: Image, slot: ev.SlotId) -> ev.FoundSlot:
        table = effect.table
        path = self._segments.file_for(slot, image.size, shm.reserve_file)
        view = self._segments.writable(path, image.size)
        brought = self._fetcher.image(effect.ledger, table, image.rank, view)
        # A copy of what a peer holds is as good as one's own; only what was decoded counts as parity's work.
        origin: Origin = "parity" if brought.rung == "parity" else "peer"
        self._segments.record(slot, table.version, table.world, origin, brought.sums)
        return ev.FoundSlot(slot, table.version, table.world, image, origin)

    def repair(self, effect: ev.Repair) -> ev.Repaired:
        """Decode damaged pieces where they stand. Until they check again nobody takes them for good: the sums stay."""
        version, image = effect.version, effect.image
        held, path = (
            self._segments.image(version, image.rank, image.digest),
            self._segments.slot_path(version, image.rank),
        )
        if held is None or path is None:
            return ev.Repaired(effect.slot, version, "it is held no more")
        try:
            self._fetcher.decode(
                effect.ledger, version, image, self._segments.writable(path, image.size), effect.pieces
            )
        except (CkptdError, OSError) as error:
            return ev.Repaired(effect.slot, version, str(error))
        pieces = (held.view[piece * PIECE : (piece + 1) * PIECE] for piece in effect.pieces)
        good = all(piece_sum(bytes_) == held.sums[piece] for piece, bytes_ in zip(effect.pieces, pieces, strict=True))
        return ev.Repaired(effect.slot, version, "" if good else "what was decoded fails its check")

    def write(self, effect: ev.Write) -> ev.Written:
        assert self._storage is not None, "persisting without a storage root"
        try:
            with self.progress.of(PERSIST, sum(image.size for image, _ in effect.slots)) as add:
                for image, _ in effect.slots:
                    stretch = self._segments.image(effect.version, image.rank, image.digest)
                    if stretch is None:
                        raise StorageError(f"rank {image.rank} of {effect.version} is no longer held")
                    self._write_one(self._storage, effect.version, image, stretch, add)
        except (CkptdError, OSError) as error:
            self.storage_problem = str(error)
            return ev.Written(effect.version, (), str(error))
        self.storage_problem = ""
        return ev.Written(effect.version, tuple(image for image, _ in effect.slots))

    def _write_one(self, storage: Storage, version: Version, image: Image, stretch: Stretch, add: Add) -> None:
        try:
            storage.write(version, image, stretch.view, add)
        except CorruptionError:
            self._segments.check(stretch)
            raise

    def publish(self, effect: ev.Publish) -> ev.Published:
        assert self._storage is not None, "persisting without a storage root"
        images = [image for payload in effect.table.payloads for image in payload.images]
        try:
            with self.progress.of(PUBLISH, 1):
                self._storage.publish(effect.table.version, images)
        except (CkptdError, OSError) as error:
            self.storage_problem = str(error)
            return ev.Published(effect.table.version, str(error))
        self.storage_problem = ""
        now = time.time()
        return ev.Published(effect.table.version, stored=tuple(step.kept(now) for step in self.stored()))

    def remove(self, effect: ev.Remove) -> ev.Removed:
        assert self._storage is not None, "removing without a storage root"
        try:
            self._storage.remove(effect.version)
        except CkptdError as error:
            return ev.Removed(effect.version, str(error))
        return ev.Removed(effect.version)

    def stored(self) -> list[Step]:
        """The published steps on storage, newest first."""
        return self.looked()[0]

    def looked(self) -> tuple[list[Step], list[str]]:
        """The published steps on storage, newest first, and what is wrong with others or with the storage."""
        return self._storage.steps() if self._storage else ([], [])

    # ---- bringing a version to this node ------------------------------------------------------------

    def gather(self, ledger: Ledger, version: Version) -> list[Found]:
        """Every rank's image of a version on this node, verified.

        Raises Unrecoverable when memory and storage together can't give one of them.
        """
        table = survey(ledger).get(version)
        why = f"no node knows of {version}"
        if table is not None and not is_complete(table):
            why = "not every rank's image is known"
        elif table is not None:
            try:
                return self._gather_all(table, lambda rank: self._gather_one(ledger, table, rank))
            except CkptdError as error:
                why = str(error)
        for step in self.stored():
            if step.manifest.version == version:
                return self._from_storage(step)
        raise Unrecoverable(f"{version} can't be restored: {why}; storage does not have it")

    def open(self, ledger: Ledger, version: Version) -> Opened:
        """The same images, brought as far as they will be asked for. Raises Unrecoverable when not all of them are known."""
        table, step = (
            survey(ledger).get(version),
            next((s for s in self.stored() if s.manifest.version == version), None),
        )
        somes: list[Some] = [partial(self._fetcher.pieces, ledger, version)]
        wholes: list[Whole] = []
        if table is not None and is_complete(table):
            images = [table.holder(rank)[1] for rank in range(table.world)]
            wholes.append(partial(self._whole, ledger, table))
        elif step is not None:
            images = list(step.manifest.images)
        else:
            raise Unrecoverable(
                f"{version} can't be restored: not every rank's image is known; storage does not have it"
            )
        if step is not None:
            wholes.append(partial(self._whole_from_storage, step))
            tables = tables_of(ledger).get(version, ())
            if not tables or isinstance(sources_for(ledger, tables), str):
                somes.append(partial(self._some_from_storage, step))
        own, parts = [], []
        for image in images:
            path = self._segments.opened.directory_of(version) / file_name(image.rank)
            found = None if table is None else self._own(table, image) or self.foresight.take(version, image, path)
            if found is not None:
                own.append(found)
                continue
            parts.append(Part(image, path, self._segments.opened.make_empty(path, image.size)))
        self.foresight.forget()  # this life needs no other images, nor another version's
        return Opened(own, parts, somes, wholes)

    def _whole(self, ledger: Ledger, table: Table, image: Image, view: memoryview) -> str:
        return self._fetcher.image(ledger, table, image.rank, view).rung

    def _whole_from_storage(self, step: Step, image: Image, view: memoryview) -> str:
        if image not in step.manifest.images:
            raise StorageError(f"{step.where} has another image of rank {image.rank}")
        self._read_stored(step, image, view)
        return "storage"

    def _some_from_storage(self, step: Step, image: Image, wanted: Sequence[int], view: memoryview) -> str:
        """Wrong bytes are told of by who reads the whole image next: here it may be the sums that are wrong."""
        assert self._storage is not None, "a stored step without a storage root"
        if image not in step.manifest.images:
            raise StorageError(f"{step.where} has another image of rank {image.rank}")
        for first, count in runs(wanted):
            shm.touch(view[first * PIECE : (first + count) * PIECE])
        self._storage.read_some(step, image.rank, wanted, view)
        return "storage"

    def _read_stored(self, step: Step, image: Image, view: memoryview, add: Add = lambda _: None) -> None:
        """Read an image that memory can't give. If its bytes are wrong all are told, as no restart is to choose it again."""
        assert self._storage is not None, "a stored step without a storage root"
        try:
            self._storage.read(step, image.rank, view, add)
        except CorruptionError as error:
            self.on_spoiled(step.manifest.version, str(error))
            raise

    def _gather_all(self, table: Table, gather_one: Callable[[int], Found]) -> list[Found]:
        images = [table.holder(rank)[1] for rank in range(table.world)]
        found = []
        with self.progress.of("gather", sum(image.size for image in images)) as add:
            for image in images:
                found.append(gather_one(image.rank))
                add(image.size)
        return found

    def _gather_one(self, ledger: Ledger, table: Table, rank: int) -> Found:
        _, image = table.holder(rank)
        found = self._own(table, image)
        if found is not None:
            return found
        path = self._segments.restored.directory_of(table.version) / file_name(rank)
        brought = self._fetcher.image(ledger, table, rank, self._segments.restored.make(path, image.size))
        return Found(rank, path, image.size, brought.rung)

    def _own(self, table: Table, image: Image) -> Found | None:
        """An image in the slot where it stands, verified; None when it is not held here, or damaged."""
        stretch = self._segments.image(table.version, image.rank, image.digest)
        where = self._segments.slot_path(table.version, image.rank)
        if stretch is None or where is None or self._segments.check(stretch) != []:
            return None
        # The segments know it at once; the ledger hears of a rebuild with the next report.
        origin = self._segments.origin(table.version, image.rank)
        return Found(image.rank, where, image.size, "own" if origin is None or origin == "captured" else origin)

    def _from_storage(self, step: Step) -> list[Found]:
        found = []
        with self.progress.of("gather", sum(image.size for image in step.manifest.images)) as add:
            for image in step.manifest.images:
                path = self._segments.restored.directory_of(step.manifest.version) / file_name(image.rank)
                view = self._segments.restored.make(path, image.size)
                shm.touch(view)
                self._read_stored(step, image, view, add)
                found.append(Found(image.rank, path, image.size, "storage"))
        return found

    # ---- looking at everything ----------------------------------------------------------------------

    def verify(self) -> list[checking.Row]:
        """Check the sums of every slot and parity on this node and of every file on storage."""
        slots, parities = self._segments.slot_entries(), self._segments.parity_entries()
        steps, problems = self.looked()
        total = sum(len(stretch.view) for _, stretch in slots) + sum(len(stretch.view) for _, stretch in parities)
        total += sum(image.size for step in steps for image in step.manifest.images)
        rows: list[checking.Row] = []
        with self.progress.of("verify", total) as add:
            for found, stretch in slots:
                bad = self._segments.check(stretch)
                if bad is not None:
                    rows.append(checking.row("slot", f"rank {found.slot.rank}", found.version, found.image.size, bad))
                add(len(stretch.view))
            for kept, stretch in parities:
                bad = self._segments.check(stretch)
                if bad is not None:
                    parity = kept.parity
                    what = f"stripe {parity.stripe} row {parity.row}"
                    rows.append(checking.row("parity", what, parity.version, len(stretch.view), bad))
                add(len(stretch.view))
            rows += [{"kind": "file", "what": problem, "ok": False, "reason": problem} for problem in problems]
            for step in steps:
                assert self._storage is not None, "a stored step without a storage root"
                for row in checking.files(self._storage, step):
                    rows.append(row)
                    add(row["bytes"])
        return rows
