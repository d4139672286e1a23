"""Single rules of one node, each a fault that the random runs or a careful reader found: who is refused, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.sim.job import Job
from tests.sim.world import World

from ckptd.ckpt.client import Decision
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, StaleStepError
from ckptd.ckpt.groups import map_of, parities_of
from ckptd.ckpt.inventory import Captures, Held, Ledger, Part, Report
from ckptd.ckpt.model import Image, Payload, Table, Version
from ckptd.daemon import events as ev
from ckptd.daemon.catalog import Catalog, Filling, Holding
from ckptd.daemon.decisions import Decisions
from ckptd.daemon.duties import Duties
from ckptd.daemon.node import Node

V1, V2 = Version(1, 1), Version(1, 2)
NOWHERE = Path("/nowhere")
PAIR = Config(node=1, nodes=("host:1", "host:2"), secret=b"s" * 16, run_dir=NOWHERE, segment_dir=NOWHERE)


def image(rank: int) -> Image:
    return Image(rank, 100, f"{rank:032x}")


def single(*found: ev.FoundSlot, scanned: bool = True) -> Node:
    """A job of one node; its daemon has found these slots, and rank 0 has joined epoch 1."""
    node = Node(Config(run_dir=NOWHERE, segment_dir=NOWHERE), "boot")
    if scanned:
        node.handle(ev.Scanned(found, (), 0, None), 0.0)
    node.handle(ev.AttachAsked(1, 0, 1, 1, 100), 0.0)
    node.handle(ev.JoinAsked(2, 0, 1), 0.0)
    return node


def answer(effects: list[ev.Effect]) -> object:
    return next(effect.value for effect in effects if isinstance(effect, ev.Answer))


def refusal(effects: list[ev.Effect]) -> str:
    value = answer(effects)
    assert isinstance(value, CkptdError), value
    return str(value)


# ---- a daemon that has just started -----------------------------------------------------------------


def test_nothing_is_granted_before_the_segments_are_read() -> None:
    """A slot that seems free may hold the only copy: the snapshot is skipped, and the slot found afterwards."""
    node = single(scanned=False)
    assert answer(node.handle(ev.BeginAsked(3, 0, V2, 100), 0.1)) is None
    node.handle(ev.Scanned((ev.FoundSlot(ev.SlotId(0, 0), V1, 1, image(0), "captured"),), (), 1, V1), 0.2)
    assert [held.version for _, held in node.catalog.holding()] == [V1]


def test_what_was_sealed_is_not_written_over_before_it_is_read() -> None:
    """A trainer that joins a daemon which still reads its segments must not make it forget what it knew."""
    node = single(scanned=False)
    effects = node.handle(ev.JoinAsked(3, 0, 5), 0.1)
    assert not [effect for effect in effects if isinstance(effect, ev.Remember)]
    effects = node.handle(ev.Scanned((), (), 2, V2), 0.2)
    assert ev.Remember(5, V2) in effects


def test_a_restarted_daemon_refuses_what_it_has_captured() -> None:
    """It does not know what was begun, but it sees what it holds: an image never stands twice."""
    node = single(ev.FoundSlot(ev.SlotId(0, 1), V2, 1, image(0), "captured"))
    assert "not newer" in refusal(node.handle(ev.BeginAsked(3, 0, V2, 100), 0.1))
    assert "not newer" in refusal(node.handle(ev.BeginAsked(4, 0, V1, 100), 0.1))


def test_images_beyond_the_slots_are_kept() -> None:
    """Fewer slots than before the restart: what stands in the others is still served, and never filled again."""
    found = (ev.FoundSlot(ev.SlotId(0, index), Version(1, index + 1), 1, image(0), "captured") for index in range(5))
    node = single(*found)
    node.check_invariants()
    assert len(node.report().held) == 5


# ---- zombies and their questions ----------------------------------------------------------------------


def test_a_zombie_of_an_earlier_life_is_refused() -> None:
    """Once the job lives in a later epoch nobody captures in the earlier one."""
    node = single()
    elsewhere = Report(1, "other", 1, captures=(Captures(0, 3, epoch=2),))
    node._adopt(Ledger(0, "boot", 99, epoch=2, reports=(node.report(), elsewhere)), 0.1)
    assert "call restore()" in refusal(node.handle(ev.BeginAsked(3, 0, V1, 100), 0.2))


def test_a_trainer_goes_on_after_its_daemon_was_restarted() -> None:
    """Attaching again is one step: between two, its next question would find it in no life, and be refused."""
    node = Node(Config(run_dir=NOWHERE, segment_dir=NOWHERE), "boot")
    node.handle(ev.Scanned((), (), 1, None), 0.0)
    effects = node.handle(ev.AttachAsked(1, 0, 1, 1, 100, 3), 0.1)
    assert ev.Remember(3, None) in effects
    assert [
        effect
        for effect in node.handle(ev.BeginAsked(2, 0, Version(3, 1), 100), 0.2)
        if isinstance(effect, ev.MakeSlot)
    ]


def test_what_a_replaced_trainer_began_is_dropped() -> None:
    """Its slot is free for the next one, and its late commit is refused."""
    node = single()
    node.handle(ev.BeginAsked(3, 0, V1, 100), 0.1)
    node.handle(ev.AttachAsked(4, 0, 1, 1, 200), 0.2)
    assert "not granted" in refusal(node.handle(ev.CommitAsked(5, ev.SlotId(0, 0), V1), 0.3))
    assert node.catalog.free(0) == 3


def test_an_epoch_that_nobody_lives_in_keeps_nobody_out() -> None:
    """It was given to a life that ended before it began, on a node that is lost now; its word came late."""
    node = single()
    node._adopt(Ledger(0, "boot", 99, epoch=9, reports=(node.report(),)), 0.1)
    assert node.epoch == 9
    made = node.handle(ev.BeginAsked(3, 0, V1, 100), 0.2)
    assert any(isinstance(effect, ev.MakeSlot) for effect in made)


def test_who_was_replaced_while_its_slot_was_made_does_not_learn_of_the_file() -> None:
    """Its successor fills the same slot: two would write to one file."""
    node = single()
    node.handle(ev.BeginAsked(3, 0, V1, 100), 0.1)
    node.handle(ev.AttachAsked(4, 0, 1, 1, 200), 0.2)
    node.handle(ev.JoinAsked(5, 0, 2), 0.3)
    node.handle(ev.BeginAsked(6, 0, Version(2, 1), 100), 0.4)
    assert "taken back" in refusal(node.handle(ev.SlotMade(3, ev.SlotId(0, 0), V1, "/a/path"), 0.5))
    assert isinstance(answer(node.handle(ev.SlotMade(6, ev.SlotId(0, 0), Version(2, 1), "/a/path"), 0.6)), ev.Granted)


def test_a_question_dies_with_the_trainer_that_asked_it() -> None:
    """A late answer to nobody would begin an epoch, and end the life that was decided elsewhere meanwhile."""
    node = Node(PAIR, "boot")
    node.handle(ev.Scanned((), (), 0, None), 0.0)
    node.handle(ev.AttachAsked(1, 0, 1, 1, 100), 0.0)
    node.handle(ev.DecideAsked(2, 1, False, ()), 0.1)
    effects = node.handle(ev.RankGone(0, 100), 0.2)
    assert [effect.ticket for effect in effects if isinstance(effect, ev.Answer)] == [2]
    assert isinstance(answer(effects), StaleStepError)
    node.handle(ev.Tick(), 30.0)
    assert node.epoch == 0


def test_a_decision_waits_until_every_node_has_spoken_or_is_lost() -> None:
    """With the other node silent from the start the answer comes after `settle_s`, and not before."""
    node = Node(Config(nodes=PAIR.nodes, secret=PAIR.secret, run_dir=NOWHERE, segment_dir=NOWHERE), "boot")
    node.handle(ev.Scanned((), (), 0, None), 0.0)
    asked = node.handle(ev.DecideAsked(2, 1, False, ()), 0.1)
    early = node.handle(ev.Tick(), 9.0)
    late = node.handle(ev.Tick(), 10.5)
    assert [any(isinstance(e, ev.Answer) for e in effects) for effects in (asked, early, late)] == [False, False, True]
    decision = answer(late)
    assert isinstance(decision, Decision)
    assert "fresh start" in decision.reason


# ---- duties ---------------------------------------------------------------------------------------------


def pair_ledger(*versions: Version, sealed: Version, held_here: tuple[Version, ...]) -> Ledger:
    """Two nodes that mirror each other: node 0 has images and parities of all versions, node 1 only some images."""
    map_, payloads = PAIR.whole_map, (Payload(0, (image(0),)), Payload(1, (image(1),)))
    tables = tuple(Table(v, 2, payloads, map_) for v in sorted(versions)[::-1])
    full = Report(
        0,
        "a",
        1,
        held=tuple(Held(v, 2, image(0)) for v in versions),
        parities=tuple(parity for made in tables for parity in parities_of(made, 0)),
        tables=tables,
    )
    here = Report(1, "b", 1, held=tuple(Held(v, 2, image(1), "parity") for v in held_here))
    return Ledger(0, "a", 1, nodes=2, map=map_, epoch=1, sealed=sealed, tables=tables, reports=(full, here))


def rebuilds(catalog: Catalog, ledger: Ledger) -> list[Version]:
    effects = Duties(PAIR).work(ledger, catalog, None, 0.0)
    return [effect.table.version for effect in effects if isinstance(effect, ev.Rebuild)]


def test_both_the_newest_and_the_sealed_version_are_rebuilt() -> None:
    """The newest is what a restart takes; the sealed one is what is promised: with one alone P1 would hang on a thread."""
    catalog = Catalog(3)
    assert rebuilds(catalog, pair_ledger(V1, V2, sealed=V1, held_here=())) == [V2]
    catalog = Catalog(3)
    catalog.act(ev.SlotId(1, 0), "find", Holding(Held(V2, 2, image(1), "parity")))
    assert rebuilds(catalog, pair_ledger(V1, V2, sealed=V1, held_here=(V2,))) == [V1]


def test_only_what_still_has_to_be_written_is_pinned() -> None:
    """A version whose part is on storage, or that storage refused, does not keep a slot from the next snapshot."""
    mine, moved_here = Image(0, 9, "00" * 16), Image(1, 9, "00" * 16)
    ledger = Ledger(0, "a", 1, persist=V1, tables=(Table(V1, 2, (Payload(PAIR.node, (mine, moved_here)),)),))
    duties = Duties(PAIR)
    assert duties.pinned(ledger, None) == {V1}
    assert duties.pinned(ledger, Part(V1, (mine,))) == {V1}, "another image was taken over since"
    assert duties.pinned(ledger, Part(V1, (mine, moved_here))) == set()
    duties._writing.start(V1)
    duties.written(ev.Written(V1, (), "disk full"), 0.0)
    assert duties.pinned(ledger, None) == set()


def test_a_slot_that_is_repaired_is_granted_to_nobody() -> None:
    """The repair writes to it until it ends; what a trainer fills in there would be changed before it is summed."""
    node = Node(PAIR, "boot")
    sealed = Table(V1, 2, tuple(Payload(n, (image(n),)) for n in range(2)), PAIR.whole_map)
    slot = ev.SlotId(PAIR.node, 0)
    node.handle(ev.Scanned((ev.FoundSlot(slot, V1, 2, image(PAIR.node), "captured"),), (), 1, V1), 0.0)
    facts = Ledger(0, "x", 1, nodes=2, map=PAIR.whole_map, sealed=V1, tables=(sealed,), reports=(node.report(),))
    node._adopt(facts, 0.1)
    effects = node.handle(ev.Damaged(slot, V1, (0,)), 0.2)
    assert [effect.pieces for effect in effects if isinstance(effect, ev.Repair)] == [(0,)]
    for index in range(1, PAIR.slots):
        node.catalog.act(ev.SlotId(PAIR.node, index), "grant", Filling(V2))
    assert node.catalog.choose(PAIR.node, V2, node.duties.pinned(facts, None)) is None
    node.handle(ev.Repaired(slot, V1), 0.3)
    assert node.catalog.choose(PAIR.node, V2, node.duties.pinned(facts, None)) == slot


def test_a_node_takes_nothing_from_a_collector_that_goes_on_without_it() -> None:
    """It hears who does not hear it: what is safe on that one alone is no reason to give up what is kept here."""
    node = Node(PAIR, "boot")
    found = ev.FoundSlot(ev.SlotId(PAIR.node, 0), V1, 2, image(PAIR.node), "captured")
    sealed = Table(V1, 2, tuple(Payload(n, (image(n),)) for n in range(2)), PAIR.whole_map)
    kept = tuple(ev.FoundParity(parity, sealed) for parity in parities_of(sealed, PAIR.node))
    assert kept
    node.handle(ev.Scanned((found,), kept, 1, V1), 0.0)
    alone = map_of(2, [0], parity=1, size=8)
    facts = Ledger(0, "x", 1, nodes=2, map=alone, sealed=V2, shielded=V2, reports=(Report(0, "x", 1),), lost=(1,))
    node.handle(ev.LedgerCame(facts), 0.1)
    assert (node.sealed, node.duties.parities()) == (V1, tuple(found.parity for found in kept))
    taken_in = replace(facts, seq=2, map=PAIR.whole_map, reports=(Report(0, "x", 1), node.report()), lost=())
    node.handle(ev.LedgerCame(taken_in), 0.2)
    assert (node.sealed, node.duties.parities()) == (V2, ())


@pytest.mark.parametrize(("ranks", "world", "kept"), [((), 2, {V1, V2}), ((0,), 2, {V2}), ((), 1, {V2})])
def test_old_images_of_ranks_that_live_elsewhere_make_room(
    ranks: tuple[int, ...], world: int, kept: set[Version]
) -> None:
    """Node 1 holds two versions of an image, the newer one sealed: the older goes when its rank lives on node 0, or no more.

    While it lives nowhere, as between a crash and the next start, both stay.
    """
    rank = 0 if world == 2 else 1
    found = tuple(ev.FoundSlot(ev.SlotId(rank, n), v, 2, image(rank), "peer") for n, v in enumerate((V1, V2)))
    node = Node(PAIR, "boot")
    node.handle(ev.Scanned(found, (), 1, V2), 0.0)
    sealed = Table(V2, world, tuple(Payload(n, (image(n),)) for n in range(world)), PAIR.whole_map)
    other = Report(0, "x", 1, ranks=tuple((rank, 7) for rank in ranks))
    facts = Ledger(0, "x", 1, nodes=2, map=PAIR.whole_map, sealed=V2, tables=(sealed,), reports=(other, node.report()))
    effects = node.handle(ev.LedgerCame(facts), 0.1)
    assert {held.version for _, held in node.catalog.holding()} == kept
    retired = [effect.slot for effect in effects if isinstance(effect, ev.Retire)]
    assert retired == [slot.slot for slot in found if slot.version not in kept]
    node.check_invariants()


def test_a_restarted_daemon_keeps_what_its_trainers_come_back_for() -> None:
    """The collector's newest word of this node is of the daemon before: its trainers are not elsewhere."""
    found = tuple(ev.FoundSlot(ev.SlotId(1, n), v, 2, image(1), "captured") for n, v in enumerate((V1, V2)))
    node = Node(PAIR, "boot")
    node.handle(ev.Scanned(found, (), 1, V2), 0.0)
    before = replace(node.report(), boot="the one before", ranks=((1, 7),))
    node.handle(ev.LedgerCame(Ledger(0, "x", 1, nodes=2, map=PAIR.whole_map, sealed=V2, reports=(before,))), 0.1)
    assert {held.version for _, held in node.catalog.holding()} == {V1, V2}


