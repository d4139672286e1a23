"""What a rank takes over when another number of ranks comes back than captured the snapshot.

    what                                          where it comes from
    parameters, optimizer state, split or whole   the boxes of all images that overlap with what this rank holds
    what each rank has of its own: plain tensors  all old ranks have it alike: that; else it is refused by name
    and values of models and optimizers
    buffers                                       rank 0's; if they differed, a warning says so
    an object with `reshape_state_dict`           what that makes of all ranks' states
    another object with a state_dict()            all old ranks have it alike: that; else it is refused by name
    random numbers                                all old ranks have them alike: those; else those of the rank of the
                                                  same number, and where there was none, a seed that follows from
                                                  the snapshot and the rank, and a warning

A rank compares no more than the parts that it reads itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import xxhash

from ckptd.ckpt.boxes import Box
from ckptd.integrations.heritage import document_of, taking_up
from ckptd.integrations.rng import Generators
from ckptd.integrations.shards import PLAIN, Part, saved_layout
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.sources import document_name, own_name, owner_of
from ckptd.integrations.state import Stateful
from ckptd.integrations.tree import decode, references

_MOST = 5
_SMALL = 64 * 1024
"""Bytes. What ranks have of their own and is no larger, as an optimizer's steps, is brought at once and not one by one."""


@runtime_checkable
class Reshapable(Protocol):
    """An object whose state belongs to a rank and that knows what becomes of it among more or fewer ranks."""

    def reshape_state_dict(self, states: Sequence[Any], *, rank: int, world: int) -> Any:
        """What `load_state_dict` will be given on `rank` of `world`, from what `state_dict()` was on each of the old ranks,
        in their order. Called on every rank before anything has changed; it may not change the object."""


