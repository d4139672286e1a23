"""Performs a daemon's effects in memory, with real bytes: the part of the simulated world that stands for its jobs.

A job is a generator: at each `yield` time passes, and the daemon may die there and leave what it was doing half done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.memory import SCALE, UNIT, Host, Segment, digest, segment

from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.ckpt.groups import groups_in
from ckptd.ckpt.inventory import Held, Report
from ckptd.ckpt.model import Image
from ckptd.ckpt.recovery import is_complete, tables_of
from ckptd.ckpt.retention import Kept
from ckptd.daemon import events as ev

if TYPE_CHECKING:
    from tests.sim.world import Steps, World

NO_ROOM = "the tmpfs is full"


@dataclass(frozen=True, slots=True)
class Opened:
    """What a trainer that may fill a slot has then: the slot, and its file mapped."""

    slot: ev.SlotId
    file: bytearray


class Hands:
    """One for all hosts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._perform: dict[type, Callable[[Host, Any], None]] = {
            ev.Answer: self._answer,
            ev.Send: self._send,
            ev.Retire: self._retire,
            ev.DropRecord: self._drop_record,
            ev.DropParity: self._drop_parity,
            ev.Remember: self._remember,
            ev.Note: self._note,
        }
        self._jobs: dict[type, Callable[[Host, Any], Steps]] = {
            ev.MakeSlot: self._make_slot,
            ev.Record: self._record,
            ev.MakeParity: self._make_parity,
            ev.Rebuild: self._rebuild,
            ev.Repair: self._repair,
            ev.Write: self._write,
            ev.Publish: self._publish,
            ev.Remove: self._remove,
        }

    def perform(self, host: Host, effect: ev.Effect) -> None:
        job = self._jobs.get(type(effect))
        if job is not None:
            self.world.work(host, job(host, effect))
        else:
            self._perform[type(effect)](host, effect)

    # ---- at once ------------------------------------------------------------------------------------

    def _answer(self, host: Host, effect: ev.Answer) -> None:
        then, value = self.world.answers.pop(effect.ticket), effect.value
        told = Opened(value.slot, host.files[value.slot]) if isinstance(value, ev.Granted) else value
        self.world.at(self.world.rng.uniform(0.0, 0.002), lambda: then(told))

    def _send(self, host: Host, effect: ev.Send) -> None:
        world, letter, to = self.world, effect.letter, self.world.hosts[effect.to]
        event = ev.ReportCame(letter) if isinstance(letter, Report) else ev.LedgerCame(letter)
        session = to.node  # a letter is signed for one run of the daemon; its successor refuses it

        def deliver() -> None:
            if (host.index, to.index) in world.cuts or to.node is not session:
                return
            if to.places.admits(host.index, letter.boot):
                world.tell(to, event)
            else:
                world.at(2 * world.within(world.net.delay_s), vouch)

        def vouch() -> None:
            there = world.reach(to)(host.index)  # whoever is at the sender's address
            if to.node is session and there is not None and there.node is not None:
                to.places.answered(host.index, there.node.boot)
                if to.places.admits(host.index, letter.boot):
                    world.tell(to, event)

        for delay in world.net.delays(world.rng, (host.index, to.index)):
            world.at(delay, deliver)

    def _retire(self, host: Host, effect: ev.Retire) -> None:
        host.files.pop(effect.slot, None)

    def _drop_record(self, host: Host, effect: ev.DropRecord) -> None:
        host.records.pop(effect.slot, None)
        self.world.truth.changed = True

    def _drop_parity(self, host: Host, effect: ev.DropParity) -> None:
        host.parities.pop(effect.parity, None)
        self.world.truth.changed = True

    def _remember(self, host: Host, effect: ev.Remember) -> None:
        if not host.full:
            host.remembered = (effect.epoch, effect.sealed)

    def _note(self, host: Host, effect: ev.Note) -> None:
        self.world.note(host.index, effect.event, **dict(effect.fields))

    # ---- jobs ---------------------------------------------------------------------------------------

    def scan(self, host: Host) -> Steps:
        """What a daemon finds when it starts."""
        for found in list(host.records.values()):
            if not host.is_sound(found):
                del host.records[found.slot]
        for slot in [slot for slot in host.files if slot not in host.records]:
            del host.files[slot]  # whoever was filling it may do so yet
        for parity, kept in list(host.parities.items()):
            if digest(bytes(kept.data)) != kept.digest:
                del host.parities[parity]
        self.world.truth.changed = True
        yield
        parities = tuple(ev.FoundParity(parity, kept.table) for parity, kept in host.parities.items())
        return ev.Scanned(tuple(host.records.values()), parities, *host.remembered)

    def _make_slot(self, host: Host, effect: ev.MakeSlot) -> Steps:
        yield
        size = effect.size // SCALE
        fits = len(host.files.get(effect.slot, b"")) == size
        if host.full and not fits:
            return ev.SlotMade(effect.ticket, effect.slot, effect.version, problem=MemoryBudgetError(NO_ROOM))
        if not fits:  # else it is used again, with what stands in it, by whoever still maps it too
            host.files[effect.slot] = bytearray(size)
        return ev.SlotMade(effect.ticket, effect.slot, effect.version, "a path")

    def _record(self, host: Host, effect: ev.Record) -> Steps:
        yield
        data = bytes(host.files[effect.slot])
        image = Image(effect.slot.rank, len(data) * SCALE, digest(data))
        yield
        if host.full and self.world.rng.random() < 0.5:
            return ev.Recorded(effect.slot, effect.version, effect.world, None, NO_ROOM)
        host.records[effect.slot] = ev.FoundSlot(effect.slot, effect.version, effect.world, image, "captured")
        self.world.truth.capture(host.index, Held(effect.version, effect.world, image), effect.version)
        return ev.Recorded(effect.slot, effect.version, effect.world, image)

    def _make_parity(self, host: Host, effect: ev.MakeParity) -> Steps:
        world, table, made = self.world, effect.table, []
        for parity in effect.parities:
            standing = host.parities.get(parity)
            if standing is not None and digest(bytes(standing.data)) == standing.digest:
                made.append(parity)
                continue
            group = groups_in(table.map)[parity.group]
            sources = []
            for symbol in range(group.layout.k):
                if symbol % 4 == 0:
                    yield
                sources.append(segment(world.reach(host), world.tell, (group, table, parity.stripe), symbol))
            whole = [data for data in sources if data is not None]
            if len(whole) < len(sources) or host.full:
                continue
            out = bytearray(group.units(table) * UNIT)
            group.code.encode(whole, [parity.row], [out])
            yield
            host.parities[parity] = Segment(table, out, digest(bytes(out)))
            made.append(parity)
            world.truth.know(table)
            world.truth.made.add(parity)
        reason = "a source can't be read, or there is no room" if len(made) < len(effect.parities) else ""
        return ev.ParityMade(table, tuple(made), reason)

    def _rebuild(self, host: Host, effect: ev.Rebuild) -> Steps:
        found, table = [], effect.table
        for image, slot in effect.slots:
            yield
            data = self.world.fetch(host, effect.ledger, table, image.rank)
            if data is None or (host.full and len(host.files.get(slot, b"")) != len(data)):
                continue
            if len(host.files.get(slot, b"")) != len(data):
                host.files[slot] = bytearray(len(data))
            file, half = host.files[slot], len(data) // 2
            file[:half] = data[:half]
            yield
            file[half:] = data[half:]
            yield
            if digest(bytes(file)) == image.digest:
                found.append(ev.FoundSlot(slot, table.version, table.world, image, "parity"))
                host.records[slot] = found[-1]
        reason = "a source can't be read, or there is no room" if len(found) < len(effect.slots) else ""
        return ev.Rebuilt(table, tuple(found), reason)

    def _repair(self, host: Host, effect: ev.Repair) -> Steps:
        yield
        found, file = host.records.get(effect.slot), host.files.get(effect.slot)
        table = next((t for t in tables_of(effect.ledger).get(effect.version, ()) if is_complete(t)), None)
        if found is None or file is None or found.version != effect.version or table is None:
            return ev.Repaired(effect.slot, effect.version, "it is held no more")
        data = self.world.fetch(host, effect.ledger, table, effect.image.rank)
        yield
        if data is None:
            return ev.Repaired(effect.slot, effect.version, "too few symbols")
        file[:] = data  # into the mapping that it was begun with, whoever fills the slot by now
        host.damaged = [other for other in host.damaged if other is not found]
        self.world.truth.changed = True
        return ev.Repaired(effect.slot, effect.version)

    def _write(self, host: Host, effect: ev.Write) -> Steps:
        storage, failed, me = self.world.storage, ev.Written(effect.version, (), "storage failed"), host.index
        for image, _ in effect.slots:
            yield
            if host in self.world.ghosts:  # a machine that was given up has lost its mount, too
                return failed
            data, key = host.image(effect.version, image), (effect.version, image.rank)
            if data is None or not storage.write(key, data[: len(data) // 2], me):
                return failed
            yield
            if not (storage.write(key, data, me) and storage.sync(key, me)):
                return failed
            yield
            if not storage.rename(key, me):
                return failed
            yield
            if not storage.sync_directory(key):
                return failed
        return ev.Written(effect.version, tuple(image for image, _ in effect.slots))

    def _publish(self, host: Host, effect: ev.Publish) -> Steps:
        version, storage = effect.table.version, self.world.storage
        yield
        if host in self.world.ghosts:
            return ev.Published(version, "storage failed")
        for image in (image for payload in effect.table.payloads for image in payload.images):
            written = storage.files.get((version, image.rank))
            if written is None or len(written.data) * SCALE != image.size:
                return ev.Published(version, f"rank {image.rank} is not on storage")
        if not storage.publish(effect.table, host.index, self.world.now):
            return ev.Published(version, "storage failed")
        yield
        if not storage.sync_root(version):
            return ev.Published(version, "storage failed")
        stored = (Kept(found, self.world.now - named.at, complete=True) for found, named in storage.names.items())
        return ev.Published(version, stored=tuple(stored))

    def _remove(self, host: Host, effect: ev.Remove) -> Steps:
        yield
        if not self.world.storage.works or host in self.world.ghosts:
            return ev.Removed(effect.version, "storage failed")
        self.world.storage.remove(effect.version)
        self.world.truth.changed = True
        return ev.Removed(effect.version)
