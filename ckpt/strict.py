"""Reading JSON that may be damaged or hostile: one meaning per text, no surprises from Python's lenient parser."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeGuard


def json_object(text: bytes | str) -> dict[str, Any]:
    """Parse one JSON object. Raises ValueError for anything else: other encodings than UTF-8, a key twice in one
    object, NaN and Infinity, nesting that exhausts the stack, integers of thousands of digits."""
    try:
        found = json.loads(
            text if isinstance(text, str) else text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors whose text may quote the input
        raise ValueError(str(error)[:100]) from None
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} instead of an object")
    return found


def is_count(value: object) -> TypeGuard[int]:
    """Whether `value` is a number from 0 to 2^63-1; `True` is not a number here."""
    return type(value) is int and 0 <= value < 2**63


def short(value: object) -> str:
    """`repr` for an error message, cut to 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits has no repr
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
