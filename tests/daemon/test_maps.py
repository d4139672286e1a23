"""Group maps as the collector makes them: who protects whom when nodes leave, come back, or stand elsewhere."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptd.ckpt.config import Config, Timing
from ckptd.ckpt.groups import map_of, parities_of
from ckptd.ckpt.inventory import Held, Ledger, Origin, Report
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version
from ckptd.ckpt.placement import breaches
from ckptd.ckpt.recovery import is_in_place, losses_tolerated, plan, sources_for, tables_of
from ckptd.daemon import events as ev
from ckptd.daemon.catalog import Catalog, Holding
from ckptd.daemon.collector import Collector
from ckptd.daemon.duties import Duties

V1, V2 = Version(1, 1), Version(1, 2)
SIZES = (400, 100, 300, 200)
TIMING = Timing(report_every_s=0.25, lost_after_s=2.0, leave_after_s=60.0, settle_s=10.0)
MAP = map_of(1, range(4), parity=1, size=8)
_seqs = itertools.count(1)


def config(node: int = 0, nodes: int = 4, **settings: Any) -> Config:
    where, addresses = Path("/nowhere"), tuple(f"host:{index + 1}" for index in range(nodes))
    return Config(
        node=node, nodes=addresses, secret=b"s" * 16, run_dir=where, segment_dir=where, timing=TIMING, **settings
    )


def collector(node: int = 0, nodes: int = 4, **settings: Any) -> Collector:
    return Collector(config(node, nodes, **settings), f"boot-{node}")


def image(rank: int) -> Image:
    return Image(rank, SIZES[rank], f"{rank:032x}")


def table(version: Version = V1, map_: GroupMap = MAP) -> Table:
    """Rank n was captured by node n."""
    return Table(version, 4, tuple(Payload(rank, (image(rank),)) for rank in range(4)), map_)


def held(rank: int, version: Version = V1, origin: Origin = "captured") -> Held:
    return Held(version, 4, image(rank), origin)


def report(node: int, *items: Held, kept: tuple[Table, ...] = (), **fields: Any) -> Report:
    """A node's newest word: what it holds, and that it has placed all its parities of these tables."""
    parities = tuple(parity for made in kept for parity in parities_of(made, node))
    return Report(node, "boot", next(_seqs), held=items, parities=parities, tables=kept, **fields)


def told(subject: Collector, now: float, *reports: Report) -> Ledger:
    """The collector leads, and takes in these reports."""
    subject.ledger(now)
    for item in reports:
        subject.observe(item, now)
    return subject.ledger(now)


def sealed_job(subject: Collector) -> Ledger:
    """At time 0 all four nodes hold V1 and have protected it."""
    told(subject, 0.0, *(report(node, held(node)) for node in range(4)))
    return told(subject, 0.0, *(report(node, held(node), kept=(table(),)) for node in range(4)))


def survivors(*kept: Table, taken: tuple[int, ...] = (), origin: Origin = "parity") -> list[Report]:
    """Nodes 0 to 2; those in `taken` hold the image of rank 3 too."""
    return [
        report(node, held(node), *([held(3, origin=origin)] if node in taken else []), kept=kept) for node in range(3)
    ]


def left(subject: Collector, *, taken: tuple[int, ...] = ()) -> Ledger:
    """Node 3 is silent from time 0 on, and has left at time 100."""
    sealed_job(subject)
    told(subject, 2.5, *survivors(table(), taken=taken))
    return told(subject, 100.0, *survivors(table(), taken=taken))


# ---- the first map ------------------------------------------------------------------------------------


def test_a_map_is_made_once_every_node_has_spoken() -> None:
    """Not before the last one has read its segments; until then nothing is protected, as nobody knows by whom."""
    subject = collector()
    early = told(subject, 0.0, *(report(node, held(node)) for node in range(3)))
    assert (early.map, early.left, early.protect) == (GroupMap(), frozenset(), None)
    assert told(subject, 0.0, report(3, scanned=False)).map == GroupMap()
    ready = told(subject, 0.0, report(3, held(3)))
    assert (ready.map, ready.protect, ready.nodes) == (MAP, V1, 4)


def test_a_node_that_is_not_heard_is_in_the_first_map() -> None:
    """It counts as lost after `settle_s`, and has not left: it may only be slow to start."""
    subject = collector()
    told(subject, 0.0)
    facts = told(subject, 10.5, *(report(node, held(node)) for node in range(3)))
    assert (facts.lost, facts.map, facts.left) == ((3,), MAP, frozenset())


