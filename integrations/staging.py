"""Private memory for what is copied at once; it is used again, so that a capture allocates nothing."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

_SPEC = [attrgetter(name) for name in ("shape", "dtype", "device")]


class Staging:
    """Copies of tensors, made at once on their own device by one call. The trainer's thread takes, the worker gives back."""

    def __init__(self) -> None:
        self._free: defaultdict[Any, deque[list[torch.Tensor]]] = defaultdict(deque)
        self._lent: list[tuple[Any, list[torch.Tensor]]] = []

    def copies_of(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Dense, contiguous copies, valid until the loan is given back. On CUDA they are ordered in the current stream."""
        if not tensors:
            return []
        spec = tuple(tuple(map(get, tensors)) for get in _SPEC)
        free = self._free[spec]
        copies = free.popleft() if free else [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]
        with torch.no_grad():
            torch._foreach_copy_(copies, list(tensors))
        self._lent.append((spec, copies))
        return copies

    def loan(self) -> Loan:
        """Everything that was copied since the last call."""
        lent, self._lent = self._lent, []
        return Loan(self, lent)

    def take_back(self, lent: list[tuple[Any, list[torch.Tensor]]]) -> None:
        """These copies were read and may be overwritten."""
        for spec, copies in lent:
            self._free[spec].append(copies)


class Loan:
    """The copies of one capture. What is never given back is memory that will be freed, and no harm."""

    def __init__(self, staging: Staging | None = None, lent: Sequence[tuple[Any, list[torch.Tensor]]] = ()) -> None:
        self._staging = staging
        self._lent = list(lent)

    def give_back(self) -> None:
        """Nobody reads these copies any more. A second call does nothing."""
        lent, self._lent = self._lent, []
        if self._staging is not None:
            self._staging.take_back(lent)
