"""The segment directory: slot and parity files on a tmpfs, each with a record beside it that says what it holds.

A file without a record holds nothing; so a record is removed before its file is written to, and written (by rename)
only after the file's pieces were summed. Files are used again rather than made anew: the first touch of a page costs
several times the copy. Layout, byte by byte: docs/formats.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ckptd.ckpt import shm, tables
from ckptd.ckpt.errors import AccessError, CorruptionError
from ckptd.ckpt.inventory import ORIGINS, Origin, Parity
from ckptd.ckpt.model import PIECE, Image, Table, Version
from ckptd.ckpt.pieces import digest_of, piece_sum, sums_of
from ckptd.daemon.events import Damaged, FoundParity, FoundSlot, ParityDamaged, SlotId
from ckptd.daemon.files import Files, Make
from ckptd.daemon.lent import Lent
from ckptd.daemon.records import (
    PARITY_FILE,
    PARITY_RECORD,
    SLOT_FILE,
    SLOT_RECORD,
    Owner,
    check_kept,
    checked_name,
    claim,
    is_ours,
    is_regular,
    read_record,
    slot_file,
    write_record,
)
from ckptd.daemon.restored import Restored

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes that can be served: a mapping's view and the sums of its pieces."""

    view: memoryview
    sums: list[int]


@dataclass(frozen=True, slots=True)
class _Slot:
    file: str
    found: FoundSlot
    stretch: Stretch


@dataclass(frozen=True, slots=True)
class _ParityEntry:
    file: str
    found: FoundParity
    stretch: Stretch
    listed: Mapping[str, npt.NDArray[np.uint64]]
    """By digest: the sums of images whose data is in it. A daemon that was restarted has none."""