def test_domains_are_spread_over_the_groups() -> None:
    """Two racks of four nodes, groups of four with two parities: a rack may be lost."""
    racks = {node: "a" if node < 4 else "b" for node in range(8)}
    subject = collector(nodes=8, parity=2, group_size=4)
    facts = told(subject, 0.0, *(Report(node, "boot", 1, domain=racks[node]) for node in range(8)))
    assert facts.map.domains == tuple(racks.items())
    assert facts.map.nodes == frozenset(range(8))
    assert breaches(facts.map.groups, racks, parity=2) == ()


def test_a_changed_domain_makes_a_new_map() -> None:
    """A node that now stands elsewhere; saying the same again changes nothing."""
    subject = collector()
    told(subject, 0.0, *(report(node, domain="a") for node in range(4)))
    same = told(subject, 0.0, report(3, domain="a"))
    assert same.map.number == 1
    other = told(subject, 0.0, report(3, domain="b"))
    assert (other.map.number, dict(other.map.domains)[3]) == (2, "b")
    assert told(subject, 0.0, report(3, domain="b")).map == other.map
    unknown = told(subject, 0.0, report(3))
    assert unknown.map.number == 3
    assert 3 not in dict(unknown.map.domains)


# ---- a node leaves ------------------------------------------------------------------------------------


def test_a_lost_node_leaves_after_a_while_and_not_before() -> None:
    """It is lost at 2.5 s; 60 s later, without a word in between, the others go on without it."""
    subject = collector()
    assert sealed_job(subject).sealed == V1
    assert told(subject, 2.5, *survivors(table())).lost == (3,)
    waiting = told(subject, 62.4, *survivors(table()))
    assert (waiting.map, waiting.left, waiting.lost) == (MAP, frozenset(), (3,))
    gone = told(subject, 62.5, *survivors(table()))
    assert (gone.map, gone.left) == (map_of(2, range(3), parity=1, size=8), frozenset({3}))


def test_a_node_that_is_heard_in_between_does_not_leave() -> None:
    """Lost twice for less than `leave_after_s` is not lost for so long."""
    subject = collector()
    sealed_job(subject)
    told(subject, 2.5, *survivors(table()))
    told(subject, 40.0, *survivors(table()), report(3, held(3), kept=(table(),)))
    told(subject, 42.5, *survivors(table()))
    assert told(subject, 100.0, *survivors(table())).map == MAP
    assert told(subject, 102.5, *survivors(table())).map.number == 2


def test_its_image_goes_to_the_node_with_the_fewest_bytes() -> None:
    """The table under the new map names node 1, the smallest; the old table is kept by those who have its parities."""
    facts = left(collector())
    new = facts.table(V1)
    assert new is not None
    assert new.map == facts.map
    assert new.payload(1).images == (image(1), image(3))
    assert [image.rank for payload in new.payloads for image in payload.images] == [0, 1, 3, 2]
    assert tables_of(facts)[V1] == (new, table())


def test_its_image_goes_to_a_node_that_has_it() -> None:
    """What a node holds already need not be brought anywhere."""
    new = left(collector(), taken=(2,)).table(V1)
    assert new is not None
    assert new.payload(2).images == (image(2), image(3))


def test_an_image_never_goes_to_a_node_that_is_lost() -> None:
    """Node 1 is silent too, although it has not left, and has the fewest bytes: what it can't bring must go elsewhere."""
    subject = collector(parity=2)
    map_ = map_of(1, range(4), parity=2, size=8)
    made = table(map_=map_)
    told(subject, 0.0, *(report(node, held(node), kept=(made,)) for node in range(4)))
    told(subject, 2.5, *(report(node, held(node), kept=(made,)) for node in range(3)))
    facts = told(subject, 100.0, *(report(node, held(node), kept=(made,)) for node in (0, 2)))
    assert (facts.lost, facts.left) == ((1, 3), frozenset({3}))
    new = facts.table(V1)
    assert new is not None
    assert new.payload(2).images == (image(2), image(3))


def test_what_nobody_can_bring_stays_where_it_was() -> None:
    """Two nodes have left and one parity can't give back both: a table that names others would promise too much."""
    subject = collector()
    sealed_job(subject)
    two = [report(node, held(node), kept=(table(),)) for node in (0, 1)]
    told(subject, 2.5, *two)
    facts = told(subject, 100.0, *(replace(item, seq=next(_seqs)) for item in two))
    assert facts.map.nodes == frozenset({0, 1})
    assert facts.table(V1) == table()
    assert (facts.sealed, facts.protect, facts.shielded) == (V1, None, None)