# ---- slots that fill up ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [2, 3])
def test_snapshots_that_one_rank_drops_do_not_fill_the_slots_for_ever(slots: int) -> None:
    """A rank whose trip wires throw away many snapshots in a row keeps nobody from sealing the next whole one."""
    world = World(3, seed=3, slots=slots)
    world.boot()
    job = Job(world, [0, 1, 2], [700] * 3, step_s=0.05)
    job.launch()
    assert world.run(10.0, lambda: world.sealed is not None)
    job.life.procs[1].captures = False
    world.run(2.0)
    before = world.sealed
    job.life.procs[1].captures = True
    assert world.run(5.0, lambda: world.sealed != before)


@pytest.mark.parametrize("slots", [2, 3])
def test_a_seal_that_half_the_cluster_has_not_heard_of_holds_there_too(slots: int) -> None:
    """Cut in two at the moment of a seal, with the trainers going on: `World` checks that nobody gives it up."""
    world = World(4, seed=3, slots=slots)
    world.boot()
    Job(world, [0, 1, 2, 3], [700] * 4, step_s=0.1).launch()
    world.run(3.0)
    before = world.sealed
    assert world.run(5.0, lambda: world.sealed != before)
    world.cuts = {(a, b) for a in range(4) for b in range(4) if (a < 2) != (b < 2)}
    world.run(5.0)
    world.cuts.clear()
    before = world.sealed
    assert world.run(5.0, lambda: world.sealed != before)


