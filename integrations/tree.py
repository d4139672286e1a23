"""Nested plain values as JSON and tensors, without pickle: what a `state_dict()` returns, to bytes and back, bit-exact.

    value                                   JSON
    None, bool, str, list, float, int       themselves (floats by their shortest exact decimal, ints up to 64 bits)
    dict whose keys are strings             an object, unless a key begins with "$"
    everything else that is taken           an object with one key: {"$tuple": [...]}, {"$bytes": base64}, ...
    torch.Tensor, numpy.ndarray             {"$tensor": name}, {"$array": name}: a reference to an entry of the image

Anything else is refused with its path: a class instance cannot be brought back without running its code.
"""

from __future__ import annotations

import base64
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import torch

from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.strict import short
from ckptd.integrations.tensors import plain

MAX_DEPTH = 64
_SEQUENCES: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset", torch.Size: "$size"}
_MAPPINGS: dict[type, str] = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}
_BYTES: dict[type, str] = {bytes: "$bytes", bytearray: "$bytearray"}


class Encoder:
    """Encodes the values of one snapshot and collects private copies of their tensors under unique names."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def add_copies(self, names: Iterable[str], copies: Iterable[torch.Tensor]) -> None:
        """Take copies that were made already. Call it before `add`, which steps aside for names that are taken."""
        self.tensors.update(zip(names, copies, strict=True))

    def add(self, name: str, tensor: torch.Tensor) -> str:
        """Copy a tensor now, so that later changes do not reach the snapshot; return the name it got."""
        while name in self.tensors:  # {"a.b": t, "a": {"b": t}} asks for one name twice
            name += "#"
        local = plain(name, tensor)
        # torch's clone keeps an expanded tensor expanded; contiguous memory holds real values.
        self.tensors[name] = local.to("cpu", memory_format=torch.contiguous_format, copy=True)
        return name

    def encode(self, value: Any, path: str, depth: int = 0) -> Any:
        """The JSON of `value`; `path` names its tensors. Raises StateError for what cannot be encoded."""
        kind = type(value)
        if depth > MAX_DEPTH:
            _refuse(path, f"values nested deeper than {MAX_DEPTH} levels (or in a cycle)")
        if value is None or kind is bool or kind is str:
            return value
        if isinstance(value, torch.Tensor):
            return {"$tensor": self.add(path, value)}
        if kind is int or kind is float or kind is complex:
            return _number(value)
        if kind is list:
            if _are_plain_ints(value):  # a shuffle buffer, say: a call for each would be most of the cost
                return value.copy()
            return [self.encode(item, f"{path}.{index}", depth + 1) for index, item in enumerate(value)]
        if kind in _SEQUENCES:
            return {_SEQUENCES[kind]: self.encode(list(value), path, depth + 1)}
        if kind in _MAPPINGS:
            return self._mapping(value, path, depth)
        if kind in _BYTES:
            return {_BYTES[kind]: base64.b64encode(value).decode()}
        if kind is np.ndarray:
            return {"$array": self.add(path, _from_array(value, path))}
        if isinstance(value, np.generic) and value.dtype.kind in "biufc":
            return {"$scalar": [value.dtype.str, value.tobytes().hex()]}
        return _refuse(path, f"a {kind.__module__}.{kind.__qualname__}, which cannot be captured without pickle")

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> Any:
        tag = _MAPPINGS[type(value)]
        items = [
            (key, self.encode(item, f"{path}.{_step(key, at)}", depth + 1))
            for at, (key, item) in enumerate(value.items())
        ]
        if tag == "$dict" and all(type(key) is str and not key.startswith("$") for key, _ in items):
            return dict(items)
        return {tag: [[self.encode(key, f"{path} (a key)", depth + 1), item] for key, item in items]}


def decode(tree: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    """The value that was encoded; `tensor` gives a private tensor for a name. Raises CorruptionError for unknown tags."""
    if isinstance(tree, list):
        return [decode(item, tensor) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tag = next(iter(tree), "")
    if not tag.startswith("$"):
        return {key: decode(item, tensor) for key, item in tree.items()}
    try:
        return _DECODERS[tag](tree[tag], tensor)
    except (KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise CorruptionError(
            f"the captured state holds {short(tree)}, which this ckptd cannot read ({error}); "
            "restore with the ckptd that captured it, or choose another step"
        ) from error


def references(tree: Any) -> Iterator[str]:
    """The names of the tensors that an encoded value refers to."""
    if isinstance(tree, list):
        for item in tree:
            yield from references(item)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("$tensor", "$array") and isinstance(value, str):
                yield value
            else:
                yield from references(value)


def _number(value: Any) -> Any:
    if isinstance(value, complex):
        return {"$complex": struct.pack("<dd", value.real, value.imag).hex()}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": struct.pack("<d", value).hex()}
    # Python refuses to convert huge integers to and from decimal, not to and from hexadecimal.
    return value if abs(value) < 2**63 else {"$int": hex(value)}


def _are_plain_ints(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and min(values) > -(2**63) and max(values) < 2**63


def _from_array(array: Any, path: str) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except (TypeError, ValueError):
        _refuse(path, f"a numpy array of {array.dtype}, which has no torch dtype")


def _step(key: object, index: int) -> str:
    return str(key) if type(key) in (str, int) else f"#{index}"


def _refuse(path: str, found: str) -> NoReturn:
    raise StateError(
        f"{path}: found {found}; expected plain values (numbers, strings, bytes, lists, tuples, dicts, sets, tensors, "
        "numpy arrays); return plain values from its state_dict()"
    )


_Take = Callable[[str], torch.Tensor]


def _sequence(kind: Callable[[Any], Any]) -> Callable[[Any, _Take], Any]:
    return lambda value, tensor: kind(decode(value, tensor))


def _pairs(kind: Callable[[Any], Any]) -> Callable[[Any, _Take], Any]:
    return lambda value, tensor: kind({decode(k, tensor): decode(v, tensor) for k, v in value})


def _base64(kind: Callable[[Any], Any]) -> Callable[[Any, _Take], Any]:
    return lambda value, _: kind(base64.b64decode(value, validate=True))


_DECODERS: dict[str, Callable[[Any, _Take], Any]] = {
    "$tensor": lambda name, tensor: tensor(name),
    "$array": lambda name, tensor: tensor(name).numpy(),
    "$int": lambda value, _: int(value, 16),
    "$float": lambda value, _: struct.unpack("<d", bytes.fromhex(value))[0],
    "$complex": lambda value, _: complex(*struct.unpack("<dd", bytes.fromhex(value))),
    "$scalar": lambda value, _: np.frombuffer(bytes.fromhex(value[1]), dtype=np.dtype(value[0]))[0],
    **{tag: _sequence(kind) for kind, tag in _SEQUENCES.items()},
    **{tag: _pairs(kind) for kind, tag in _MAPPINGS.items()},
    **{tag: _base64(kind) for kind, tag in _BYTES.items()},
}