def test_protection_waits_until_everything_is_in_its_new_place() -> None:
    """First the image is brought, then all make parities under the new map; sealed never goes back meanwhile."""
    subject = collector()
    facts = left(subject)
    new = facts.table(V1)
    assert new is not None
    assert (facts.protect, facts.sealed, facts.shielded) == (None, V1, None)
    brought = told(subject, 101.0, *survivors(table(), taken=(1,)))
    assert (brought.protect, brought.sealed, brought.shielded) == (V1, V1, None)
    some = told(subject, 102.0, *survivors(table(), new, taken=(1,))[:2])
    assert (some.protect, some.shielded) == (V1, None)
    done = told(subject, 103.0, *survivors(table(), new, taken=(1,)))
    assert (done.protect, done.sealed, done.shielded) == (None, V1, V1)
    assert told(subject, 104.0, *survivors(new, taken=(1,))).shielded == V1


def test_a_table_that_was_moved_stays_while_its_map_lasts() -> None:
    """Otherwise an image that is brought to a second place as well would make everybody begin anew."""
    subject = collector()
    new = left(subject).table(V1)
    assert told(subject, 101.0, *survivors(table(), taken=(0, 2))).table(V1) == new


def test_a_snapshot_of_fewer_nodes_is_sealed_under_the_new_map() -> None:
    """The job goes on with three ranks: the parities of a fourth node are not waited for."""
    subject = collector()
    map_ = left(subject).map
    images = tuple(Held(V2, 3, image(rank)) for rank in range(3))
    captured = told(subject, 101.0, *(report(node, images[node]) for node in range(3)))
    made = captured.table(V2)
    assert made is not None
    assert (made.map, captured.protect, captured.sealed) == (map_, V2, V1)
    done = told(subject, 102.0, *(report(node, images[node], kept=(made,)) for node in range(3)))
    assert (done.sealed, done.shielded) == (V2, V2)


# ---- coming back, and collectors that change ----------------------------------------------------------


def test_a_node_that_comes_back_makes_another_map() -> None:
    """It is in the groups again at once; what was moved stays where it is, and is protected anew from there."""
    subject = collector()
    new = left(subject).table(V1)
    assert new is not None
    told(subject, 101.0, *survivors(table(), new, taken=(1,)))
    facts = told(subject, 102.0, *survivors(table(), new, taken=(1,)), report(3))
    assert (facts.map, facts.left, facts.lost) == (map_of(3, range(4), parity=1, size=8), frozenset(), ())
    again = facts.table(V1)
    assert again is not None
    assert (again.map, again.payloads) == (facts.map, new.payloads)
    assert (facts.protect, facts.shielded) == (V1, None)


def test_who_has_left_stays_out_until_it_speaks() -> None:
    """Being lost again after a return takes its time again."""
    subject = collector()
    left(subject)
    assert told(subject, 500.0, *survivors(table())).map.number == 2
    assert told(subject, 501.0, report(3)).map.number == 3
    assert told(subject, 504.0, *survivors(table())).map.number == 3
    assert told(subject, 565.0, *survivors(table())).map.number == 4


def test_a_successor_keeps_map_and_tables() -> None:
    """The collector is lost: the next one goes on with the same map, and with the places that were chosen."""
    first, second = collector(0), collector(1)
    before = left(first)
    second.follow(before, 0.0)
    facts = told(second, 5.0, *survivors(table(), taken=(2,))[1:])
    assert facts.lost == (0, 3)
    assert (facts.map, facts.left) == (before.map, before.left)
    assert facts.table(V1) == before.table(V1)
    told(second, 64.0, *survivors(table(), taken=(2,))[1:])
    later = told(second, 65.5, *survivors(table(), taken=(2,))[1:])
    assert later.map == map_of(3, (1, 2), parity=1, size=8)


def test_an_older_ledger_does_not_bring_an_older_map_back() -> None:
    """Two collectors may exist for a moment: of two maps the one with the greater number counts."""
    first, second = collector(0), collector(1)
    old = sealed_job(second)
    new = left(first)
    second.follow(new, 0.0)
    second.follow(old, 0.0)
    assert told(second, 5.0, *survivors(table())).map == new.map


