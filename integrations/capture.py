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
import torch

from ckptd.ckpt.client import Slot
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.model import Version
from ckptd.integrations.copying import Batch, Copying, Load, batches_of, copy_now, stay_on_one_core
from ckptd.integrations.device import Pack, pin
from ckptd.integrations.outline import Outline
from ckptd.integrations.roles import Roles
from ckptd.integrations.sources import Plan, Source
from ckptd.integrations.staging import Loan
from ckptd.integrations.tensors import Mapping
from ckptd.integrations.wires import Armed, Due

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
    due: Due = field(default_factory=lambda: Due(0, np.zeros(0, dtype=np.int64)))
    """Which of `roles.frozen` have changed."""
    armed: Sequence[Armed] = ()
    outline: Outline | None = None
    """Where the tensors lay when the plan was made; None when the trainer has looked."""
    loan: Loan = field(default_factory=Loan)


class MovedError(StateError):
    """A tensor has other memory, shape or strides than when the plan was made, and only the worker noticed."""


class Mapped:
    """A slot's file in this process, and what its places are."""

    def __init__(self, slot: Slot, identity: tuple[int, int, int], plan: Plan) -> None:
        self.identity = identity
        self.plan = plan
        self.mapping = Mapping(slot.path, slot.size, write=True)
        self._targets = dict(zip(plan.names, plan.targets(self.mapping), strict=True))
        self._roles: Roles | None = None
        self._lazy = Load()
        self._held = np.zeros(0, dtype=np.int64)

    def load(self, capture: Capture, pack: Pack | None) -> Load:
        """What is to be copied beside the training: all that is lazy, and of the frozen tensors those that are due.

        From a GPU also the copies that were made there at once. `pack` holds the lazy tensors that are on it.
        """
        roles, device = capture.roles, capture.plan.device
        if self._roles is not roles:
            self._roles = roles
            there = self.places([source for source in roles.lazy if source.rows.device == device])
            here = [source for source in roles.lazy if source.rows.device != device]
            packed = Load() if pack is None else pack.load(there)
            host = batches_of(self.places(here), [source.rows for source in here])
            self._lazy = Load(host, packed.device, packed.afterwards)
            self._held = np.full(len(roles.frozen), -1, dtype=np.int64)
        again = [roles.frozen[at] for at in capture.due.of(self._held)]
        host = self._lazy.host + batches_of(self.places(again), [source.rows for source in again])
        if device is None:
            return Load(host)
        copies = batches_of(*self._at_once(capture, there=True))
        return Load(host, self._lazy.device + copies, self._lazy.afterwards)

    def small(self, capture: Capture) -> Batch:
        """What the trainer has copied already, as far as it is on the CPU."""
        return self._at_once(capture, there=False)

    def holds(self, capture: Capture) -> None:
        """The capture was committed: the frozen tensors that it copied need not be copied again."""
        if self._roles is capture.roles:
            self._held[capture.due.of(self._held)] = capture.due.count

    def places(self, sources: Sequence[Source]) -> list[torch.Tensor]:
        """Where they belong in the slot."""
        return [self._targets[source.name] for source in sources]

    def _at_once(self, capture: Capture, *, there: bool) -> Batch:
        """The copies that were made at once, those on the GPU or all others."""
        names = [source.name for source in capture.roles.at_once] + capture.plan.eager_names
        batch: Batch = ([], [])
        for name, copy in zip(names, [*capture.staged, *capture.eager], strict=True):
            if (copy.device == capture.plan.device) == there:
                batch[0].append(self._targets[name])
                batch[1].append(copy)
        return batch


class Slots:
    """The slots of this rank, mapped once each; used on the worker thread."""

    def __init__(self) -> None:
        self._open: dict[Path, Mapped] = {}
        self._pack: tuple[Roles, Pack] | None = None

    def fill(self, slot: Slot, capture: Capture, copying: Copying) -> None:
        """Write the whole image, except for what `copying` still launches.

        Raises CorruptionError when the slot's file is not what was announced, MovedError when the plan does not hold.
        """
        if capture.outline is not None and not capture.outline.in_place():
            raise MovedError(
                f"{capture.version} was discarded: tensors got other memory under the same objects, as `p.data = ...` does; "
                "the training thread looks for that at each step from now on"
            )
        mapped = self.mapped(slot, capture.plan)
        copying.offer(mapped.load(capture, self._packed(capture)))
        layout, memory = capture.plan.layout, mapped.mapping.memory
        memory[: layout.data_start] = layout.header_for(capture.version)
        first, last = layout.spans[capture.plan.document]
        memory[first:last] = capture.document.ljust(capture.plan.capacity)
        small = mapped.small(capture)
        if small[0]:
            copy_now(small)
        copying.work()
        look = Armed.by_all if capture.plan.device is None else Armed.by_words  # a GPU's copies are under way yet
        copying.seen += [name for armed in capture.armed for name in look(armed)]

    def committed(self, slot: Slot, capture: Capture) -> None:
        """The image is recorded: what was copied into the slot stands there."""
        held = self._open.get(slot.path)
        if held is not None:
            held.holds(capture)

    def pin(self, slots: Sequence[Slot], plan: Plan) -> None:
        """Map slots that are not yet, and let the driver copy into them."""
        new = [slot for slot in slots if slot.path not in self._open]
        pin([self.mapped(slot, plan).mapping for slot in new])

    def forget(self) -> None:
        """The daemon may have written into the slots: nothing that stands there is known any more."""
        self._open.clear()

    def _packed(self, capture: Capture) -> Pack | None:
        device = capture.plan.device
        if device is None:
            return None
        if self._pack is None or self._pack[0] is not capture.roles:
            there = [source.rows for source in capture.roles.lazy if source.rows.device == device]
            self._pack = (capture.roles, Pack(there, device))
        return self._pack[1]

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
