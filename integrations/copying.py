"""The bulk of one capture as batches, which the worker copies beside the training and the trainer helps with at the fence.

A batch is one call of torch for many tensors, with the interpreter's lock released: it is taken once per batch, not once
per tensor. A batch is small enough that whoever waits for the last one waits a few milliseconds.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

BATCH_BYTES = 16 << 20
Batch = tuple[list[torch.Tensor], list[torch.Tensor]]
"""Targets and sources, of the same shapes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one capture has to copy beside the training."""

    host: list[Batch] = field(default_factory=list)
    """From the CPU's memory."""
    device: list[Batch] = field(default_factory=list)
    """From a GPU's."""
    afterwards: list[Batch] = field(default_factory=list)
    """On the CPU, once the device's have arrived."""


def batches_of(
    targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor], limit: int = BATCH_BYTES
) -> list[Batch]:
    """Cut copies into batches of up to `limit` bytes, in order; a tensor that is larger, along its elements or rows."""
    made: list[Batch] = []
    room = 0
    for whole in zip(targets, sources, strict=True):
        for target, source in _cut(*whole, limit):
            if target.nbytes > room or not made:
                made.append(([], []))
                room = limit
            made[-1][0].append(target)
            made[-1][1].append(source)
            room -= target.nbytes
    return made


def _cut(target: torch.Tensor, source: torch.Tensor, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if target.nbytes <= limit or target.dim() == 0:
        yield target, source
        return
    if source.is_contiguous():
        target, source = target.view(-1), source.view(-1)
    rows = max(1, limit * target.size(0) // target.nbytes)
    for first in range(0, target.size(0), rows):
        count = min(rows, target.size(0) - first)
        yield target.narrow(0, first, count), source.narrow(0, first, count)


def copy_now(batch: Batch) -> None:
    """Copy between tensors on the CPU, in this thread."""
    torch._foreach_copy_(*batch)


class Copying:
    """The batches of one capture. Two threads may work on them; each batch is copied by one of them."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        """The names of sources that the worker has found written meanwhile."""
        self._todo: deque[Batch] = deque()
        self._offered = threading.Event()

    def offer(self, load: Load) -> None:
        """For the worker: this is to be copied. Called with an empty load, too, when there is nothing to do."""
        self._todo.extend(load.host)
        self._offered.set()

    def work(self) -> None:
        """Copy batches until none is left; the other thread may still be busy with its last one then.

        Raises what the copy raises; the remaining batches are dropped, as the image is worth nothing any more.
        """
        while True:
            try:
                batch = self._todo.popleft()
            except IndexError:
                return
            try:
                copy_now(batch)
            except RuntimeError:
                self._todo.clear()
                raise

    def help(self) -> None:
        """For the trainer, in the fence: what is left delays the update, so two threads copy it."""
        self._offered.wait()
        self.work()

    @property
    def waits(self) -> bool:
        """Whether the fence must wait until the worker has finished too."""
        return True

    def settle(self) -> None:
        """For the worker, after the fence: everything is there."""


def stay_on_one_core() -> None:
    """Keep torch's calls of this thread from using more threads: they are for the training.

    `torch.set_num_threads` would change it for the whole process; OpenMP's own call does for the calling thread only.
    Where torch has no OpenMP, nothing changes.
    """
    torch.get_num_threads()  # torch sets a thread's number at its first use, and must not do that later
    try:
        ctypes.CDLL(None).omp_set_num_threads(1)
    except (OSError, AttributeError):
        return
