"""Decides, from what the trip wires have found so far, what is copied at once; makes a capture of a plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from ckptd.ckpt.model import Version
from ckptd.integrations.capture import Capture
from ckptd.integrations.copying import Copying
from ckptd.integrations.device import Lane, Launching, Probes
from ckptd.integrations.outline import Outline
from ckptd.integrations.roles import Roles, roles_of
from ckptd.integrations.sources import Plan, Source
from ckptd.integrations.staging import Staging
from ckptd.integrations.wires import Frozen, Watch, Wires

_DISCARDED_MAX = 3
"""So many snapshots may be lost to writes between two updates; then everything is copied at once."""


class Watched:
    """The sources of the plan by their roles, under watch. For the trainer's thread."""

    def __init__(self, optimizers: Collection[torch.optim.Optimizer], watch: Watch, cuda: Any = torch.cuda) -> None:
        self._optimizers = optimizers
        self._watch = watch
        self._cuda = cuda
        self._unquiet: set[str] = set()
        self._noticed: deque[str] = deque()
        self._discarded = 0
        self._sources: Sequence[Source] = ()
        self._lane: Lane | None = None
        self._assign()

    def plan(self, plan: Plan) -> None:
        """Its sources are watched from now on. What was found unquiet stays so under its name."""
        self._sources = plan.sources
        if plan.device is None:
            self._lane = None
        elif self._lane is None or self._lane.device != plan.device:
            self._lane = Lane(plan.device, self._cuda)
        self._assign()

    def capture(
        self,
        version: Version,
        plan: Plan,
        eager: Sequence[torch.Tensor],
        document: bytes,
        staging: Staging,
        outline: Outline | None,
    ) -> tuple[Capture, Copying]:
        """Copy what must be copied at once, and arm the wires on the rest."""
        if self._noticed:
            self._assign()
        staged = staging.copies_of([source.rows for source in self._roles.at_once])
        frozen, due = self._frozen.arm()
        armed = (self._wires.arm(), frozen)
        if self._probes is not None:
            self._probes.arm()
        after = plan.mark()
        capture = Capture(version, plan, self._roles, staged, eager, document, due, armed, outline, staging.loan())
        return capture, Copying() if self._lane is None else Launching(self._lane, after)

    def ask_device(self) -> Callable[[], list[str]]:
        """In the fence: let the device look. The worker asks for the names, once the copies have arrived, and waits."""
        probes, lane, lazy = self._probes, self._lane, self._roles.lazy
        if probes is None or lane is None:
            return list
        changed = probes.changed()
        looked = self._cuda.Event()
        looked.record(self._cuda.current_stream(lane.device))

        def ask() -> list[str]:
            with self._cuda.stream(lane.stream):
                lane.stream.wait_event(looked)
                return [lazy[at].name for at in probes.indexes(changed)]

        return ask

    def notice(self, names: list[str]) -> str:
        """These were written between a capture and its update: a snapshot is lost. What follows from it, in words.

        From the next capture on they are copied at once. May be called by the worker.
        """
        self._discarded += 1
        self._noticed.extend(names)
        what = "everything is" if self._discarded >= _DISCARDED_MAX else "they are"
        return f"{what} copied at once from now on, which the training waits for"

    def _assign(self) -> None:
        while self._noticed:
            self._unquiet.add(self._noticed.popleft())
        if self._discarded >= _DISCARDED_MAX:
            self._unquiet.update(source.name for source in self._sources)
        self._roles: Roles = roles_of(self._sources, self._optimizers, self._unquiet)
        self._wires = Wires(self._roles.lazy, self._watch)
        self._frozen = Frozen(self._roles.frozen, self._watch)
        sampled = self._lane is not None and self._watch == "samples"
        self._probes = Probes(self._roles.lazy, self._lane.device) if self._lane and sampled else None
