"""Reads a pickle as a tree of plain values and of names that it wants called: nothing is imported, nothing is called.

For DCP's `.metadata`, which is a pickle of a few dataclasses. Whoever knows what to expect takes the tree apart; a name
that is not expected is just a name.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.strict import short

_OPCODES_MAX = 50_000_000
_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "UNICODE",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class Name:
    """What the pickle calls `module.qualname`."""

    path: str


@dataclass(slots=True, eq=False)
class Made:
    """What would have come of calling `name` with `arguments`, and of giving that `state`."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def tree_of(content: bytes) -> Any:
    """The tree of a pickle of protocol 0 to 5. Raises CorruptionError for opcodes that no plain dataclasses need.

    A dict is `Pairs`, what would have been made is `Made`.
    """
    reader = _Reader()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if number > _OPCODES_MAX:
                raise CorruptionError(f"the pickle has more than {_OPCODES_MAX} opcodes")
            reader.take(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, RecursionError) as error:
        raise CorruptionError(f"the pickle is damaged ({short(error)})") from error
    if len(reader.stack) != 1:
        raise CorruptionError(f"the pickle leaves {len(reader.stack)} values, expected one")
    return reader.stack[0]


class Pairs(list[tuple[Any, Any]]):
    """A dict, as pairs in their order: its keys may be things that were to be made."""

    def plain(self) -> dict[str, Any]:
        """The same with text for keys. Raises CorruptionError for another key."""
        found = {key: value for key, value in self if isinstance(key, str)}
        if len(found) != len(self):
            raise CorruptionError(f"a dict of {len(self)} pairs has other keys than texts, or one twice")
        return found


class _Reader:
    """The stack and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME", "STOP"):
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(Pairs() if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[len(self._memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[int(argument)])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack.append(tuple([self._pop() for _ in range(count)][::-1]))
        else:
            self._make(name, argument)

    def _make(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name == "GLOBAL":
            stack.append(Name(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            stack.append(Name(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = self._pop(), self._pop()
            if not isinstance(called, Name) or not isinstance(arguments, tuple):
                raise CorruptionError(f"the pickle calls a {type(called).__name__}")
            stack.append(Made(called.path, arguments))
        elif name == "BUILD":
            state = self._pop()
            if not isinstance(stack[-1], Made):
                raise CorruptionError(f"the pickle gives a {type(stack[-1]).__name__} a state")
            stack[-1].state = state
        elif name == "APPEND":
            value = self._pop()
            self._top(list).append(value)
        elif name == "APPENDS":
            values = self._marked()
            self._top(list).extend(values)
        elif name == "SETITEM":
            value, key = self._pop(), self._pop()
            self._top(Pairs).append((key, value))
        elif name == "SETITEMS":
            values = self._marked()
            self._top(Pairs).extend(zip(values[::2], values[1::2], strict=True))
        else:
            raise CorruptionError(f"the pickle has the opcode {name}, which no checkpoint's metadata needs")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise CorruptionError("the pickle takes a mark for a value")
        return value

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise CorruptionError(f"the pickle fills a {type(self.stack[-1]).__name__}, expected a {kind.__name__}")
        return self.stack[-1]

    def _marked(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        raise CorruptionError("the pickle lacks a mark")
