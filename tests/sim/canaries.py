"""Planted bugs: each is something that a hurried change could do. The simulator must find every one (test_canaries.py).

A canary changes production code (or a step of the simulated machine that stands for it) while its context is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from tests.sim.hands import Hands
from tests.sim.memory import Host, Segment, digest
from tests.sim.world import Steps, World

from ckptd.ckpt import recovery
from ckptd.ckpt.groups import groups_in, parities_of
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.model import Image, Table, Version
from ckptd.daemon import collector, decisions, duties, node
from ckptd.daemon import events as ev
from ckptd.daemon.catalog import Catalog, Free, Holding
from ckptd.daemon.collector import Collector
from ckptd.daemon.decisions import Decisions
from ckptd.daemon.slots import Known, Slots
from ckptd.erasure import Code

CANARIES: dict[str, Callable[[], AbstractContextManager[None]]] = {}


@contextmanager
def _put(owner: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _canary(plant: Callable[[], AbstractContextManager[None]]) -> None:
    CANARIES[(plant.__doc__ or "").rstrip(".")] = plant


# ---- slots and sealing -------------------------------------------------------------------------------


@_canary
def reuse_early() -> AbstractContextManager[None]:
    """Reuse the slot of the sealed step as soon as a newer one is captured."""

    def choose(self: Catalog, rank: int, sealed: Any, pinned: Any, forsaken: Any = ()) -> ev.SlotId | None:
        slots = [ev.SlotId(rank, index) for index in range(self._slots)]
        states = [(slot, self.state(slot)) for slot in slots]
        held = [(state.version, slot.index, slot) for slot, state in states if isinstance(state, Holding)]
        return next((slot for slot, state in states if isinstance(state, Free)), min(held)[2] if held else None)

    return _put(Catalog, "choose", choose)


@_canary
def seal_without_parity() -> AbstractContextManager[None]:
    """Seal before the last parity is placed."""
    real = recovery.is_protected

    def is_protected(facts: Ledger, table: Table) -> bool:
        placed = sum(parity.table == table.name for report in facts.reports for parity in report.parities)
        wanted = sum(len(parities_of(table, node)) for node in table.map.nodes)
        return real(facts, table) or placed >= wanted - 1 > 0

    return _put(collector, "is_protected", is_protected)


@_canary
def seal_with_the_dead() -> AbstractContextManager[None]:
    """Seal on the report of a node that has died since."""

    def lost(self: Collector, now: float) -> tuple[int, ...]:
        return tuple(node for node in range(len(self._config.nodes)) if node not in self._seen)

    def observe(self: Collector, report: Report, now: float) -> bool:
        known = self._seen.get(report.node)
        if known is not None:  # what a node had once, it has
            held = {(h.version, h.image.rank): h for h in (*known[0].held, *report.held)}
            parities = tuple(dict.fromkeys((*known[0].parities, *report.parities)))
            tables = tuple(dict.fromkeys((*known[0].tables, *report.tables)))
            report = replace(report, held=tuple(held.values()), parities=parities, tables=tables)
        return real(self, report, now)

    real = Collector.observe
    return _put(Collector, "observe", observe)


@_canary
def forsake_too_much() -> AbstractContextManager[None]:
    """Give up a step that is not sealed although every rank has captured it."""

    def never(ledger: Ledger, tables: Any) -> bool:
        return True

    return _put(recovery, "_never_sealed", never)


@_canary
def shield_early() -> AbstractContextManager[None]:
    """Give up the parities of an older map before those of the newest are placed."""
    return _put(Collector, "_is_shielded", lambda self, facts, tables: True)


# ---- membership and epochs ---------------------------------------------------------------------------


@_canary
def same_epoch() -> AbstractContextManager[None]:
    """Let every life begin under the epoch of the one before."""

    def decide(self: Decisions, ledger: Ledger, asked: ev.DecideAsked, epoch: int) -> Any:
        decision = real(self, ledger, asked, epoch)
        return replace(decision, epoch=max(1, epoch))

    real = Decisions._decide
    return _put(Decisions, "_decide", decide)


@_canary
def forget_the_mark() -> AbstractContextManager[None]:
    """Take a ledger's sealed step as it comes, even when it is older than one's own."""

    def newest(*versions: Version | None) -> Version | None:
        return versions[-1] if versions[-1] is not None else collector.newest(*versions)

    return _put(node, "newest", newest)


@_canary
def decide_early() -> AbstractContextManager[None]:
    """Decide what to restore before every node has spoken."""
    from ckptd.daemon import decisions

    return _put(decisions, "is_settled", lambda ledger: True)


@_canary
def zombie_keeps_its_file() -> AbstractContextManager[None]:
    """Grant the file of a replaced trainer, which may still write to it, to its successor."""

    def retire(self: Hands, host: Host, effect: ev.Retire) -> None:
        pass

    return _put(Hands, "_retire", retire)


@_canary
def forget_the_unfinished() -> AbstractContextManager[None]:
    """Forget to free what a trainer was filling when it died."""
    return _put(Slots, "discard_unfinished", lambda self, rank: [])


@_canary
def leave_a_trainer_waiting() -> AbstractContextManager[None]:
    """Let a trainer wait until a slot is free."""

    def begin(self: Slots, event: ev.BeginAsked, known: Known) -> list[ev.Effect]:
        effects = real(self, event, known)
        skipped = any(isinstance(effect, ev.Answer) and effect.value is None for effect in effects)
        return [] if skipped else effects

    real = Slots.begin
    return _put(Slots, "begin", begin)


@_canary
def keep_old_parities() -> AbstractContextManager[None]:
    """Keep the parities of steps that a newer one has replaced."""
    return _put(duties.Duties, "outdated", lambda self, sealed, ledger: [])


# ---- bytes ------------------------------------------------------------------------------------------


@_canary
def wrong_row() -> AbstractContextManager[None]:
    """Encode with the row beside the right one."""

    def encode(self: Code, data: Any, rows: Any, out: Any) -> None:
        real(self, data, [(row + 1) % self.m for row in rows], out)

    real = Code.encode
    return _put(Code, "encode", encode)


@_canary
def no_checksum() -> AbstractContextManager[None]:
    """Serve an image without looking at its checksum."""

    def image(self: Host, version: Version, image: Image) -> bytes | None:
        found = next((f for f in self.records.values() if f.version == version and f.image == image), None)
        return bytes(self.files[found.slot]) if found else None

    def unchecked(payload: bytes, table: Table, member: int, rank: int) -> bytes:
        start = table.payload(member).start_of(rank) * 64
        return payload[start : start + table.holder(rank)[1].size // 4096]

    from tests.sim import world

    @contextmanager
    def both() -> Iterator[None]:
        with _put(Host, "image", image), _put(world, "cut_out", unchecked):
            yield

    return both()


@_canary
def parity_before_sum() -> AbstractContextManager[None]:
    """Report a parity as placed before its bytes are."""

    def make_parity(self: Hands, host: Host, effect: ev.MakeParity) -> Steps:
        for parity in effect.parities:
            units = groups_in(effect.table.map)[parity.group].units(effect.table)
            empty = bytearray(units * 64)
            host.parities[parity] = Segment(effect.table, empty, digest(bytes(empty)))
            self.world.truth.know(effect.table)
            self.world.truth.made.add(parity)
        yield
        return ev.ParityMade(effect.table, effect.parities)

    return _put(Hands, "_make_parity", make_parity)


@_canary
def restore_what_is_barred() -> AbstractContextManager[None]:
    """Restore the newest step whatever is barred."""
    return _put(decisions, "plan", lambda ledger, stored, _barred: recovery.plan(ledger, stored))


# ---- storage ----------------------------------------------------------------------------------------


def _skipping(sync: str) -> AbstractContextManager[None]:
    real = World.__init__

    def begin(self: World, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.storage.skipped = (sync,)

    return _put(World, "__init__", begin)


@_canary
def unsynced_content() -> AbstractContextManager[None]:
    """Rename a file into place before its content is synced."""
    return _skipping("content")


@_canary
def unsynced_names() -> AbstractContextManager[None]:
    """Forget to sync the directory of the files."""
    return _skipping("names")


@_canary
def unsynced_root() -> AbstractContextManager[None]:
    """Forget to sync the directory into which a version was renamed."""
    return _skipping("root")


@_canary
def persisted_too_soon() -> AbstractContextManager[None]:
    """Call a step persisted before its manifest is in place."""

    def publish(self: Hands, host: Host, effect: ev.Publish) -> Steps:
        yield
        return ev.Published(effect.table.version)

    return _put(Hands, "_publish", publish)