# ---- trainers that were replaced ----------------------------------------------------------------------


def test_a_zombie_does_not_take_its_successors_place_after_a_restart() -> None:
    """The daemon has forgotten who is which rank: who lived in an older epoch makes way, and comes second in vain."""
    node = Node(Config(run_dir=NOWHERE, segment_dir=NOWHERE), "boot")
    node.handle(ev.Scanned((), (), 3, None), 0.0)
    assert not isinstance(answer(node.handle(ev.AttachAsked(1, 0, 1, 1, 100, epoch=2), 0.1)), CkptdError)
    assert not isinstance(answer(node.handle(ev.AttachAsked(2, 0, 1, 1, 200, epoch=3), 0.1)), CkptdError)
    assert "successor" in refusal(node.handle(ev.AttachAsked(3, 0, 1, 1, 100, epoch=2), 0.1))
    assert "successor" in refusal(node.handle(ev.AttachAsked(3, 0, 1, 1, 100, epoch=3), 0.1))
    assert not isinstance(answer(node.handle(ev.AttachAsked(4, 0, 1, 1, 300), 0.1)), CkptdError)


def test_a_question_that_outlives_its_trainer_begins_no_epoch() -> None:
    """It was under way when rank 0 was replaced: an answer would end the life of the successor."""
    node = single()
    assert "successor" in refusal(node.handle(ev.DecideAsked(3, 1, False, (), pid=99), 0.1))
    effects = node.handle(ev.DecideAsked(4, 1, False, (), pid=100), 0.1) + node.handle(ev.Tick(), 1.0)
    assert isinstance(answer(effects), Decision)


