"""What is restored, and from where: decisions over literal ledgers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptd.ckpt.barred import Barred
from ckptd.ckpt.groups import map_of, parities_of
from ckptd.ckpt.inventory import Captures, Held, Ledger, Origin, Report
from ckptd.ckpt.model import Image, Payload, Table, Version
from ckptd.ckpt.recovery import Stored, forsaken, losses_tolerated, making_way, moved, plan

MAP = map_of(1, range(4), parity=1, size=8)
WITHOUT_3 = map_of(2, range(3), parity=1, size=8)
V1, V2 = Version(1, 1), Version(1, 2)


def image(rank: int) -> Image:
    return Image(rank, 100, f"{rank:032x}")


def table(version: Version, world: int = 4) -> Table:
    return Table(version, world, tuple(Payload(rank, (image(rank),)) for rank in range(world)), MAP)


def report(
    node: int, *versions: Version, parity: bool = True, origin: Origin = "captured", rank: int | None = None
) -> Report:
    """Node `node` holds its rank's image of these versions and, if asked for, its parities of them."""
    rank = node if rank is None else rank
    kept = tuple(table(version) for version in versions) if parity else ()
    return Report(
        node,
        "boot",
        1,
        ranks=((rank, 1),),
        held=tuple(Held(version, 4, image(node), origin) for version in versions),
        parities=tuple(parity for made in kept for parity in parities_of(made, node)),
        tables=kept,
    )


def ledger(*reports: Report, sealed: Version | None = None, lost: tuple[int, ...] = ()) -> Ledger:
    return Ledger(0, "boot", 1, nodes=4, map=MAP, epoch=1, sealed=sealed, reports=reports, lost=lost)


def test_own_slots_come_first() -> None:
    """All nodes live: the newest version, from the ranks' own slots."""
    chosen = plan(ledger(*(report(node, V1, V2) for node in range(4))), ())
    assert (chosen.version, chosen.rung) == (V2, "own")


def test_a_version_that_not_all_ranks_captured_is_passed_over_with_a_reason() -> None:
    """The newest complete one is chosen, and the decision says why not the newer."""
    chosen = plan(ledger(report(0, V1, V2), *(report(node, V1) for node in (1, 2, 3))), ())
    assert chosen.version == V1
    assert "step 2" in chosen.reason


@pytest.mark.parametrize("lost", range(4))
def test_one_lost_node_is_decoded(lost: int) -> None:
    """With m = 1 any one node's image comes from parity."""
    left = [report(node, V1) for node in range(4) if node != lost]
    chosen = plan(ledger(*left, lost=(lost,)), ())
    assert (chosen.version, chosen.rung) == (V1, "parity")
    assert [source.rank for source in chosen.sources if source.rung == "parity"] == [lost]


def test_without_parity_a_lost_node_needs_storage() -> None:
    """A version that was captured and not protected can't be had, and an older one on storage is taken, with the reason."""
    left = [report(node, V2, parity=False) for node in (0, 1, 2)]
    chosen = plan(ledger(*left, lost=(3,)), (Stored(V1, 4),))
    assert (chosen.version, chosen.rung, chosen.world) == (V1, "storage", 4)
    assert "step 2" in chosen.reason


def test_more_losses_than_parity_need_storage() -> None:
    """Two of four with m = 1: storage, or a fresh start said as such."""
    left = [report(node, V1) for node in (0, 1)]
    assert plan(ledger(*left, lost=(2, 3)), (Stored(V1, 4),)).rung == "storage"
    nothing = plan(ledger(*left, lost=(2, 3)), ())
    assert nothing.version is None
    assert nothing.rung == "none"
    assert "fresh start" in nothing.reason


def test_memory_is_preferred_to_storage_and_newer_to_older() -> None:
    """The same version from memory; a newer one on storage wins over an older one in memory."""
    live = ledger(*(report(node, V1) for node in range(4)))
    assert plan(live, (Stored(V1, 4),)).rung == "own"
    assert plan(live, (Stored(V2, 4),)).rung == "storage"