class Segments:
    """Everything on the tmpfs. Methods may be called from several threads."""

    def __init__(self, directory: Path, memory_bytes: int = 0, owner: Owner | None = None) -> None:
        """Open the directory. Raises AccessError when it is in use, or not `owner`'s."""
        self.directory = shm.private_dir(directory)
        self.restored = Restored(self.directory / "restore")
        self.opened = Restored(self.directory / "restore" / "parts")
        self.foreseen = Restored(self.directory / "restore" / "foreseen")
        self._files = Files(self.directory, memory_bytes)
        self.lent = Lent(self.directory, self._files)
        self._lock = threading.RLock()
        self._assigned: dict[SlotId, tuple[str, int]] = {}
        self._slots: dict[SlotId, _Slot] = {}
        self._parities: dict[Parity, _ParityEntry] = {}
        self.on_damage: Callable[[Damaged | ParityDamaged], None] = lambda _: None
        """Told about every image and parity whose bytes were found not to match their sums."""
        self._guard = shm.exclusive(self.directory / "lock")
        self._owner = owner
        try:
            if owner is not None:
                claim(self.directory, owner)
        except AccessError:
            os.close(self._guard)
            raise

    # ---- start and stop ---------------------------------------------------------------------------

    def scan(self) -> tuple[tuple[FoundSlot, ...], tuple[FoundParity, ...]]:
        """Read every record and check its bytes; what does not match is dropped and its file used again.

        Parities that are not this node's to keep are dropped too: the job had other nodes when they were made.
        """
        self.restored.clear()
        taken: set[str] = set()
        for path in sorted(filter(is_regular, self.directory.glob("*.json"))):
            try:
                if SLOT_RECORD.fullmatch(path.name):
                    taken.add(self._find_slot(path))
                elif PARITY_RECORD.fullmatch(path.name):
                    taken.add(self._find_parity(path))
            except (OSError, ValueError, KeyError, CorruptionError) as error:
                # Torn, or about damaged bytes: the image is lost, an ordinary event, and is rebuilt from elsewhere.
                log.warning("%s: %s; it is dropped", path.name, error)
                with contextlib.suppress(OSError):
                    path.unlink()
        for path in sorted(filter(is_regular, self.directory.iterdir())):
            if path.name not in taken and SLOT_FILE.fullmatch(path.name):
                path.unlink()  # whoever was filling it may do so yet, and must not meet its successor there
            elif path.name not in taken and PARITY_FILE.fullmatch(path.name):
                self._files.give(path.name, path.stat().st_size)
        return tuple(slot.found for slot in self._slots.values()), tuple(p.found for p in self._parities.values())

    def close(self, *, clean: bool) -> None:
        """Let go of the directory; `clean` removes it, unless somebody has put other files there: those stay."""
        if clean:
            self.restored.clear()
            for path in self.directory.iterdir():
                if is_ours(path.name) and not path.is_dir():
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                self.directory.rmdir()
        os.close(self._guard)

    def remember(self, epoch: int, sealed: Version | None) -> None:
        """Keep the numbers that must not go back when the daemon restarts."""
        content = {"epoch": epoch, "sealed": {"epoch": sealed.epoch, "step": sealed.step} if sealed else None}
        write_record(self.directory / "daemon.json", content)

    def remembered(self) -> tuple[int, Version | None]:
        try:
            content = read_record(self.directory / "daemon.json")
            epoch = tables.number("epoch", content["epoch"], tables.STEP_MAX)
            return epoch, tables.version_from_json(content["sealed"]) if content["sealed"] else None
        except (OSError, ValueError, KeyError, CorruptionError):
            return 0, None

    def usage(self) -> dict[str, int]:
        """Bytes on the tmpfs: of slots and of parities, whether they hold something now or not."""
        return self._files.usage()

    # ---- slots ------------------------------------------------------------------------------------

    def reserve(self, rank: int, size: int, count: int, going_on: Callable[[], bool] = lambda: True) -> list[Path]:
        """See that `count` files of `size` bytes exist for the rank, in use or spare; all of them. Raises MemoryBudgetError.

        Each is a spare one as soon as it stands; no more are made once `going_on` says no.
        """
        with self._lock:
            have = [name for slot, (name, s) in self._assigned.items() if slot.rank == rank and s == size]
        self.lent.take_back(rank, size)
        have += self._files.spares(f"rank-{rank:05d}.", size)
        self._files.trim(f"rank-{rank:05d}.", {size})  # its layout has changed
        while len(have) < count and going_on():
            have.append(self._files.make(slot_file(rank), size))
            self._files.give(have[-1], size)
        return [self.directory / name for name in have]

    def lend(self, rank: int, size: int, count: int) -> Path:
        """A file of `size` bytes for the rank to stage in, beside those of its `count` slots. Raises MemoryBudgetError."""
        with self._lock:
            have = sum(slot.rank == rank and found == size for slot, (_, found) in self._assigned.items())
        return self.lent.lend(rank, size, keep=max(0, count - have))

    def has_spare(self, rank: int, size: int) -> bool:
        """Whether a slot of the rank could have a file of `size` bytes at once."""
        return bool(self._files.spares(f"rank-{rank:05d}.", size))

    def file_for(self, slot: SlotId, size: int, make: Make = shm.make_file, lent: str = "") -> Path:
        """The slot's file, of exactly `size` bytes: `lent`, if its rank was lent that; else its own, a spare or a new one.

        `make` makes a new one. Raises MemoryBudgetError.
        """
        with self._lock:
            name, found = self._assigned.get(slot, ("", -1))
            if lent and self.lent.adopt(lent, slot.rank, size):
                self._assigned[slot] = (lent, size)
                if name and found == size:
                    self._files.give(name, size)
                elif name:
                    (self.directory / name).unlink(missing_ok=True)
                return self.directory / lent
            if found == size and (self.directory / name).exists():  # somebody may have tidied up /dev/shm
                return self.directory / name
            if name:
                del self._assigned[slot]
                (self.directory / name).unlink(missing_ok=True)
            name = self._files.take(f"rank-{slot.rank:05d}.", size) or ""
        if not name:
            name = self._files.make(slot_file(slot.rank), size, make)
        with self._lock:
            self._assigned[slot] = (name, size)
        return self.directory / name

    def record(
        self, slot: SlotId, version: Version, world: int, origin: Origin = "captured", sums: list[int] | None = None
    ) -> Image:
        """Sum the slot's pieces, unless `sums` are known, and write its record: from now on it holds the image."""
        with self._lock:
            name, size = self._assigned[slot]
        view = self._files.mapped(name, size, write=False)
        sums = sums_of(view) if sums is None else sums
        image = Image(slot.rank, size, digest_of(sums, size))
        found = FoundSlot(slot, version, world, image, origin)
        content = {
            "file": name, "epoch": version.epoch, "step": version.step, "world": world, "size": size,
            "digest": image.digest, "origin": origin, "sums": sums,
        }  # fmt: skip
        write_record(self._slot_record(slot), content)
        with self._lock:
            self._slots[slot] = _Slot(name, found, Stretch(view, sums))
        return image

    def drop(self, slot: SlotId) -> None:
        """Remove the slot's record; its file stays for the next image."""
        with self._lock:
            self._slots.pop(slot, None)
        self._slot_record(slot).unlink(missing_ok=True)

    def retire(self, slot: SlotId) -> None:
        """Take the slot's file away; whoever still has it mapped writes to nobody's memory. The next one is made anew."""
        with self._lock:
            name, _ = self._assigned.pop(slot, ("", 0))
        if name:
            (self.directory / name).unlink(missing_ok=True)

    def writable(self, path: Path, size: int) -> memoryview:
        """A writable view of a slot's file, not touched, for a rebuild."""
        return memoryview(shm.map_file(path, size, write=True))

    def slot_entries(self) -> list[tuple[FoundSlot, Stretch]]:
        """Everything that the slots hold."""
        with self._lock:
            return [(entry.found, entry.stretch) for entry in self._slots.values()]

    def slot_path(self, version: Version, rank: int) -> Path | None:
        """The file that holds this image."""
        entry = self._holding(version, rank)
        return self.directory / entry.file if entry else None

    def origin(self, version: Version, rank: int) -> Origin | None:
        """How this image came here."""
        entry = self._holding(version, rank)
        return entry.found.origin if entry else None

    def image(self, version: Version, rank: int, digest: str | None = None) -> Stretch | None:
        """The bytes of an image (of exactly this digest, if one is given), or None when it is not held here."""
        entry = self._holding(version, rank)
        return entry.stretch if entry and digest in (None, entry.found.image.digest) else None

    def _holding(self, version: Version, rank: int) -> _Slot | None:
        with self._lock:
            entries = (entry for slot, entry in self._slots.items() if slot.rank == rank)
            return next((entry for entry in entries if entry.found.version == version), None)

    def _slot_record(self, slot: SlotId) -> Path:
        return self.directory / f"rank-{slot.rank:05d}.slot-{slot.index}.json"

    def _find_slot(self, path: Path) -> str:
        content = read_record(path)
        match = SLOT_RECORD.fullmatch(path.name)
        name, size = checked_name(content["file"], SLOT_FILE), tables.number("size", content["size"], tables.SIZE_MAX)
        assert match is not None
        slot = SlotId(int(match[1]), int(match[2]))
        view = memoryview(shm.map_file(self.directory / name, size, write=False))
        sums = sums_of(view)
        if sums != content["sums"] or digest_of(sums, size) != content["digest"] or content["origin"] not in ORIGINS:
            raise CorruptionError(f"{name}: the bytes do not match their record; the image is treated as lost")
        world = tables.number("world", content["world"], tables.RANKS_MAX)
        image = Image(slot.rank, size, content["digest"])
        found = FoundSlot(slot, tables.version_from_json(content), world, image, content["origin"])
        self._assigned[slot] = (name, size)
        self._slots[slot] = _Slot(name, found, Stretch(view, sums))
        return name

    # ---- parities ---------------------------------------------------------------------------------

    def new_parity(self, size: int) -> tuple[str, memoryview]:
        """A file of `size` bytes for a parity and its untouched writable view. It holds nothing until `record_parity`."""
        name = self._files.take("parity.", size)
        if name is None:
            name = self._files.make(f"parity.{secrets.token_hex(4)}.bin", size, shm.reserve_file)
        return name, self._files.mapped(name, size, write=True)

    def record_parity(
        self,
        name: str,
        parity: Parity,
        table: Table,
        rows: tuple[tuple[int, ...], ...],
        sums: list[int],
        listed: Mapping[str, npt.NDArray[np.uint64]] | None = None,
    ) -> None:
        """Write the record of a finished parity: `rows` are the generator's parity rows that made it.

        `listed`: the sums of images that it protects, by digest.
        """
        size = (self.directory / name).stat().st_size
        view = self._files.mapped(name, size, write=True).toreadonly()
        content = {
            "file": name, "group": parity.group, "stripe": parity.stripe, "row": parity.row, "size": size,
            "rows": rows, "sums": sums, "table": tables.table_to_json(table),
        }  # fmt: skip
        write_record(self._parity_record(parity), content)
        with self._lock:
            replaced = self._parities.get(parity)  # a damaged one, made anew
            self._parities[parity] = _ParityEntry(name, FoundParity(parity, table), Stretch(view, sums), listed or {})
            if replaced:
                self._files.give(replaced.file, len(replaced.stretch.view))

    def abandon_parity(self, name: str, size: int) -> None:
        """A parity that was not finished: its file may be used again."""
        self._files.give(name, size)

    def drop_parity(self, parity: Parity) -> None:
        self._parity_record(parity).unlink(missing_ok=True)
        with self._lock:
            entry = self._parities.pop(parity, None)
            if entry:
                self._files.give(entry.file, len(entry.stretch.view))
                sizes = {len(kept.stretch.view) for kept in self._parities.values()}
                if sizes:  # segments that changed their length leave useless files
                    self._files.trim("parity.", sizes)

    def parity(self, parity: Parity) -> Stretch | None:
        with self._lock:
            entry = self._parities.get(parity)
        return entry.stretch if entry else None

    def listed(self, digest: str) -> npt.NDArray[np.uint64] | None:
        """The sums of an image that a parity here protects; None where they are not known."""
        with self._lock:
            return next((entry.listed[digest] for entry in self._parities.values() if digest in entry.listed), None)

    def parity_entries(self) -> list[tuple[FoundParity, Stretch]]:
        """Every parity kept here."""
        with self._lock:
            return [(entry.found, entry.stretch) for entry in self._parities.values()]

    def _parity_record(self, parity: Parity) -> Path:
        where = f"parity-{parity.group:03d}-{parity.stripe:03d}-{parity.row:02d}"
        return self.directory / f"{where}.e{parity.version.epoch}.s{parity.version.step}.{parity.table[:8]}.json"

    def _find_parity(self, path: Path) -> str:
        content = read_record(path)
        name, size = checked_name(content["file"], PARITY_FILE), tables.number("size", content["size"], tables.SIZE_MAX)
        view = memoryview(shm.map_file(self.directory / name, size, write=False))
        sums = sums_of(view)
        if sums != content["sums"]:
            raise CorruptionError(f"{name}: the bytes do not match their record; the parity is treated as lost")
        table = tables.table_from_json(content["table"])
        group, stripe, row = (tables.number(key, content[key], tables.RANKS_MAX) for key in ("group", "stripe", "row"))
        parity = Parity(table.version, table.name, group, stripe, row)
        if self._owner:
            check_kept(parity, table, self._owner)
        if path != self._parity_record(parity):
            raise CorruptionError(f"{path.name} is of {parity}")
        self._parities[parity] = _ParityEntry(name, FoundParity(parity, table), Stretch(view, sums), {})
        return name

    # ---- damage -------------------------------------------------------------------------------------

    def check(self, stretch: Stretch, first: int = 0, count: int | None = None) -> list[int] | None:
        """The pieces, of `count` from `first` on (default: all), whose bytes no longer match; they count as lost then.

        None when they don't match because they were given up meanwhile: a slot that is being filled again.
        """
        view, sums = stretch.view, stretch.sums
        last = len(sums) if count is None else first + count
        bad = [i for i in range(first, last) if piece_sum(view[i * PIECE : (i + 1) * PIECE]) != sums[i]]
        if not bad:
            return []
        lost = self._whose(stretch)
        if lost is None:
            return None
        self.on_damage(replace(lost, pieces=tuple(bad)) if isinstance(lost, Damaged) else lost)
        return bad

    def _whose(self, stretch: Stretch) -> Damaged | ParityDamaged | None:
        with self._lock:
            for slot, held in self._slots.items():
                if held.stretch is stretch:
                    return Damaged(slot, held.found.version, ())
            for parity, kept in self._parities.items():
                if kept.stretch is stretch:
                    return ParityDamaged(parity)
        return None
