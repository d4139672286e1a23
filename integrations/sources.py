"""What of the state a rank copies at each capture, and where it lies in the image: a `Plan`, made once per layout."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ckptd.ckpt.image import PAGE, Layout
from ckptd.ckpt.plan import Item, Share, split
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.shards import Part, memory_of, part_of
from ckptd.integrations.state import Leaf
from ckptd.integrations.tensors import Mapping, entry

Spec = tuple[str, torch.dtype, torch.Size]
_OF_A_RANK = re.compile(r"(?:rank-(\d{5,})|ckptd)\.")


def own_name(name: str, rank: int) -> str:
    """The entry of a tensor that is this rank's, or that this rank and others after it hold parts of.

    Rank 0's go without prefix, so that stock readers find them.
    """
    return name if rank == 0 else f"rank-{rank:05d}.{name}"


def is_of_a_rank(entry: str) -> bool:
    """Whether the entry is a document, or `own_name` gave it the prefix of a rank other than 0."""
    return _OF_A_RANK.match(entry) is not None


def owner_of(entry: str) -> tuple[int, str]:
    """The rank whose name `own_name` gave to the entry, and that of the tensor. Says nothing of documents."""
    match = _OF_A_RANK.match(entry)
    return (0, entry) if match is None or match[1] is None else (int(match[1]), entry[match.end() :])


def document_name(rank: int) -> str:
    """The entry of the rank's JSON document."""
    return f"ckptd.state.rank-{rank:05d}"


def signature_of(tensors: Sequence[torch.Tensor]) -> tuple[object, ...]:
    """Differs when a tensor was added, removed, replaced, moved or reshaped. The plan keeps the tensors alive, so that
    no new object gets the id of an old one."""
    seen = ((id(tensor), memory_of(tensor)) for tensor in tensors)
    return tuple((name, memory.data_ptr(), memory.shape, memory.stride()) for name, memory in seen)


def specs_of(eager: dict[str, torch.Tensor]) -> list[Spec]:
    """The layout of eager tensors, which are other objects at each capture."""
    return [(name, tensor.dtype, tensor.shape) for name, tensor in eager.items()]


@dataclass(frozen=True, slots=True)
class Source:
    """A lazy tensor, and a view of those rows of it that this rank copies."""

    name: str
    live: torch.Tensor
    rows: torch.Tensor


class Plan:
    """What this rank copies at each capture of one state layout, and where to."""

    def __init__(
        self, leaves: Sequence[Leaf], eager: dict[str, torch.Tensor], document_bytes: int, *, job: str, ranks: Ranks
    ) -> None:
        """Room for the document is `document_bytes`, rounded up to pages. Raises StateError for tensors that cannot be
        captured."""
        self._leaves = tuple(leaves)  # kept alive: see `signature_of`
        self.specs = specs_of(eager)
        self.capacity = -(-document_bytes // PAGE) * PAGE
        self.eager_names = [own_name(name, ranks.rank) for name in eager]
        self.document = document_name(ranks.rank)
        self.sources: list[Source] = []
        entries = [entry(name, tensor) for name, tensor in zip(self.eager_names, eager.values(), strict=True)]
        entries.append(entry(self.document, torch.empty(self.capacity, dtype=torch.uint8)))
        parts = {leaf.name: part_of(leaf.name, leaf.tensor, leaf.replicas) for leaf in leaves}
        shares = _shares(parts, ranks.rank)
        for leaf in leaves:
            share = shares.get(leaf.name)
            if share is None:
                continue
            part = parts[leaf.name]
            name = own_name(leaf.name, part.holders[0])
            if not part.box.size:
                entries.append(entry(name, part.local, part.whole))  # of nothing, this rank has all
                continue
            box, rows = part.box, part.local
            if box.shape:
                box, rows = box.rows(share.start, share.count), rows.narrow(0, share.start, share.count)
            entries.append(entry(name, rows, part.whole, box))
            self.sources.append(Source(name, leaf.tensor, rows))
        self.layout = Layout.of(entries, job=job, rank=ranks.rank, world=ranks.world)
        self._at = {entry.name: entry for entry in self.layout.entries}
        self.device = next((source.rows.device for source in self.sources if source.rows.is_cuda), None)

    def fits(self, eager: dict[str, torch.Tensor], document: bytes) -> bool:
        """Whether this capture's eager part has the plan's layout."""
        return len(document) <= self.capacity and specs_of(eager) == self.specs

    def mark(self) -> torch.cuda.Event | None:
        """On CUDA: the moment up to which the trainer's kernels belong to the state; the copies wait for it."""
        if self.device is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    @property
    def names(self) -> list[str]:
        """The entries of the sources, then of the eager tensors."""
        return [source.name for source in self.sources] + self.eager_names

    def targets(self, mapping: Mapping) -> list[torch.Tensor]:
        """The places in a slot of what `names` names."""
        return [mapping.tensor(self._at[name], self.layout.spans[name]) for name in self.names]


def _shares(parts: dict[str, Part], rank: int) -> dict[str, Share]:
    """What this rank captures of the parts that it holds, by name.

    What the same ranks hold alike is split between them, and each of them comes to the same split. Nobody writes an empty
    part, except that the first holder of an empty tensor says that there is one.
    """
    pools: dict[tuple[int, ...], list[Item]] = {}
    for name, part in parts.items():
        rows = part.box.shape[0] if part.box.shape else 1
        if part.box.size:
            item = Item(name, rows, part.box.size * part.local.element_size() // rows)
            pools.setdefault(part.replicas, []).append(item)
        elif math.prod(part.whole) == 0 and part.holders[0] == rank:
            pools.setdefault((rank,), []).append(Item(name, 1, 0))
    mine = [share for same, items in pools.items() for share in split(items, len(same))[same.index(rank)]]
    return {share.name: share for share in mine}