def test_a_later_life_supersedes_an_abandoned_future() -> None:
    """Step 2 of epoch 2 is newer than step 9 of epoch 1."""
    live = ledger(*(report(node, Version(1, 9), Version(2, 2)) for node in range(4)))
    assert plan(live, ()).version == Version(2, 2)


def test_what_is_barred_is_passed_over_with_its_reason() -> None:
    """In memory and on storage alike; what a later life has captured at the same step is not."""
    live = ledger(*(report(node, V1, V2) for node in range(4)))
    barred = Barred().adding(V2, "trainers crashed 2 times at step 3 after it")
    chosen = plan(live, (Stored(V2, 4),), barred)
    assert (chosen.version, chosen.rung) == (V1, "own")
    assert chosen.reason == f"from memory (own); passed over {V2}: trainers crashed 2 times at step 3 after it"
    later = ledger(*(report(node, V2, Version(2, 2)) for node in range(4)))
    assert plan(later, (), barred).version == Version(2, 2)


def test_where_all_is_barred_the_oldest_step_is_taken_and_that_is_said() -> None:
    """A job is never left without a way on; of one step the newest life's."""
    live = ledger(*(report(node, Version(2, 2), Version(3, 1)) for node in range(4)))
    barred = Barred().adding(Version(3, 1), "poison")
    chosen = plan(live, (Stored(V1, 4),), barred)
    assert chosen.version == Version(3, 1)
    assert chosen.reason.startswith("from memory (own), the oldest step, as all are barred; passed over")
    assert plan(ledger(), (Stored(V1, 4),), barred).rung == "storage"


def test_a_rank_that_moved_reads_from_a_peer() -> None:
    """The image is on a node where the rank does not live any more."""
    moved = [report(0, V1, rank=1), report(1, V1, rank=0), report(2, V1), report(3, V1)]
    assert plan(ledger(*moved), ()).rung == "peer"


def test_a_rebuilt_image_counts_as_parity() -> None:
    """What was decoded before the trainers asked is still said to come from parity."""
    live = [report(0, V1, origin="parity"), *(report(node, V1) for node in (1, 2, 3))]
    assert plan(ledger(*live), ()).rung == "parity"


def test_losses_tolerated_counts_down() -> None:
    """m with all parts there, less for each that is missing, -1 beyond."""
    live = [report(node, V1) for node in range(4)]
    assert losses_tolerated(ledger(*live), [table(V1)]) == 1
    assert losses_tolerated(ledger(*live[:3], lost=(3,)), [table(V1)]) == 0
    assert losses_tolerated(ledger(*live[:2], lost=(2, 3)), [table(V1)]) == -1
    assert losses_tolerated(ledger(*(report(node, V1, parity=False) for node in range(4))), [table(V1)]) == 0


def with_captures(base: Report, begun: Version | None, *, free: int = 0) -> Report:
    captures = (Captures(base.node, free, begun),)
    return Report(base.node, base.boot, base.seq, ranks=base.ranks, captures=captures, held=base.held)


def test_what_a_rank_has_skipped_is_forsaken() -> None:
    """Rank 3 went on to step 2 without step 1: nobody can ever complete step 1."""
    reports = [with_captures(report(node, V1), V1) for node in range(3)] + [with_captures(report(3), V2)]
    assert forsaken(ledger(*reports)) == {V1}


def test_what_a_rank_may_still_capture_is_not_forsaken() -> None:
    """Rank 3 is behind: step 1 can still be completed."""
    reports = [with_captures(report(node, V1), V1) for node in range(3)] + [with_captures(report(3), None)]
    assert forsaken(ledger(*reports)) == set()


def test_nothing_is_forsaken_while_a_node_has_not_spoken() -> None:
    """The silent node may hold what is missing."""
    reports = [with_captures(report(node, V1), V1) for node in range(2)] + [with_captures(report(3), V2)]
    assert forsaken(ledger(*reports)) == set()


def test_nothing_is_forsaken_while_a_node_is_lost() -> None:
    """Two nodes that are cut off look like two losses: what they may have sealed meanwhile must not be given up here."""
    assert forsaken(ledger(report(0, V1), report(1, V1), lost=(2, 3))) == set()


