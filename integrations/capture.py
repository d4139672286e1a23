"""Copies a rank's state into its slot, beside the training.

The lazy tensors of a plan are copied by the one `Worker` thread while forward and backward run. That thread must not
compete with the trainer for the interpreter, so it spends its time in single calls that release the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ckptd.ckpt.client import Slot
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.model import Version
from ckptd.integrations.copying import Batch, Copying, batches_of, copy_now, stay_on_one_core
from ckptd.integrations.roles import Roles
from ckptd.integrations.sources import Plan
from ckptd.integrations.staging import Loan
from ckptd.integrations.tensors import Mapping
from ckptd.integrations.wires import due

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Capture:
    """What one image is made of: live tensors by their roles, and what was copied from the trainer's objects at once."""

    version: Version
    plan: Plan
    roles: Roles
    staged: Sequence[torch.Tensor]
    """Copies of `roles.at_once`."""
    eager: Sequence[torch.Tensor]
    document: bytes
    after: torch.cuda.Event | None = None
    count: int = 0
    """The number of this capture, and when each frozen tensor last changed before: see `wires.Frozen`."""
    changed_at: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    loan: Loan = field(default_factory=Loan)


class Mapped:
    """A slot's file in this process, and what its places are."""

    def __init__(self, slot: Slot, identity: tuple[int, int, int], plan: Plan) -> None:
        self.identity = identity
        self.plan = plan
        self.mapping = Mapping(slot.path, slot.size, write=True)
        self._targets = dict(zip(plan.names, plan.targets(self.mapping), strict=True))
        self._roles: Roles | None = None
        self._lazy: list[Batch] = []
        self._held = np.zeros(0, dtype=np.int64)

    def batches(self, capture: Capture) -> list[Batch]:
        """What is to be copied beside the training: all that is lazy, and of the frozen tensors those that are due."""
        roles = capture.roles
        if self._roles is not roles:
            self._roles = roles
            self._lazy = batches_of(
                [self._targets[source.name] for source in roles.lazy], [source.rows for source in roles.lazy]
            )
            self._held = np.full(len(roles.frozen), -1, dtype=np.int64)
        again = [roles.frozen[at] for at in due(self._held, capture.count, capture.changed_at)]
        return self._lazy + batches_of(
            [self._targets[source.name] for source in again], [source.rows for source in again]
        )

    def small(self, capture: Capture) -> Batch:
        """What the trainer has copied already."""
        names = [source.name for source in capture.roles.at_once] + capture.plan.eager_names
        return [self._targets[name] for name in names], [*capture.staged, *capture.eager]

    def holds(self, capture: Capture) -> None:
        """The capture was committed: the frozen tensors that it copied need not be copied again."""
        if self._roles is capture.roles:
            self._held[due(self._held, capture.count, capture.changed_at)] = capture.count


class Slots:
    """The slots of this rank, mapped once each; used on the worker thread."""

    def __init__(self) -> None:
        self._open: dict[Path, Mapped] = {}

    def fill(self, slot: Slot, capture: Capture, copying: Copying) -> None:
        """Write the whole image. Raises CorruptionError when the slot's file is not what was announced."""
        mapped = self.mapped(slot, capture.plan)
        copying.offer(mapped.batches(capture))
        layout, memory = capture.plan.layout, mapped.mapping.memory
        memory[: layout.data_start] = layout.header_for(capture.version)
        first, last = layout.spans[capture.plan.document]
        memory[first:last] = capture.document.ljust(capture.plan.capacity)
        small = mapped.small(capture)
        if small[0]:
            copy_now(small)
        copying.work()
        capture.loan.give_back()

    def committed(self, slot: Slot, capture: Capture) -> None:
        """The image is recorded: what was copied into the slot stands there."""
        held = self._open.get(slot.path)
        if held is not None:
            held.holds(capture)

    def forget(self) -> None:
        """The daemon may have written into the slots: nothing that stands there is known any more."""
        self._open.clear()

    def mapped(self, slot: Slot, plan: Plan) -> Mapped:
        """The slot's mapping for this plan, made anew when the file is another one than before."""
        try:
            stat = slot.path.stat()
        except OSError as error:
            self._open.pop(slot.path, None)
            raise CorruptionError(
                f"{slot.path}: {error.strerror}, expected {slot.size} bytes; is the daemon's tmpfs gone?"
            ) from error
        identity = (stat.st_dev, stat.st_ino, stat.st_size)  # a daemon that lost its slots makes new files
        held = self._open.get(slot.path)
        if held is None or held.identity != identity or held.plan is not plan:
            for path in [path for path, other in self._open.items() if other.plan is not plan or path == slot.path]:
                del self._open[path]
            held = self._open[slot.path] = Mapped(slot, identity, plan)
        return held


class Worker:
    """One background thread that does jobs in order. All calls of the channel happen on it."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ckptd-capture", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Do `job` after all earlier ones; its result or exception is the future's."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def close(self, timeout_s: float) -> None:
        """Finish the jobs that were submitted and end, or give up after `timeout_s`."""
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        stay_on_one_core()
        while (work := self._jobs.get()) is not None:
            future, job = work
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - not handled here: it belongs to whoever holds the future
                future.set_exception(error)
