"""The slots' machine: which acts a state allows, and which image may be given up."""

from __future__ import annotations

import itertools

import pytest

from ckptd.ckpt.inventory import Held
from ckptd.ckpt.model import Image, Version
from ckptd.daemon.catalog import TRANSITIONS, Catalog, Filling, Free, Holding, Recording, State
from ckptd.daemon.events import SlotId
from ckptd.daemon.machine import IllegalAct

SLOT = SlotId(0, 0)
V1, V2, V3 = Version(1, 1), Version(1, 2), Version(1, 3)


def held(version: Version) -> Holding:
    return Holding(Held(version, 1, Image(0, 10, "0" * 32)))


def example(kind: type[State]) -> State:
    states: dict[type[State], State] = {Free: Free(), Filling: Filling(V1), Recording: Recording(V1), Holding: held(V1)}
    return states[kind]


def catalog_with(*versions: Version, slots: int = 3) -> Catalog:
    catalog = Catalog(slots)
    for index, version in enumerate(versions):
        catalog.act(SlotId(0, index), "find", held(version))
    return catalog


ACTS = sorted({act for acts in TRANSITIONS.values() for act in acts})


@pytest.mark.parametrize(("kind", "act"), list(itertools.product(TRANSITIONS, ACTS)))
def test_the_table_is_the_whole_truth(kind: type[State], act: str) -> None:
    """An act in the table moves the slot where the table says; any other is refused and changes nothing."""
    catalog = Catalog(1)
    catalog._states[SLOT] = example(kind)
    target = TRANSITIONS[kind].get(act)
    if target is None:
        with pytest.raises(IllegalAct, match=act):
            catalog.act(SLOT, act, Free())
        assert type(catalog.state(SLOT)) is kind
    else:
        catalog.act(SLOT, act, example(target))
        assert type(catalog.state(SLOT)) is target


def test_a_free_slot_is_taken_before_any_image_is_given_up() -> None:
    """Older snapshots are kept as long as there is room."""
    assert catalog_with(V1, V2).choose(0, V2, ()) == SlotId(0, 2)


def test_the_oldest_superseded_image_goes_first() -> None:
    """Only what is older than the newest sealed version may go, the oldest first."""
    assert catalog_with(V2, V1, V3).choose(0, V3, ()) == SlotId(0, 1)


def test_the_newest_sealed_image_is_never_given_up() -> None:
    """P1: with everything else in use the snapshot is skipped instead."""
    assert catalog_with(V1, V2, slots=2).choose(0, V1, ()) is None
    assert catalog_with(V1, V2, slots=2).choose(0, None, ()) is None
    assert catalog_with(V1, slots=1).choose(0, V1, (), {V1}) is None


def test_an_image_on_its_way_to_storage_stays() -> None:
    """A pinned version is not given up although a newer one is sealed."""
    assert catalog_with(V1, V2, V3).choose(0, V3, {V1}) == SlotId(0, 1)


def test_a_forsaken_image_may_go() -> None:
    """What can never be sealed makes way."""
    assert catalog_with(V1, V2, V3).choose(0, V1, (), {V2}) == SlotId(0, 1)


def test_ranks_do_not_share_slots() -> None:
    """Another rank's full slots do not matter."""
    assert catalog_with(V1, V2, V3).choose(1, None, ()) == SlotId(1, 0)


def test_an_image_that_stands_twice_breaks_the_invariant() -> None:
    """The check finds a version that two slots of a rank claim."""
    with pytest.raises(AssertionError, match="twice"):
        catalog_with(V1, V1).check_invariants()
