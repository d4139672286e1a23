"""Tables in records: what is written is read, and nothing else is believed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.values import json_values, tables

from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version
from ckptd.ckpt.tables import RANKS_MAX, SIZE_MAX, STEP_MAX, table_from_json, table_to_json

DIGEST = "0123456789abcdef" * 2


def content(**changes: Any) -> dict[str, Any]:
    """A good table of two nodes, with some of its fields changed."""
    payloads = [{"node": node, "images": [[node, 100, DIGEST]]} for node in (0, 1)]
    return {"epoch": 1, "step": 2, "world": 2, "payloads": payloads, "map": map_of_two()} | changes


def map_of_two(**changes: Any) -> dict[str, Any]:
    """Its map, with some of its fields changed."""
    return {"number": 3, "parity": 1, "groups": [[1, 0]], "domains": [[0, "rack-7"]]} | changes


def payload(node: Any = 0, images: Any = ()) -> dict[str, Any]:
    return {"node": node, "images": images}


@given(tables)
def test_a_table_survives_json(table: Table) -> None:
    """Every table comes back equal from the bytes of its JSON."""
    assert table_from_json(json.loads(json.dumps(table_to_json(table)))) == table


def test_a_good_table() -> None:
    """The example that the hostile ones below are made from is fine."""
    images = [Image(rank, 100, DIGEST) for rank in (0, 1)]
    expected = Table(
        Version(1, 2),
        2,
        (Payload(0, (images[0],)), Payload(1, (images[1],))),
        GroupMap(3, 1, ((1, 0),), ((0, "rack-7"),)),
    )
    assert table_from_json(content()) == expected


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        "table",
        {},
        content(payloads=None),
        content(payloads="text"),
        content(payloads=[None]),
        content(payloads=[payload(images=None)]),
        content(payloads=[payload(images="text")]),
        content(payloads=[payload(images=[[0, 100]])]),
        content(payloads=[payload(images=[[0, 100, DIGEST, 1]])]),
        content(payloads=[payload(images=["abc"])]),
        content(payloads=[payload(images=[[0, 100, DIGEST[1:]]])]),
        content(payloads=[payload(images=[[0, 100, DIGEST.upper()]])]),
        content(payloads=[payload(images=[[0, 100, 7]])]),
        content(payloads=[payload(images=[[0, -1, DIGEST]])]),
        content(payloads=[payload(images=[[0, SIZE_MAX, DIGEST]])]),
        content(payloads=[payload(images=[[0, 1.5, DIGEST]])]),
        content(payloads=[payload(images=[[True, 100, DIGEST]])]),
        content(payloads=[payload(images=[[2, 100, DIGEST]])]),  # a rank beyond the world
        content(payloads=[payload(images=[[0, 100, DIGEST], [0, 100, DIGEST]])]),
        content(payloads=[payload(0), payload(0)]),
        content(payloads=[payload(-1)]),
        content(payloads=[payload(RANKS_MAX)]),
        content(payloads=[payload("0")]),
        content(world=-1),
        content(world=None),
        content(world=RANKS_MAX),
        content(epoch=-1),
        content(epoch="1"),
        content(step=STEP_MAX),
        content(step=True),
        content(step=float("nan")),
        content(map=None),
        content(map=[]),
        content(map={}),
        content(map=map_of_two(number=-1)),
        content(map=map_of_two(number=STEP_MAX)),
        content(map=map_of_two(parity="1")),
        content(map=map_of_two(groups=None)),
        content(map=map_of_two(groups="01")),
        content(map=map_of_two(groups=[0, 1])),
        content(map=map_of_two(groups=[[]])),
        content(map=map_of_two(groups=["01"])),
        content(map=map_of_two(groups=[[0, 1], [0]])),
        content(map=map_of_two(groups=[[0, 1.5]])),
        content(map=map_of_two(groups=[[0, RANKS_MAX]])),
        content(map=map_of_two(groups=[list(range(257))])),
        content(map=map_of_two(domains=None)),
        content(map=map_of_two(domains=["ab"])),
        content(map=map_of_two(domains=[[0]])),
        content(map=map_of_two(domains=[[-1, "rack-7"]])),
        content(map=map_of_two(domains=[[0, 7]])),
        content(map=map_of_two(domains=[[0, ""]])),
        content(map=map_of_two(domains=[[0, "a b"]])),
    ],
)
def test_a_bad_table_is_refused(bad: Any) -> None:
    """A missing, mistyped, doubled or impossible value is corruption, never another exception and never believed."""
    with pytest.raises(CorruptionError):
        table_from_json(bad)


@given(json_values)
def test_any_json_is_a_table_or_corruption(value: Any) -> None:
    """Whatever JSON a file holds, reading it as a table ends in a table or in CorruptionError."""
    with contextlib.suppress(CorruptionError):
        table_from_json(value)


@given(st.data())
def test_one_wrong_field_is_never_fatal(data: st.DataObject) -> None:
    """A good table with any one of its parts replaced by any JSON is read or refused in the same two ways."""
    good = content()
    part: Any = good
    while isinstance(part, dict | list) and part:
        key = data.draw(st.sampled_from(sorted(part)) if isinstance(part, dict) else st.integers(0, len(part) - 1))
        if not isinstance(part[key], dict | list) or data.draw(st.booleans()):
            part[key] = data.draw(json_values)
            break
        part = part[key]
    with contextlib.suppress(CorruptionError):
        table_from_json(good)