def test_what_can_be_restored_is_never_forsaken() -> None:
    """It may have been sealed by nodes that are gone, although nobody knows of it and a later life has begun."""
    later = replace(ledger(*(report(node, V1) for node in range(3)), report(3)), epoch=2)
    assert forsaken(later) == set()


def test_what_is_lost_beyond_the_code_is_forsaken() -> None:
    """All nodes are there, and two replaced ones have nothing: one parity can't give back two payloads."""
    assert forsaken(ledger(report(0, V1), report(1, V1), report(2), report(3))) == {V1}


def test_all_ranks_make_way_together_or_none() -> None:
    """A forsaken version goes only when every rank has room for the same newer one."""
    wanted = Version(1, 3)
    reports = [with_captures(report(node, V1), V1) for node in range(3)]
    assert making_way(ledger(*reports, with_captures(report(3), V2, free=1)), wanted) == {V1}
    full = with_captures(report(3, V2), V2)
    sealed_elsewhere = ledger(*reports, full, sealed=V2)
    assert making_way(sealed_elsewhere, wanted) == set()
    busy = replace(with_captures(report(3), V2), captures=(Captures(3, 0, V2, (V2,)),))
    assert making_way(ledger(*reports, busy), wanted) == set()
    assert making_way(ledger(*reports, busy), V2) == {V1}


# ---- nodes that have left -------------------------------------------------------------------------------


def test_large_images_are_shared_out() -> None:
    """Of several images of who has left the largest goes first, each to whom has the fewest bytes by then."""
    images = tuple(Image(rank, size, f"{rank:032x}") for rank, size in enumerate((10, 20, 30, 25)))
    made = Table(V1, 4, (Payload(0, images[:1]), Payload(3, images[1:])), MAP)
    facts = replace(ledger(*(Report(node, "boot", 1) for node in range(3)), lost=(3,)), map=WITHOUT_3)
    new = moved(made, facts)
    assert [(p.node, [image.rank for image in p.images]) for p in new.payloads] == [(0, [0, 1]), (1, [2]), (2, [3])]
    assert moved(new, facts) == new


def halved(*, placed: tuple[int, ...] = (0, 1), gone: bool = True, life: int = 1) -> Ledger:
    """Nodes 2 and 3 are silent, more than one parity gives back; node 0 and 1 hold V1, and some their parities of it."""
    both = [report(node, V1) for node in (0, 1)]
    reports = (
        replace(
            item,
            parities=item.parities if item.node in placed else (),
            captures=(Captures(item.node, 0, V1, epoch=life),),
        )
        for item in both
    )
    map_ = map_of(2, range(2), parity=1, size=8) if gone else MAP
    return replace(ledger(*reports, lost=(2, 3)), map=map_)


def test_what_may_be_sealed_is_not_forsaken() -> None:
    """All who can be heard have placed their parities: the others may have too, and know of a seal."""
    assert forsaken(halved()) == set()


@pytest.mark.parametrize("placed", [(), (0,), (1,)])
def test_what_can_not_be_sealed_is_forsaken_without_who_has_left(placed: tuple[int, ...]) -> None:
    """An owner that has not placed its parity is proof that nobody has sealed it."""
    assert forsaken(halved(placed=placed)) == {V1}


def test_who_has_lost_its_memory_is_no_proof() -> None:
    """An owner that came back empty placed its parities, perhaps, before it was lost."""
    half = halved(placed=(0,))
    empty = replace(half.reports[1], boot="the next one", held=())
    assert forsaken(replace(half, reports=(half.reports[0], empty))) == set()


def test_nothing_is_forsaken_while_the_silent_ones_have_not_left() -> None:
    assert forsaken(halved(placed=(), gone=False)) == set()


def test_what_may_be_sealed_outlives_its_life() -> None:
    """The next life may have been decided on one side of a cut, by who could not hear that the other side had sealed it."""
    assert forsaken(halved(life=2)) == set()
