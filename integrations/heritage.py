"""What a rank takes over from a snapshot: which entries and which documents are its own.

`Heritage` is the question; `Same` answers it for a rank that comes back among as many as captured the snapshot,
`reshape.Reshaped` where there are more or fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch

from ckptd.ckpt.errors import StateError
from ckptd.ckpt.strict import json_object
from ckptd.integrations.loaders import mismatch
from ckptd.integrations.shards import Part, saved_layout
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.sources import document_name, is_of_a_rank, own_name
from ckptd.integrations.state import Stateful
from ckptd.integrations.tree import decode


class Heritage(Protocol):
    """Where one rank finds what it restores."""

    used: set[str]
    """The entries that were asked for."""
    refused: list[str]
    """What can't be taken over, by name and with the reason; all of it is said at once, and nothing is written."""
    notes: list[str]
    """What the user should know once everything was written."""

    def entry(self, name: str, first: int) -> str | None:
        """The entry of a tensor whose lowest holder is rank `first` now; None where there is none."""

    def entries(self, first: int) -> Iterator[tuple[str, str]]:
        """(name of the tensor, its entry) of all tensors whose lowest holder is rank `first` now."""

    def mismatch(self, entry: str, part: Part) -> str | None:
        """What keeps the entry from being read into this part of a tensor, in words."""

    def buffer_mismatch(self, entry: str, part: Part) -> str | None:
        """The same for a buffer, of which each rank has one of its own; `part` is that of a whole tensor."""

    def shared_buffer_mismatch(self, entry: str, part: Part) -> str | None:
        """The same for this rank's shard of a buffer that is a DTensor."""

    def layout(self, saved: Mapping[str, Any], name: str, key: str, entry: str, shape: tuple[int, ...]) -> str:
        """How a tensor of an optimizer's state is distributed; `shape` is that of its parameter here."""

    def plain(self, name: str) -> Any | None:
        """The encoded values of a model or an optimizer; None where the snapshot has none."""

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that `plain`'s values refer to."""

    def state(self, name: str, stateful: Stateful) -> Callable[[], object] | None:
        """What will bring an object's state back; None where the snapshot has none."""

    def surplus(self) -> list[str]:
        """The names of what nobody has asked for."""


class Same:
    """Every rank takes over what the rank of its number has captured."""

    def __init__(self, snapshot: Snapshot, rank: int) -> None:
        """Raises StateError when no Checkpointer captured the snapshot."""
        self.used: set[str] = set()
        self.refused: list[str] = []
        self.notes: list[str] = []
        self._snapshot, self._rank = snapshot, rank
        self._objects = document_of(snapshot, rank)

    def entry(self, name: str, first: int) -> str | None:
        found = own_name(name, first)
        return found if found in self._snapshot else None

    def entries(self, first: int) -> Iterator[tuple[str, str]]:
        prefix = own_name("", first)
        return ((entry[len(prefix) :], entry) for entry in self._snapshot if entry.startswith(prefix))

    def mismatch(self, entry: str, part: Part) -> str | None:
        return self._snapshot.mismatch(entry, part)

    buffer_mismatch = shared_buffer_mismatch = mismatch

    def layout(self, saved: Mapping[str, Any], name: str, key: str, entry: str, shape: tuple[int, ...]) -> str:
        return saved_layout(saved, name, key)

    def plain(self, name: str) -> Any | None:
        return self._objects.pop(name, None)

    def tensor(self, name: str) -> torch.Tensor:
        entry = own_name(name, self._rank)
        self.used.add(entry)
        return self._snapshot.tensor(entry)

    def state(self, name: str, stateful: Stateful) -> Callable[[], object] | None:
        if name not in self._objects:
            return None
        return taking_up(name, stateful, decode(self._objects.pop(name), self.tensor), self.refused)

    def surplus(self) -> list[str]:
        prefix = own_name("", self._rank)
        mine = {n for n in self._snapshot if (n.startswith(prefix) if prefix else not is_of_a_rank(n))}
        return sorted(self._objects) + sorted(mine - self.used)


def taking_up(name: str, stateful: Stateful, saved: Any, refused: list[str]) -> Callable[[], object]:
    """What will give an object its state; what is known to keep it from taking that up is added to `refused`."""
    problem = mismatch(name, stateful, saved)
    if problem:
        refused.append(problem)
    return partial(stateful.load_state_dict, saved)


def document_of(snapshot: Snapshot, rank: int) -> dict[str, Any]:
    """What is no tensor of the state of the rank that captured it, by object.

    Raises StateError when no Checkpointer captured the snapshot.
    """
    document = document_name(rank)
    if document not in snapshot:
        raise StateError(f"found no {document} in the snapshot: no Checkpointer captured it; load it by ckptd.dcp.load")
    return json_object(bytes(snapshot.tensor(document).numpy()))
