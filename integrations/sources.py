"""What of the state a rank copies at each capture, and where it lies in the image: a `Plan`, made once per layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ckptd.ckpt.image import PAGE, Layout
from ckptd.ckpt.plan import Item, split
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.state import Leaf
from ckptd.integrations.tensors import Mapping, entry, plain

Spec = tuple[str, torch.dtype, torch.Size]


def own_name(name: str, rank: int) -> str:
    """The entry of a tensor that only this rank has. Rank 0's go without prefix, so that stock readers find them."""
    return name if rank == 0 else f"rank-{rank:05d}.{name}"


def document_name(rank: int) -> str:
    """The entry of the rank's JSON document."""
    return f"ckptd.state.rank-{rank:05d}"


def signature_of(tensors: Sequence[torch.Tensor]) -> tuple[object, ...]:
    """Differs when a tensor was added, removed, replaced, moved or reshaped. The plan keeps the tensors alive, so that
    no new object gets the id of an old one."""
    return tuple((id(t), t.data_ptr(), t.shape, t.stride()) for t in tensors)


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
        local = {leaf.name: plain(leaf.name, leaf.tensor) for leaf in leaves}
        shares = split([_item(leaf.name, local[leaf.name]) for leaf in leaves if leaf.replicated], ranks.world)
        mine = {share.name: (share.start, share.count) for share in shares[ranks.rank]}
        for leaf in leaves:
            if leaf.replicated and leaf.name not in mine:
                continue
            tensor = local[leaf.name]
            name = leaf.name if leaf.replicated else own_name(leaf.name, ranks.rank)
            rows = mine[leaf.name] if leaf.replicated and _has_rows(tensor) else None
            entries.append(entry(name, tensor, rows))
            self.sources.append(Source(name, leaf.tensor, tensor if rows is None else tensor.narrow(0, *rows)))
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


def _has_rows(tensor: torch.Tensor) -> bool:
    return tensor.dim() > 0 and tensor.numel() > 0


def _item(name: str, tensor: torch.Tensor) -> Item:
    rows = tensor.size(0) if _has_rows(tensor) else 1
    return Item(name, rows, tensor.numel() * tensor.element_size() // rows)
