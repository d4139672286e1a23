"""The configuration: what cannot work is refused before anything starts, naming the setting and what was expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.ckpt.config import Config, split_address
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.groups import groups_in

SINGLE = Config(run_dir=Path("/r"), segment_dir=Path("/s"))
PAIR = replace(SINGLE, nodes=("a:1", "b:1"), secret=b"s" * 16)


def test_good_ones_are_returned() -> None:
    """A valid configuration is returned as it is."""
    for good in (
        SINGLE,
        PAIR,
        replace(PAIR, node=1, storage=Path("/p"), persist_every=3, parity=0, slots=2, domain="rack-7"),
    ):
        assert good.validate() is good


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (SINGLE, {"job": "../x"}, "job name"),
        (SINGLE, {"job": ""}, "job name"),
        (SINGLE, {"job": "a" * 65}, "job name"),
        (SINGLE, {"node": 1}, "node 1: expected 0 to 0"),
        (SINGLE, {"node": -1}, "node -1"),
        (SINGLE, {"nodes": ()}, "node 0"),
        (SINGLE, {"domain": "rack 7"}, "domain: found 'rack 7', expected"),
        (SINGLE, {"slots": 1}, "would overwrite the only copy"),
        (SINGLE, {"parity": -1}, "parity -1"),
        (SINGLE, {"group_size": 0}, "group size 0"),
        (SINGLE, {"group_size": 257}, "group size 257"),
        (SINGLE, {"persist_every": -1}, "persist_every"),
        (SINGLE, {"memory_bytes": -1}, "memory_bytes"),
        (SINGLE, {"persist_every": 1}, "storage is not"),
        (SINGLE, {"stuck_after_s": float("nan")}, "stuck_after_s nan: expected a number of seconds; 0: never"),
        (SINGLE, {"nice": 20}, "nice 20: expected 0 to 19"),
        (SINGLE, {"nice": -1}, "nice -1"),
        (SINGLE, {"bandwidth_bytes_s": -1}, "bandwidth_bytes_s -1: expected 0"),
        (SINGLE, {"bandwidth_bytes_s": 1000}, "bandwidth_bytes_s 1000: expected 0 .* or 1048576 or more"),
        (SINGLE, {"cpu_share": -0.5}, "cpu_share -0.5: expected 0"),
        (SINGLE, {"cpu_share": 0.001}, "cpu_share 0.001"),
        (SINGLE, {"cpu_share": float("nan")}, "cpu_share nan"),
        (SINGLE, {"cpu_share": float("inf")}, "cpu_share inf"),
        (SINGLE, {"nodes": ("host",)}, "expected host:port"),
        (SINGLE, {"act": "maybe"}, "act 'maybe': expected restart or advise"),
        (SINGLE, {"run_dir": Path("/" + "r" * 90)}, "107 bytes"),
        (SINGLE, {"run_dir": Path("/" + "é" * 50)}, "107 bytes"),
        (PAIR, {"nodes": ("a:1", "a:1")}, "stands twice"),
        (PAIR, {"nodes": ("a:0", "b:1")}, "port 0 is for a single node"),
        (PAIR, {"secret": b"s" * 15}, "at least 16 bytes"),
        (PAIR, {"parity": 8}, "needs groups larger than 8"),
        (PAIR, {"node": 2}, "node 2: expected 0 to 1"),
    ],
)
def test_bad_ones_are_named(base: Config, changes: dict[str, Any], message: str) -> None:
    """Each mistake is a UsageError that says which setting and what was expected."""
    with pytest.raises(UsageError, match=message):
        replace(base, **changes).validate()


@given(st.text(max_size=12) | st.from_regex(r"[a-z.:]{0,5}:[0-9²٣]{0,6}", fullmatch=True))
def test_an_address_is_split_or_refused(address: str) -> None:
    """Any text is either host:port, with a port that exists, or a UsageError."""
    try:
        host, port = split_address(address)
    except UsageError:
        return
    assert host
    assert 0 <= port <= 65535
    assert address == f"{host}:{port}" or address.rpartition(":")[2].lstrip("0") == str(port).lstrip("0")


def test_the_whole_map_covers_every_node_once() -> None:
    """The protection groups share out all nodes; a group that is too small has what parity it can have."""
    config = replace(SINGLE, nodes=tuple(f"n{i}:1" for i in range(11)), group_size=4, parity=2)
    assert config.whole_map.nodes == frozenset(range(11))
    groups = groups_in(config.whole_map)
    assert all(len(group.nodes) <= 4 and group.layout.m == 2 for group in groups)
    assert groups_in(SINGLE.whole_map)[0].layout.m == 0