class Reshaped:
    """For one rank of `world`, from a snapshot of any number of ranks."""

    def __init__(self, snapshot: Snapshot, rank: int, world: int) -> None:
        """Raises StateError when no Checkpointer captured the snapshot."""
        self.used: set[str] = set()
        self.refused: list[str] = []
        self.notes: list[str] = []
        self._snapshot, self._rank, self._world = snapshot, rank, world
        told = {document_name(old): old for old in range(snapshot.world)}
        snapshot.fetch((name, snapshot.whole(name)) for name in told if name in snapshot)
        self._documents = [document_of(snapshot, old) for old in told.values()]
        self._entries: dict[str, list[str]] = {}
        """By the name of the tensor: the entries of those who captured one of their own, in the order of ranks."""
        for _, name, entry in sorted((*owner_of(entry), entry) for entry in snapshot if entry not in told):
            self._entries.setdefault(name, []).append(entry)
        small = [entry for entries in self._entries.values() if len(entries) > 1 for entry in entries]
        small = [entry for entry in small if snapshot.entry(entry).nbytes <= _SMALL]
        snapshot.fetch((entry, snapshot.whole(entry)) for entry in small)
        self._unlike: list[str] = []
        self._asked: set[str] = set()

    def entry(self, name: str, first: int) -> str | None:
        return self._entries[name][0] if name in self._entries else None

    def entries(self, first: int) -> Iterator[tuple[str, str]]:
        return ((name, entries[0]) for name, entries in self._entries.items())

    def mismatch(self, entry: str, part: Part) -> str | None:
        problem = self._snapshot.mismatch(entry, part)
        if problem is None and not self._alike(self._rivals(entry), part.box):
            problem = f"{_owners(self._rivals(entry))} have different {owner_of(entry)[1]}"
        return problem

    shared_buffer_mismatch = mismatch

    def buffer_mismatch(self, entry: str, part: Part) -> str | None:
        problem = self._snapshot.mismatch(entry, part)
        if problem is None and self._rank == 0 and not self._alike(self._rivals(entry), part.box):
            self._unlike.append(owner_of(entry)[1])
            self.notes = [note for note in self.notes if not note.startswith("the buffers")]
            self.notes.append(f"the buffers {_listed(self._unlike)} differed between the ranks; all take rank 0's")
        return problem

    def layout(self, saved: Mapping[str, Any], name: str, key: str, entry: str, shape: tuple[int, ...]) -> str:
        # Where parameters were plain, nothing was said: what is shaped as its parameter is now distributed like it.
        if not saved.get("layouts") and self._snapshot.entry(entry).whole != shape:
            return PLAIN
        return saved_layout(saved, name, key)

    def plain(self, name: str) -> Any | None:
        trees = self._trees(name)
        if trees is not None and not self._told_alike(trees):
            self.refused.append(f"{name} (what is no tensor in it differs between the ranks of the snapshot)")
        return None if trees is None else trees[0]

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensor_of(0, name)

    def state(self, name: str, stateful: Stateful) -> Callable[[], object] | None:
        trees = self._trees(name)
        if trees is None:
            return None
        if isinstance(stateful, Reshapable):
            states = [decode(tree, partial(self._tensor_of, old)) for old, tree in enumerate(trees)]
            made = stateful.reshape_state_dict(states, rank=self._rank, world=self._world)
            return partial(stateful.load_state_dict, made)
        old = 0
        if not self._told_alike(trees):
            if not isinstance(stateful, Generators):
                self.refused.append(
                    f"{name} (its state differs between the {len(trees)} ranks of the snapshot: give the object "
                    f"reshape_state_dict(states, *, rank, world), or start {len(trees)} ranks)"
                )
            elif self._rank < len(trees):
                old = self._rank
            else:
                return self._reseeding(stateful)
        return taking_up(name, stateful, decode(trees[old], partial(self._tensor_of, old)), self.refused)

    def surplus(self) -> list[str]:
        told = {name for document in self._documents for name in document}
        used = {owner_of(entry)[1] for entry in self.used}
        return sorted(told - self._asked) + sorted(self._entries.keys() - used)

    # ---- what the old ranks have alike ----------------------------------------------------------------

    def _rivals(self, entry: str) -> list[str]:
        return self._entries[owner_of(entry)[1]]

    def _alike(self, entries: Sequence[str], box: Box | None = None) -> bool:
        """Whether entries have the same shape, and the same bits in a box, or everywhere."""
        first, *others = (self._snapshot.entry(entry) for entry in entries)
        kinds = {(entry.whole, entry.dtype, entry.true_dtype) for entry in (first, *others)}
        if len(kinds) > 1:
            return False
        wanted = self._snapshot.whole(entries[0]) if box is None else box
        if not others or not wanted.size:
            return True
        self._snapshot.fetch((entry, wanted) for entry in entries)
        expected = _bits(self._snapshot.box(entries[0], wanted))
        return all(torch.equal(_bits(self._snapshot.box(entry, wanted)), expected) for entry in entries[1:])

    def _trees(self, name: str) -> list[Any] | None:
        """What each old rank said of an object. None where one of them had none; then that is missing, or surplus."""
        if not all(name in document for document in self._documents):
            return None
        self._asked.add(name)
        trees = [document[name] for document in self._documents]
        self.used.update(own_name(ref, old) for old, tree in enumerate(trees) for ref in references(tree))
        return trees

    def _told_alike(self, trees: Sequence[Any]) -> bool:
        """Whether the old ranks have said the same, the tensors that they refer to included."""
        if len({json.dumps(tree, sort_keys=True) for tree in trees}) > 1:
            return False
        names = set(references(trees[0]))
        return all(self._alike([own_name(name, old) for old in range(len(trees))]) for name in sorted(names))

    def _tensor_of(self, old: int, name: str) -> torch.Tensor:
        return self._snapshot.tensor(own_name(name, old))

    # ---- random numbers -------------------------------------------------------------------------------

    def _reseeding(self, generators: Generators) -> Callable[[], object]:
        snapshot = self._snapshot
        named = f"{snapshot.job}/{snapshot.version.epoch}/{snapshot.version.step}/{self._rank}"
        self.notes.append(
            f"rank {self._rank} has no predecessor among the {snapshot.world} ranks of the snapshot; its random numbers "
            "begin anew, from a seed that follows from job, step and rank"
        )
        return partial(generators.reseed, xxhash.xxh3_64_intdigest(named.encode()))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as bytes: not-a-number equals itself, and zero has a sign."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _owners(entries: Iterable[str]) -> str:
    return f"ranks {_listed([str(owner_of(entry)[0]) for entry in entries])}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
