"""What can be told of torchdata's StatefulDataLoader before it goes wrong later: by its class's name, without importing it.

Its state is a `state_dict()` like any other. These are the two traps beside it: where its random seed comes from, and
that it fails without words, at its next iteration, when the number of its workers has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptd.integrations.journal import logger

_CLASS = "StatefulDataLoader"


def advise(objects: Mapping[str, object]) -> None:
    """Log what keeps a restart from being bit-identical, for each loader among the objects."""
    for name, thing in objects.items():
        if _is_loader(thing) and getattr(thing, "generator", None) is None:
            logger.warning(
                "ckptd: %s: found a loader without a generator, which draws from torch's global random numbers whenever an "
                "iteration begins, also once more after a restart: dropout then goes another way; give it "
                "generator=torch.Generator()",
                name,
            )


def mismatch(name: str, thing: object, state: Any) -> str | None:
    """What keeps a loader from taking up a captured state, in words; None where nothing is known to."""
    if not _is_loader(thing) or not isinstance(state, dict) or not state:
        return None
    workers, here = _workers_of(state), getattr(thing, "num_workers", None)
    return None if workers == here else f"{name} (num_workers={workers} in the snapshot, {here} here)"


def _workers_of(state: dict[str, Any]) -> Any:
    """The number of workers of the loader that made the state; where there are none, it has no snapshot of them."""
    if "_snapshot" not in state:
        return 0
    try:
        return state["_snapshot"]["_main_snapshot"]["_num_workers"]
    except (KeyError, TypeError):
        return "unknown"


def _is_loader(thing: object) -> bool:
    return any(base.__name__ == _CLASS for base in type(thing).__mro__)
