"""Captures from a GPU: copies on one side stream, paced, fenced on the device; and the slots' pages pinned.

Nothing here makes the trainer's thread wait for a copy. The worker launches the copies behind an event of `step`, a few
batches ahead of what has arrived, so that a transfer of the training never queues behind gigabytes. At the fence whoever
comes first launches the rest, the training's stream waits for the side stream on the device, and the worker goes on with
the commit when the last byte has arrived.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from ckptd.integrations.copying import Batch, Copying, Load, batches_of, copy_now
from ckptd.integrations.sources import Source
from ckptd.integrations.tensors import Mapping

logger = logging.getLogger("ckptd")
_SMALL_BYTES = 256 << 10
_ALIGNED = 16
_RUN_BYTES = 64
_AHEAD = 2
"""Batches that are launched and have not arrived."""


class Lane:
    """The side stream of one device, which all captures use in turn."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        """`cuda`: torch.cuda, or what stands in for it in tests."""
        self.device = device
        self.cuda = cuda
        self.stream = cuda.Stream(device)
        self.launching = threading.Lock()

    def launch(self, batch: Batch) -> Any:
        """Launch copies on the side stream; return the event of their arrival. Hold `launching`."""
        with self.cuda.stream(self.stream):
            torch._foreach_copy_(*batch, non_blocking=True)
        return self.mark()

    def mark(self) -> Any:
        """An event of everything that was launched so far."""
        event = self.cuda.Event()
        event.record(self.stream)
        return event


class Launching(Copying):
    """The same for a capture from a GPU: there both threads only launch, and the trainer waits for nothing.

    What the state has on the CPU beside it is copied as ever.
    """

    def __init__(self, lane: Lane, after: Any) -> None:
        """Copy what the device holds at the event `after`."""
        super().__init__()
        self._lane = lane
        self._after = after
        self._launches: deque[Batch] = deque()
        self._afterwards: list[Batch] = []
        self._hurry = False
        self._waits = False
        self._done: Any = None

    @property
    def waits(self) -> bool:
        """Only where a part of the state is on the CPU."""
        return self._waits

    def offer(self, load: Load) -> None:
        self._waits = self._waits or bool(load.host)
        if load.device:
            self._lane.stream.wait_event(self._after)
        self._launches.extend(load.device)
        self._afterwards.extend(load.afterwards)
        super().offer(load)

    def work(self) -> None:
        """Launch a few batches ahead of what has arrived, until the fence calls for hurry; then copy the CPU's."""
        flying: deque[Any] = deque()
        while not self._hurry and (event := self._launch_next()) is not None:
            flying.append(event)
            if len(flying) > _AHEAD:
                flying.popleft().synchronize()
        super().work()

    def help(self) -> None:
        """Launch the rest, and let the training's stream wait for all of it on the device."""
        self._offered.wait()
        self._hurry = True
        while self._launch_next() is not None:
            pass
        with self._lane.launching:
            self._done = self._lane.mark()
        self._lane.cuda.current_stream(self._lane.device).wait_event(self._done)
        Copying.work(self)

    def settle(self) -> None:
        """Wait for the last byte, then do what was to be done afterwards."""
        self._done.synchronize()
        for batch in self._afterwards:
            copy_now(batch)

    def _launch_next(self) -> Any:
        with self._lane.launching:
            try:
                batch = self._launches.popleft()
            except IndexError:
                return None
            return self._lane.launch(batch)


