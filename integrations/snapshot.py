"""The images of one version as one set of tensors, put together from the parts that the ranks captured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from ckptd.ckpt.boxes import Box, tile
from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.image import Entry
from ckptd.ckpt.model import Version
from ckptd.integrations.images import Bring, Opened, all_here, fetch, open_images
from ckptd.integrations.shards import Part
from ckptd.integrations.tensors import dtype_of


class Snapshot:
    """All ranks' images of one version, mapped; tensors by the name of their entry, put together from their parts.

    Nothing is read here but headers: `read` touches those rows of an image that it copies, and no others.
    """

    def __init__(self, found: Sequence[Found], version: Version, job: str, world: int, bring: Bring = all_here) -> None:
        """`world` ranks captured it; `bring` is called for the bytes of an image before they are read.

        Raises CorruptionError when an image is not what it was announced as, or elements are missing or doubled.
        """
        self.version, self.job, self.world = version, job, world
        self._bring = bring
        self._here: set[tuple[str, Box]] = set()
        self._parts: dict[str, list[tuple[Entry, Opened]]] = {}
        self._images = open_images(found, version, job, world, bring)
        for image in self._images:
            for entry in image.header.entries:
                self._parts.setdefault(entry.name, []).append((entry, image))
        for name, parts in self._parts.items():
            _check_cover(name, [entry for entry, _ in parts])

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def entry(self, name: str) -> Entry:
        """One part of the tensor, which tells shape and dtype of the whole. Raises KeyError."""
        return self._parts[name][0][0]

    def fetch(self, wanted: Iterable[tuple[str, Box]]) -> None:
        """Have these boxes of tensors brought, with one question for all of them, so that `read` need not ask for each.

        Raises CkptdError.
        """
        new = set(wanted) - self._here
        if new:
            parts = ((entry, image, box) for name, box in new for entry, image in self._parts[name])
            met = ((entry, image, entry.box.meet(box)) for entry, image, box in parts)
            found = (
                stretch for entry, image, part in met if part for stretch in image.stretches(entry, part, entry.box)
            )
            fetch(self._images, found, self._bring)
            self._here |= new

    def read(self, name: str, into: torch.Tensor, wanted: Box) -> None:
        """Copy what lies in `wanted` of a tensor into one of that shape and of the same dtype."""
        with torch.no_grad():
            self.read_all([(name, into, wanted)])

    def read_all(self, reads: Sequence[tuple[str, torch.Tensor, Box]]) -> None:
        """As `read`, for many tensors, with few calls of torch. Call it where gradients are off."""
        self.fetch((name, wanted) for name, _, wanted in reads)
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        for name, into, wanted in reads:
            for target, source in self._copies(name, into, wanted):
                if target.is_conj() or target.is_neg():  # which torch's call for many refuses
                    target.copy_(source)
                    continue
                targets.append(target)
                sources.append(source)
        if targets:  # it refuses an empty list, too
            torch._foreach_copy_(targets, sources)

    def _copies(self, name: str, into: torch.Tensor, wanted: Box) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Which parts of a tensor, in images, belong to which parts of `into`."""
        written = 0
        for entry, image in self._parts[name]:
            common = entry.box.meet(wanted)
            if common is None:
                continue
            source = image.tensor(entry)[common.within(entry.box)]
            target = into[common.within(wanted)]
            for dim in _expanded(target):  # all its elements are one in memory: write that one
                target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
            yield target, source
            written += common.size
        assert written == wanted.size, f"{name}: found {written} of {wanted.size} elements, though the parts cover them"

    def box(self, name: str, wanted: Box) -> torch.Tensor:
        """A private copy of what lies in `wanted` of a tensor, on the CPU. Raises KeyError."""
        made = torch.empty(wanted.shape, dtype=dtype_of(self.entry(name)))
        self.read(name, made, wanted)
        return made

    def tensor(self, name: str) -> torch.Tensor:
        """A private copy of a whole tensor, on the CPU. Raises KeyError."""
        return self.box(name, self.whole(name))

    def whole(self, name: str) -> Box:
        """The box that holds all of a tensor. Raises KeyError."""
        return Box.whole(self.entry(name).whole)

    def mismatch(self, name: str, part: Part) -> str | None:
        """What keeps a part of the tensor from being read into the one that is there, in words."""
        entry, live = self.entry(name), part.local
        if entry.whole != part.whole or dtype_of(entry) != live.dtype:
            here = f"{str(live.dtype).removeprefix('torch.')} {list(part.whole)} here"
            return f"{name} ({entry.dtype_name} {list(entry.whole)} in the snapshot, {here})"
        expanded = _expanded(live)
        if expanded:
            raw = self.box(name, part.box).unsqueeze(-1).view(torch.uint8)
            if any(not torch.equal(raw, raw.narrow(dim, 0, 1).expand_as(raw)) for dim in expanded):
                return f"{name} (different elements in the snapshot, expanded from one here)"
        return None


def _expanded(tensor: torch.Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if tensor.stride(dim) == 0 and tensor.size(dim) > 1]


def _check_cover(name: str, entries: Sequence[Entry]) -> None:
    kinds = {(entry.whole, entry.dtype, entry.true_dtype) for entry in entries}
    if len(kinds) != 1 or not tile(entries[0].whole, [entry.box for entry in entries]):
        raise CorruptionError(
            f"{name}: the {len(entries)} parts in the images leave elements out, overlap or do not fit together; "
            "choose another step"
        )
