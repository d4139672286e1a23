"""Decides, from what the trip wires have found so far, what is copied at once; makes a capture of a plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from ckptd.ckpt.model import Version
from ckptd.integrations.capture import Capture
from ckptd.integrations.roles import Roles, roles_of
from ckptd.integrations.sources import Plan, Source
from ckptd.integrations.staging import Staging
from ckptd.integrations.wires import Frozen, Watch, Wires

_DISCARDED_MAX = 3
"""So many snapshots may be lost to writes between two updates; then everything is copied at once."""


class Watched:
    """The sources of the plan by their roles, under watch. For the trainer's thread."""

    def __init__(self, optimizers: Collection[torch.optim.Optimizer], watch: Watch) -> None:
        self._optimizers = optimizers
        self._watch = watch
        self._unquiet: set[str] = set()
        self._discarded = 0
        self._sources: Sequence[Source] = ()
        self._assign()

    def plan(self, sources: Sequence[Source]) -> None:
        """These are the sources from now on. What was found unquiet stays so under its name."""
        self._sources = sources
        self._assign()

    def capture(
        self, version: Version, plan: Plan, eager: Sequence[torch.Tensor], document: bytes, staging: Staging
    ) -> Capture:
        """Copy what must be copied at once, and arm the wires on the rest."""
        staged = staging.copies_of([source.rows for source in self._roles.at_once])
        self._wires.arm()
        count, changed_at = self._frozen.arm()
        return Capture(
            version, plan, self._roles, staged, eager, document, plan.mark(), count, changed_at, staging.loan()
        )

    def tripped(self) -> list[str]:
        """The names of those that were written since the capture; from the next one on they are copied at once."""
        names = self._wires.tripped() + self._frozen.tripped()
        if names:
            self._discarded += 1
            self._unquiet.update(names)
            if self._discarded >= _DISCARDED_MAX:
                self._unquiet.update(source.name for source in self._sources)
            self._assign()
        return names

    @property
    def what_now(self) -> str:
        """What the last `tripped` has decided, in words."""
        what = "everything is" if self._discarded >= _DISCARDED_MAX else "they are"
        return f"{what} copied at once from now on, which the training waits for"

    def _assign(self) -> None:
        self._roles: Roles = roles_of(self._sources, self._optimizers, self._unquiet)
        self._wires = Wires(self._roles.lazy, self._watch)
        self._frozen = Frozen(self._roles.frozen, self._watch)
