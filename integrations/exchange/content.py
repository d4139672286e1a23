"""What is carried from one format to another: tensors in parts that are read when they are needed, and plain values.

Nothing here knows a format. A reader makes a `Content`, a writer takes it apart piece by piece, so that neither holds more
than one part, or one band of rows, in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ckptd.ckpt.boxes import Box, tile
from ckptd.ckpt.errors import CorruptionError, StateError, UsageError
from ckptd.ckpt.image import Entry, entry_of
from ckptd.ckpt.strict import short

BAND = 64 * 1024 * 1024
"""Bytes of a tensor that are joined and written at once."""
_RANK = "rank-"
Add = Callable[[int], None]
Way = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The elements of a tensor that lie in `box`; `read` gives them, of the box's shape, on the CPU."""

    box: Box
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor whose parts hold each of its elements once."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @staticmethod
    def of(name: str, dtype: torch.dtype, shape: tuple[int, ...], parts: tuple[Part, ...]) -> Whole:
        """Raises CorruptionError when the parts leave elements out or overlap."""
        boxes = [part.box for part in parts]
        within = all(len(box.offsets) == len(box.shape) == len(shape) and not _beyond(box, shape) for box in boxes)
        if not parts or not within or not tile(shape, boxes):
            raise CorruptionError(
                f"{short(name)}: its {len(parts)} parts do not make up {list(shape)}, each element once; "
                "write the checkpoint again, or take another one"
            )
        filled = tuple(part for part in parts if part.box.size) or (
            Part(Box.whole(shape), partial(torch.empty, shape, dtype=dtype)),
        )
        return Whole(name, dtype, shape, filled)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def entry(self) -> Entry:
        """How it stands, whole, in a safetensors file."""
        return entry_of(self.name, str(self.dtype).removeprefix("torch."), self.dtype.itemsize, self.shape)

    def bands(self) -> Iterator[torch.Tensor]:
        """Its elements in row-major order, contiguous, `BAND` bytes or one row at a time."""
        if not self.nbytes:
            return
        if not self.shape:
            yield self._band(Box.whole(()))
            return
        rows = max(1, BAND * self.shape[0] // self.nbytes)
        for first in range(0, self.shape[0], rows):
            yield self._band(Box.whole(self.shape).rows(first, min(rows, self.shape[0] - first)))

    def _band(self, wanted: Box) -> torch.Tensor:
        if len(self.parts) == 1:
            return self.parts[0].read()[wanted.within(self.parts[0].box)].contiguous()
        made = torch.empty(wanted.shape, dtype=self.dtype)
        for part in self.parts:
            common = part.box.meet(wanted)
            if common is not None:
                made[common.within(wanted)].copy_(part.read()[common.within(part.box)])
        return made

    def copy_to(self, target: torch.Tensor) -> None:
        """Write all elements into a tensor of the same shape and dtype, a part at a time."""
        for part in self.parts:
            if part.box.size:
                target[part.box.within(Box.whole(self.shape))].copy_(part.read())


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that a checkpoint holds."""

    tensors: tuple[Whole, ...]
    """By name."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """What is no tensor, as DCP's planner writes it: the bytes of `torch.save`. Nobody here looks inside."""
    paths: dict[str, Way] = field(default_factory=dict)
    """The way to a name in the nested state, where there is one."""
    step: int | None = None
    """The number of finished updates, where the files say it."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors) + sum(map(len, self.objects.values()))

    def select(self, part: str | None, strip: str) -> Content:
        """What belongs to the object of that name, under its own names; then without `strip` where a name begins so.

        A name that several ranks have for themselves is taken from the lowest of them. Raises UsageError when nothing is
        left, when no name begins with `strip`, or when two tensors would get one name.
        """
        chosen = {tensor.name: tensor for tensor in self.tensors}
        if part is not None:
            chosen = _part(chosen, f"{part}.")
            if not chosen:
                known = sorted({tensor.name.split(".", 1)[0] for tensor in self.tensors} - {"ckptd"})
                raise UsageError(f"no tensor's name begins with {part!r} and a dot; there are: {', '.join(known[:10])}")
        if strip:
            chosen = _stripped(chosen, strip)
        if part is None and not strip:
            return self
        tensors = tuple(replace(tensor, name=name) for name, tensor in sorted(chosen.items()))
        return Content(tensors, step=self.step)


def _beyond(box: Box, shape: tuple[int, ...]) -> bool:
    return any(first + count > length for first, count, length in zip(box.offsets, box.shape, shape, strict=True))


def _part(tensors: dict[str, Whole], prefix: str) -> dict[str, Whole]:
    found: dict[str, Whole] = {}
    for name in sorted(tensors, key=lambda name: (name.startswith(_RANK), name)):  # rank 0's have no prefix
        rank, _, rest = name.partition(".") if name.startswith(_RANK) else ("", "", name)
        if rest.startswith(prefix) and (not rank or rank.removeprefix(_RANK).isdigit()):
            found.setdefault(rest.removeprefix(prefix), tensors[name])
    return found


def _stripped(tensors: dict[str, Whole], prefix: str) -> dict[str, Whole]:
    if not any(name.startswith(prefix) for name in tensors):
        raise UsageError(f"no name begins with {prefix!r}; the first is {min(tensors, default='')!r}")
    found: dict[str, Whole] = {}
    for name, tensor in tensors.items():
        short_name = name.removeprefix(prefix)
        if not short_name or short_name in found:
            raise UsageError(f"without {prefix!r} {name!r} would have the name of another tensor, or none; strip less")
        found[short_name] = tensor
    return found


def check_name(name: str) -> str:
    """A tensor's name from outside. Raises StateError for what no safetensors file can hold."""
    if not name or name == "__metadata__" or len(name) > 4096 or not name.isprintable():
        raise StateError(
            f"found the name {short(name)}, expected printable characters other than __metadata__; rename it"
        )
    return name
