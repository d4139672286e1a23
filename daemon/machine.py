"""State machines as tables: state -> act -> next state. An act that is absent from a state's row is refused.

The tables are the whole truth about what may follow what; `docs/machines.md` is drawn from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

S = TypeVar("S")
Transitions = Mapping[S, Mapping[str, S]]


class IllegalAct(AssertionError):
    """An act that the state has no transition for: a bug in the caller. Names both; the state is unchanged."""


def follow(table: Transitions[S], state: S, act: str, who: object) -> S:
    """The state after `act`. Raises IllegalAct when the table has no such transition for `who`."""
    after = table[state].get(act)
    if after is None:
        known = ", ".join(table[state]) or "nothing"
        raise IllegalAct(f"{who}: {act} is not in the table for {state}; possible is {known}")
    return after
