"""Copies a rank's state into its slot, beside the training, and notices when the state changed meanwhile.

A `Plan` says what of the state this rank copies and where it lies in the image; it is made once per layout. The lazy
tensors of a plan are copied by the one `Worker` thread while forward and backward run. That thread must not compete with
the trainer for the interpreter, so it spends its time in single calls that release the GIL.
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
from ckptd.ckpt.image import PAGE, Layout
from ckptd.ckpt.model import Version
from ckptd.ckpt.plan import Item, split
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.state import Leaf
from ckptd.integrations.tensors import Mapping, entry, plain, sample_of

T = TypeVar("T")
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

    def targets(self, mapping: Mapping) -> list[torch.Tensor]:
        """The places in a slot of the sources' rows, then of the eager tensors."""
        names = [source.name for source in self.sources] + self.eager_names
        return [mapping.tensor(self._at[name], self.layout.spans[name]) for name in names]


def _has_rows(tensor: torch.Tensor) -> bool:
    return tensor.dim() > 0 and tensor.numel() > 0


def _item(name: str, tensor: torch.Tensor) -> Item:
    rows = tensor.size(0) if _has_rows(tensor) else 1
    return Item(name, rows, tensor.numel() * tensor.element_size() // rows)


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