class Pack:
    """Small tensors of a device in one piece, as a launch costs microseconds however little it copies.

    One launch for many of them gathers their bytes on the device, one copy brings these to pinned memory, and the worker
    spreads them over the slot.
    """

    def __init__(self, sources: Sequence[torch.Tensor], device: torch.device) -> None:
        """Of `sources`, which are on `device`, it takes those that are small."""
        self._at = [at for at, source in enumerate(sources) if _is_small(source)]
        self._rest = [at for at, source in enumerate(sources) if not _is_small(source)]
        small = [sources[at] for at in self._at]
        ends = list(accumulate((-(-source.nbytes // _ALIGNED) * _ALIGNED for source in small), initial=0))
        self._there = torch.empty(ends[-1], dtype=torch.uint8, device=device)
        self._here = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._bytes = [source.view(-1).view(torch.uint8) for source in small]  # one dtype: one launch for all
        self._parts = [self._there[first : first + len(raw)] for first, raw in zip(ends, self._bytes, strict=False)]
        self._views = [
            self._here[first : first + source.nbytes].view(source.dtype).view(source.shape)
            for first, source in zip(ends, small, strict=False)
        ]
        self._large = [sources[at] for at in self._rest]

    def load(self, targets: Sequence[torch.Tensor]) -> Load:
        """Gather, bring over, and the large ones as they are; afterwards spread. `targets` in the order of the sources."""
        device = batches_of([targets[at] for at in self._rest], self._large)
        if not self._at:
            return Load(device=device)
        packed = [(self._parts, self._bytes), ([self._here], [self._there])]
        return Load(device=[*packed, *device], afterwards=[([targets[at] for at in self._at], self._views)])


def _is_small(tensor: torch.Tensor) -> bool:
    return tensor.nbytes <= _SMALL_BYTES and _has_bytes(tensor)


class Probes:
    """Looks at tensors of a device: 64 bytes of each, gathered by one launch for many and compared on the device.

    All of it is ordered in the training's stream, so it sees what the copies must see; the host learns of it later.
    """

    def __init__(self, sources: Sequence[Source], device: torch.device) -> None:
        """Those of `sources` that are on `device`, if they can be looked at."""
        chosen = [(at, s.rows) for at, s in enumerate(sources) if s.rows.device == device and _has_bytes(s.rows)]
        self._at = [at for at, _ in chosen]
        self._runs = [_run_of(rows) for _, rows in chosen]
        self._looks = [torch.zeros(len(chosen), _RUN_BYTES, dtype=torch.uint8, device=device) for _ in range(2)]
        self._parts = [[look[at, : len(run)] for at, run in enumerate(self._runs)] for look in self._looks]
        self.arm()

    def arm(self) -> None:
        """Remember how they look now."""
        if self._runs:
            torch._foreach_copy_(self._parts[0], self._runs)

    def changed(self) -> torch.Tensor:
        """On the device, for each tensor that can be looked at: whether it looks different now. See `indexes`."""
        if self._runs:
            torch._foreach_copy_(self._parts[1], self._runs)
        return (self._looks[0] != self._looks[1]).any(dim=1)

    def indexes(self, changed: torch.Tensor) -> list[int]:
        """Which of the sources those are. Waits for the device."""
        return [self._at[at] for at in changed.nonzero().flatten().tolist()]


def _has_bytes(rows: torch.Tensor) -> bool:
    return rows.numel() > 0 and rows.is_contiguous() and not (rows.is_conj() or rows.is_neg())


def _run_of(rows: torch.Tensor) -> torch.Tensor:
    raw = rows.view(-1).view(torch.uint8)
    first = (len(raw) - _RUN_BYTES) // 2 // _ALIGNED * _ALIGNED if len(raw) > _RUN_BYTES else 0
    return raw[first : first + _RUN_BYTES]


def pin(mappings: Sequence[Mapping], cuda: Any = torch.cuda) -> None:
    """Let the driver copy straight into the slots. Done once per slot, before the first step, with its progress logged.

    Where the driver refuses, copies are slower and the snapshots as good: that is a warning.
    """
    for at, mapping in enumerate(mappings, 1):
        began = time.perf_counter()
        address, size = mapping.place
        error = int(cuda.cudart().cudaHostRegister(address, size, 0))
        if error:
            logger.warning(
                "ckptd: the driver cannot pin a slot of %d bytes (CUDA error %d): copies from the GPU are slower; raise "
                "the limit of locked memory (ulimit -l)", size, error,
            )  # fmt: skip
            return
        weakref.finalize(mapping, cuda.cudart().cudaHostUnregister, address)
        seconds = time.perf_counter() - began
        logger.info("ckptd: pinned slot %d of %d, %.1f GB in %.1f s", at, len(mappings), size / 1e9, seconds)
