"""Performs a daemon's effects in memory, with real bytes: the part of the simulated world that stands for its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.memory import Host, digest, encode

from ckptd.ckpt.inventory import Held, Report
from ckptd.ckpt.model import Image
from ckptd.daemon import events as ev

if TYPE_CHECKING:
    from tests.sim.world import World


class Hands:
    """One for all hosts. A job takes a while before it reads, and its event another while to come back."""

    def __init__(self, world: World) -> None:
        self.world = world

    def perform(self, host: Host, effect: ev.Effect) -> None:
        getattr(self, f"_{type(effect).__name__.lower()}")(host, effect)

    def _answer(self, host: Host, effect: ev.Answer) -> None:
        then = self.world.answers.pop(effect.ticket)
        self.world.at(self.world.rng.uniform(0.0, 0.002), lambda: then(effect.value))

    def _send(self, host: Host, effect: ev.Send) -> None:
        world, letter, to = self.world, effect.letter, self.world.hosts[effect.to]
        event = ev.ReportCame(letter) if isinstance(letter, Report) else ev.LedgerCame(letter)
        session = to.node  # a letter is signed for one run of the daemon; its successor refuses it

        def deliver() -> None:
            if (host.index, to.index) not in world.cuts and to.node is session:
                world.tell(to, event)

        copies = 0 if world.rng.random() < world.net.loss else 1 + (world.rng.random() < world.net.repeat)
        for _ in range(copies):
            late = world.rng.random() < world.net.late
            world.at(world.rng.uniform(0.3, 3.0) if late else world.within(world.net.delay_s), deliver)

    def _retire(self, host: Host, effect: ev.Retire) -> None:
        """Files are made anew at each capture here."""

    def _droprecord(self, host: Host, effect: ev.DropRecord) -> None:
        host.records.pop(effect.slot, None)
        self.world.dirty = True

    def _dropparity(self, host: Host, effect: ev.DropParity) -> None:
        host.parities.pop(effect.parity, None)
        self.world.dirty = True

    def _remember(self, host: Host, effect: ev.Remember) -> None:
        host.remembered = (effect.epoch, effect.sealed)

    def _note(self, host: Host, effect: ev.Note) -> None:
        self.world.notes.append((self.world.now, host.index, effect.event, dict(effect.fields)))

    def _makeslot(self, host: Host, effect: ev.MakeSlot) -> None:
        def make(host: Host) -> None:
            if effect.slot not in host.records:  # else whoever asked has died since, and a rebuild has filled it
                host.files[effect.slot] = bytearray(effect.size)
            then = self.world.answers.pop(effect.ticket)
            self.world.at(0.0, lambda: then(ev.Granted(effect.slot, "")))

        self.world.work(host, make)

    def _record(self, host: Host, effect: ev.Record) -> None:
        def record(host: Host) -> ev.Event:
            data = bytes(host.files[effect.slot])
            image = Image(effect.slot.rank, len(data), digest(data))
            host.records[effect.slot] = ev.FoundSlot(effect.slot, effect.version, effect.world, image, "captured")
            held = Held(effect.version, effect.world, image)
            self.world.captured.setdefault(effect.version, {})[image.rank] = (host.index, held)
            return ev.Recorded(effect.slot, effect.version, effect.world, image)

        self.world.work(host, record)

    def _makeparity(self, host: Host, effect: ev.MakeParity) -> None:
        def make(host: Host) -> ev.Event:
            made = []
            for parity in effect.parities:
                data = encode(self.world.reach(host), self.world.groups[parity.group], effect.table, parity)
                if data is not None:
                    host.parities[parity] = (effect.table, data)
                    made.append(parity)
            self.world.made.update(made)
            missing = len(made) < len(effect.parities)
            return ev.ParityMade(effect.table, tuple(made), "a source can't be read" if missing else "")

        self.world.work(host, make)

    def _rebuild(self, host: Host, effect: ev.Rebuild) -> None:
        def rebuild(host: Host) -> ev.Event:
            found = []
            for image, slot in effect.slots:
                data = self.world.fetch(host, effect.ledger, effect.table, image.rank)
                if data is not None:
                    host.files[slot] = bytearray(data)
                    found.append(ev.FoundSlot(slot, effect.table.version, effect.table.world, image, "parity"))
                    host.records[slot] = found[-1]
            missing = len(found) < len(effect.slots)
            return ev.Rebuilt(effect.table, tuple(found), "a source can't be read" if missing else "")

        self.world.work(host, rebuild)

    def _write(self, host: Host, effect: ev.Write) -> None:
        def write(host: Host) -> ev.Event:
            data = [host.image(effect.version, image) for image, _ in effect.slots]
            if not self.world.storage_works or any(part is None for part in data):
                return ev.Written(effect.version, (), "storage failed")
            images = tuple(image for image, _ in effect.slots)
            self.world.parts |= {(effect.version, i.rank): part or b"" for i, part in zip(images, data, strict=True)}
            return ev.Written(effect.version, images)

        self.world.work(host, write)

    def _publish(self, host: Host, effect: ev.Publish) -> None:
        def publish(host: Host) -> ev.Event:
            version = effect.table.version
            if not self.world.storage_works:
                return ev.Published(version, "storage failed")
            for image in (image for payload in effect.table.payloads for image in payload.images):
                written = self.world.parts[version, image.rank]
                assert digest(written) == image.digest, f"the manifest of {version} names no file"
            self.world.manifests[version] = effect.table
            return ev.Published(version)

        self.world.work(host, publish)
