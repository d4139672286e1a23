"""Copies a rank's state into its slot, beside the training, and notices when the state changed meanwhile.

The lazy tensors of a plan are copied by the one `Worker` thread while forward and backward run. That thread must not
compete with the trainer for the interpreter, so it spends its time in single calls that release the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from ckptd.ckpt.client import Slot
from ckptd.ckpt.model import Version
from ckptd.integrations.sources import Plan, Source
from ckptd.integrations.tensors import Mapping, sample_of

T = TypeVar("T")


class Wires:
    """Trip wires on the sources of a plan: data pointer, version counter and a sample of the bytes.

    They are looked at in the trainer's thread, when no update is in progress, and prove that something was written, never
    that nothing was (fused optimizers and `.data` do not count versions, a sample sees 16 words).
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = [(source.name, source.live, sample_of(source.rows)) for source in sources]
        self._before: list[object] = []

    def arm(self) -> None:
        """Remember how the sources look now."""
        self._before = self._look()

    def tripped(self) -> list[str]:
        """The names of those that look different now."""
        found = zip(self._sources, self._before, self._look(), strict=True)
        return [name for (name, _, _), before, now in found if before != now]

    def _look(self) -> list[object]:
        return [
            (
                live.data_ptr(),
                -1 if live.is_inference() else live._version,  # noqa: SLF001 - torch offers no public counter
                b"" if sample is None else sample.tobytes(),
            )
            for _, live, sample in self._sources
        ]


@dataclass(frozen=True, slots=True)
class Capture:
    """What one image is made of: the plan's live tensors, and what was copied from the trainer's objects at once."""

    version: Version
    plan: Plan
    eager: list[torch.Tensor]
    document: bytes
    after: torch.cuda.Event | None


class Slots:
    """The slots of this rank, mapped once each; used on the worker thread."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[tuple[int, int], Plan, Mapping, list[torch.Tensor]]] = {}

    def fill(self, slot: Slot, capture: Capture) -> None:
        """Write the whole image. Raises CorruptionError when the slot's file is not what was announced."""
        plan = capture.plan
        mapping, targets = self._mapped(slot, plan)
        layout = plan.layout
        mapping.memory[: layout.data_start] = layout.header_for(capture.version)
        first, last = layout.spans[plan.document]
        mapping.memory[first:last] = capture.document.ljust(plan.capacity)
        sources = [source.rows for source in plan.sources] + capture.eager
        if capture.after is not None:
            side = torch.cuda.Stream(plan.device)  # type: ignore[no-untyped-call]
            side.wait_event(capture.after)
            with torch.cuda.stream(side):
                torch._foreach_copy_(targets, sources, non_blocking=True)
            side.synchronize()
        elif targets:
            torch._foreach_copy_(targets, sources)  # one call for all: the GIL is taken once, not once per tensor

    def _mapped(self, slot: Slot, plan: Plan) -> tuple[Mapping, list[torch.Tensor]]:
        held = self._open.get(slot.path)
        stat = slot.path.stat()
        identity = (stat.st_dev, stat.st_ino)  # a daemon that lost its slots makes new files under the old names
        if held is None or held[0] != identity or held[1] is not plan:
            for path in [path for path, other in self._open.items() if other[1] is not plan or path == slot.path]:
                del self._open[path]
            mapping = Mapping(slot.path, slot.size, write=True)
            held = self._open[slot.path] = (identity, plan, mapping, plan.targets(mapping))
        return held[2], held[3]


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
        while (work := self._jobs.get()) is not None:
            future, job = work
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - not handled here: it belongs to whoever holds the future
                future.set_exception(error)