def test_two_nodes_never_give_the_same_epoch() -> None:
    """A rank 0 that was replaced elsewhere may be asking still: both are answered, each under an epoch of its own."""
    ledger = Ledger(0, "x", 1, nodes=2, reports=(Report(0, "x", 1), Report(1, "x", 1)))
    given = set[tuple[int, int]]()
    for config in (PAIR, replace(PAIR, node=0)):
        for known in range(20):
            decisions = Decisions(config, "x")
            decisions.ask(ev.DecideAsked(1, 2, False, ()), 1)
            ((_, decision),) = decisions.settle(ledger, known)
            assert known < decision.epoch <= known + 2
            given.add((decision.epoch, config.node))
    assert len({epoch for epoch, _ in given}) == len(given), given


def test_a_decision_without_a_node_leaps_to_an_epoch_that_it_can_not_know() -> None:
    """The node that is silent may hold images of the very epoch that would be next, and come back with them."""

    def epoch(known: int, clock_s: float, *lost: int) -> int:
        decisions = Decisions(PAIR, "boot")
        decisions.ask(ev.DecideAsked(1, 2, False, (), clock_s=clock_s), 1)
        reports = tuple(Report(node, "boot", 1) for node in (0, 1) if node not in lost)
        ((_, decision),) = decisions.settle(Ledger(1, "boot", 1, nodes=2, reports=reports, lost=lost), known)
        return decision.epoch

    today = 1_795_600_000.0
    assert epoch(4, today) == 6  # node 1 of two gives the even ones
    first = epoch(4, today, 0)
    assert first > 1000
    assert epoch(first, today, 0) > first
    assert epoch(4, today + 0.3, 0) > first  # of two that know nothing of each other the later one is greater
    for wrong in (0.0, -1e12, 1e12):  # a clock that is wrong costs the order, and nothing else
        assert 1000 < epoch(4, wrong, 0) < 10**10
