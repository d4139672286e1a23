"""Nested plain values to JSON and back, without pickle."""

from __future__ import annotations

import enum
import json
import struct
from collections import Counter, OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.strict import json_object
from ckptd.integrations.tree import Encoder, decode


def through(value: Any) -> Any:
    """Encode to JSON bytes, and decode."""
    encoder = Encoder()
    text = json.dumps({"value": encoder.encode(value, "root")}, allow_nan=False)
    return decode(json_object(text)["value"], lambda name: encoder.tensors[name].clone())


def same(a: Any, b: Any) -> bool:
    """Equal in type and bits, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(x, y) and same(a[x], b[y]) for x, y in zip(a.keys(), b.keys(), strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**4000), 2**4000)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
)
hashable = st.recursive(st.booleans() | st.integers() | st.text(), lambda inner: st.tuples(inner, inner), max_leaves=3)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.just("$tuple"), inner, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.frozensets(hashable, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(trees)
def test_plain_values_survive(value: Any) -> None:
    """Whatever plain values a state_dict() nests come back with the same types and bits."""
    assert same(through(value), value)


def test_other_values_survive() -> None:
    """The containers and numbers of the standard library and numpy that schedulers and loaders use."""
    payload = struct.unpack("<d", b"\1\2\3\4\5\6\xf8\x7f")[0]  # a NaN with bits of its own
    value = {
        "nan": payload,
        "zero": -0.0,
        "milestones": Counter({30: 1, 60: 2}),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "size": torch.Size([2, 3]),
        "bytes": bytearray(b"\0\xff"),
        "set": {1, "a"},
        "scalars": [np.float32(0.1), np.int8(-3), np.bool_(True), np.complex64(1j)],
    }
    assert same(through(value), value)


def test_arrays_and_tensors_become_entries() -> None:
    """Tensors and arrays in a tree are stored under their path, each under a name of its own, as they are now."""
    live, turned = torch.ones(2), np.arange(6).reshape(2, 3).T
    value = {
        "a": {"b": live, "c": [turned, np.array(2.5)]},
        "a.b": torch.zeros(1),
        3: live.expand(4, 2),
    }
    encoder = Encoder()
    tree = encoder.encode(value, "loader")
    live.zero_()
    assert list(encoder.tensors) == ["loader.a.b", "loader.a.c.0", "loader.a.c.1", "loader.a.b#", "loader.3"]
    found = decode(tree, lambda name: encoder.tensors[name])
    assert torch.equal(found["a"]["b"], torch.ones(2))
    assert torch.equal(found[3], torch.ones(4, 2))
    assert np.array_equal(found["a"]["c"][0], turned)
    assert found["a"]["c"][1].shape == ()


class Color(enum.IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")  # noqa: PYI024 - the untyped kind is the subject
cycle: list[Any] = []
cycle.append(cycle)


@pytest.mark.parametrize(
    "value",
    [
        lambda: 1,
        object(),
        Color.RED,
        Point(1, 2),
        defaultdict(list),
        iter([]),
        np.array(["text"]),
        np.array([None]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        torch.eye(3).to_sparse(),
        torch.empty(2, device="meta"),
        torch.empty(2, dtype=vars(torch)["uint4"]),
        cycle,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_needs_pickle_is_refused_by_path(value: Any) -> None:
    """A value that cannot be brought back without running code is a StateError naming its path and what to do."""
    with pytest.raises(StateError, match=r"data\.sampler\.1.*(state_dict\(\)|dense)"):
        Encoder().encode({"sampler": [0, value]}, "data")


@pytest.mark.parametrize(
    "tree", [{"$evil": 1}, {"$bytes": 3}, {"$int": "zz"}, {"$scalar": ["O", "00"]}, {"$tensor": "no"}]
)
def test_unknown_trees_are_refused(tree: Any) -> None:
    """A document from elsewhere with unknown or broken tags is a CorruptionError."""
    with pytest.raises(CorruptionError, match="cannot read"):
        decode([tree], dict[str, torch.Tensor]().__getitem__)
