"""Notices, at every step and for little, that the layout of the live tensors is no longer the plan's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import is_, is_not

import torch

from ckptd.integrations.sources import signature_of

_STOCK = {torch.Tensor, torch.nn.Parameter}


class Outline:
    """What stood where, and for the tensors among it where in memory each one lay, with its shape and strides.

    The trainer's thread looks at the objects, at each step; the rest is left to the worker until it has found a difference.
    For stock tensors that is one call each, `is_set_to` an alias; others are compared by what they say of themselves. The
    aliases keep the tensors' memory alive, so that no new object gets the place of an old one.
    """

    def __init__(self, found: Sequence[object]) -> None:
        """`found`: tensors and other values; of the others it only counts that they are no tensors."""
        self._found = list(found)
        tensors = list({id(thing): thing for thing in found if isinstance(thing, torch.Tensor)}.values())
        self._stock = [tensor for tensor in tensors if _is_stock(tensor)]
        self._places = [tensor.detach() for tensor in self._stock]
        self._odd = [tensor for tensor in tensors if not _is_stock(tensor)]
        self._signature = signature_of(self._odd)

    def same(self, found: Sequence[object]) -> bool:
        """Whether the same tensors stand in the same places."""
        return len(found) == len(self._found) and (all(map(is_, found, self._found)) or self._same_tensors(found))

    def in_place(self) -> bool:
        """Whether none of them was moved, reshaped or given other memory."""
        return all(map(torch.Tensor.is_set_to, self._stock, self._places)) and (
            not self._odd or signature_of(self._odd) == self._signature
        )

    def _same_tensors(self, found: Sequence[object]) -> bool:
        """A number in an optimizer's state is another object after each update."""
        changed = compress(zip(found, self._found, strict=True), map(is_not, found, self._found))
        return not any(isinstance(thing, torch.Tensor) for pair in changed for thing in pair)


def _is_stock(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in _STOCK
        and tensor.layout == torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not (tensor.is_conj() or tensor.is_neg())
    )
