"""`ckptd plan`: the numbers it shows are those that the layout and the duties come to."""

from __future__ import annotations

import pytest

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import PIECE, pieces_of
from ckptd.daemon.plan_command import outlook, split_names, standing
from ckptd.daemon.sizes import parse_size
from ckptd.erasure import Layout


@pytest.mark.parametrize(
    ("nodes", "parity", "size"), [(4, 1, 8), (8, 2, 8), (5, 2, 4), (11, 3, 5), (2, 1, 8), (3, 0, 8)]
)
@pytest.mark.parametrize("payload", [1, PIECE, 20 * PIECE + 7, 10**9])
def test_costs_are_those_of_the_layout(nodes: int, parity: int, size: int, payload: int) -> None:
    """Parity kept, and bytes read from and by each node for one snapshot, counted over the stripes of the real layout."""
    for row in outlook([""] * nodes, parity=parity, size=size, slots=3, payload=payload)["groups"]:
        layout = Layout(row["k"], row["m"])
        assert layout.n == len(row["nodes"])
        segment = layout.segment_units([pieces_of(payload)] * layout.n) * PIECE
        for position in range(layout.n):
            owned = len(layout.owned(position)) * segment
            read = len(layout.owned(position)) * layout.k * segment
            given = sum(position in layout.data_positions(stripe) for stripe in range(layout.n)) * layout.m * segment
            assert row["parity_bytes"] == owned
            assert row["network_bytes"] == read == given
        assert row["memory_bytes"] == 3 * payload + 2 * row["parity_bytes"]


def test_ratios_without_a_payload() -> None:
    """Multiples of the payload, and no bytes that nobody asked for."""
    content = outlook([""] * 8, parity=2, size=8, slots=2, payload=None)
    (row,) = content["groups"]
    assert (row["k"], row["m"], content["losses_tolerated"]) == (6, 2, 2)
    assert row["parity_ratio"] == pytest.approx(1 / 3)
    assert row["memory_ratio"] == pytest.approx(2 + 2 / 3)
    assert row["network_ratio"] == 2
    assert "memory_bytes" not in row


def test_what_is_a_problem() -> None:
    """A domain that breaks the rule, and a node that no parity covers though it was asked for; not what was chosen so."""
    assert outlook(["a", "b", "a", "b"], parity=1, size=8, slots=3, payload=None)["ok"]
    broken = outlook(["a", "a", "a", "b"], parity=1, size=8, slots=3, payload=None)
    assert not broken["ok"]
    assert broken["breaches"][0]["reason"].startswith("group 0: nodes 0, 1 and 2 stand in a")
    assert not outlook([""] * 3, parity=1, size=2, slots=3, payload=None)["ok"]
    assert outlook([""] * 3, parity=0, size=2, slots=3, payload=None)["ok"]
    assert outlook([""], parity=1, size=8, slots=3, payload=None)["ok"]


def test_who_stands_where() -> None:
    """The number of nodes is what is said first; unknown domains are empty or 'none'."""
    assert standing(3, None, 7) == ["", "", ""]
    assert standing(None, "a,,none", 7) == ["a", "", ""]
    assert standing(None, None, 2) == ["", ""]
    with pytest.raises(UsageError, match="found 2, expected one for each of 3 nodes"):
        standing(3, "a,b", 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a, b,c ", ["a", "b", "c"]),
        ("leaf[1,4-6],leaf7", ["leaf[1,4-6]", "leaf7"]),
        ("leaf[1,2,3],x[4,5]y,", ["leaf[1,2,3]", "x[4,5]y", ""]),
        ("a[1,b", ["a[1,b"]),
        ("", [""]),
    ],
)
def test_commas_in_brackets_belong_to_the_name(text: str, names: list[str]) -> None:
    """Slurm's names for several switches may be copied as they are."""
    assert split_names(text) == names


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("20GB", 20 * 10**9),
        ("18.5GiB", 18.5 * 2**30),
        ("1 kB", 1000),
        ("3M", 3 * 10**6),
        ("2TiB", 2**41),
    ],
)
def test_sizes(text: str, size: float) -> None:
    """Decimal and binary units, with a fraction or none."""
    assert parse_size(text, "--payload") == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "0.0001", "20gb", "1PB", "٣", "nan", "9" * 400, "65TiB"])
def test_sizes_that_are_none(text: str) -> None:
    """Wrong usage, with examples of what is right."""
    with pytest.raises(UsageError, match="as 1000, 20GB or"):
        parse_size(text, "--payload")