def test_a_collector_that_was_restarted_takes_the_map_from_the_parities() -> None:
    """Parities lie on the tmpfs with their tables: the newest map is in them, also before every node has spoken."""
    known = map_of(7, range(3), parity=1, size=8)
    images = (Payload(0, (image(0),)), Payload(1, (image(1), image(3))), Payload(2, (image(2),)))
    new = Table(V1, 4, images, known)
    subject = collector()
    early = told(subject, 0.0, *survivors(table(), new, taken=(1,))[:2])
    assert (early.map, early.left) == (known, frozenset({3}))
    facts = told(subject, 1.0, *survivors(table(), new, taken=(1,)))
    assert (facts.map, facts.sealed, facts.shielded) == (known, V1, V1)
    assert told(subject, 2.0, report(3)).map == map_of(8, range(4), parity=1, size=8)


def test_other_settings_make_another_map() -> None:
    """All daemons were restarted with two parities: the map that is found was made for one, and seals nothing any more."""
    subject = collector(parity=2)
    facts = told(subject, 0.0, *(report(node, held(node), kept=(table(),)) for node in range(4)))
    assert facts.map == map_of(2, range(4), parity=2, size=8)
    assert (facts.sealed, facts.shielded, facts.protect) == (None, None, V1)


# ---- what a node does with it -------------------------------------------------------------------------


def test_parities_of_an_older_map_go_once_the_newest_protects() -> None:
    """Until then they are what gives back a node that is lost next; those of older versions go as soon as one is sealed."""
    new = table(map_=map_of(2, range(4), parity=1, size=4))
    older, old = table(Version(0, 9)), table()
    kept = {made: parities_of(made, 1)[0] for made in (older, old, new)}
    duties = Duties(config(1))
    duties.found(tuple(ev.FoundParity(parity, made) for made, parity in kept.items()))
    facts = Ledger(0, "boot", 1, nodes=4, map=new.map, sealed=V1)
    assert duties.outdated(None, facts) == []
    assert duties.outdated(V1, facts) == [ev.DropParity(kept[older])]
    assert duties.outdated(V1, None) == []
    assert duties.outdated(V1, replace(facts, shielded=V1)) == [ev.DropParity(kept[old])]
    assert duties.parities() == (kept[new],)
    assert duties.tables() == (new,)


def test_the_new_home_of_an_image_rebuilds_it_and_makes_no_other_parity() -> None:
    """Node 1 is named by the moved table: it brings rank 3; the others have nothing to bring."""
    facts = left(collector())
    wanted = {}
    for node in range(3):
        catalog = Catalog(3)
        catalog.act(ev.SlotId(node, 0), "find", Holding(held(node)))
        effects = Duties(config(node)).work(facts, catalog, None, 0.0)
        wanted[node] = [item for effect in effects if isinstance(effect, ev.Rebuild) for item, _ in effect.slots]
        assert not any(isinstance(effect, ev.MakeParity) for effect in effects)
    assert wanted == {0: [], 1: [image(3)], 2: []}


# ---- two tables of a version ----------------------------------------------------------------------------


def test_each_table_may_serve() -> None:
    """A loss that only the older or only the newer map gives back is given back; the better one says what is left."""
    facts = left(collector())
    new = facts.table(V1)
    assert new is not None
    tables = (new, table())
    moving = replace(facts, reports=tuple(survivors(table())))
    assert losses_tolerated(moving, tables) == 0  # the older map's one loss is spent on node 3
    assert isinstance(sources_for(moving, tables), tuple)
    whole = replace(facts, reports=tuple(survivors(table(), new, taken=(1,))))
    assert losses_tolerated(whole, tables) == 1
    without = replace(whole, reports=tuple(item for item in whole.reports if item.node != 1), lost=(1, 3))
    found = sources_for(without, tables)
    assert not isinstance(found, str)
    assert [(source.rung, source.node) for source in found] == [("own", 0), ("parity", 1), ("own", 2), ("parity", 1)]
    assert isinstance(sources_for(without, (table(),)), str)
    assert plan(without, ()).version == V1


def test_an_image_elsewhere_is_not_in_its_place() -> None:
    """Parities are of whole payloads: what another node holds is no part of them."""
    facts = left(collector(), taken=(2,))
    new = facts.table(V1)
    assert new is not None
    assert is_in_place(facts, new)
    assert not is_in_place(facts, table())
    elsewhere = replace(facts, reports=tuple(survivors(table(), taken=(0,))))
    assert not is_in_place(elsewhere, new)
