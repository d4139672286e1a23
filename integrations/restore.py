"""Puts a snapshot's images back into live objects: first everything is checked, then everything is written.

Nothing is cast and nothing is guessed: a missing or surplus tensor, another shape or dtype ends in a StateError that
names them all, before the first byte of the training state has changed. Values are written into the tensors that are
there, so that references to them stay valid; `Optimizer.load_state_dict` is not used, because it casts state to the
dtype of its parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch

from ckptd.ckpt.errors import StateError
from ckptd.integrations.heritage import Heritage, Same
from ckptd.integrations.journal import logger
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.reshape import Reshaped
from ckptd.integrations.shards import LIKE, PLAIN, Part, empty_as, first_holder, is_dtensor, memory_of, part_of
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.state import Model, Owned, TrainingState
from ckptd.integrations.tensors import dtype_of
from ckptd.integrations.tree import decode

_MOST_NAMES = 10


class Restore:
    """One rank's way from a snapshot into its objects: made and checked first, then applied."""

    def __init__(self, state: TrainingState, snapshot: Snapshot, ranks: Ranks) -> None:
        """Raises StateError naming everything that does not fit; nothing has been changed then."""
        self._state = state
        self._snapshot = snapshot
        self._rank = ranks.rank
        self._reads: list[tuple[str, Part]] = []
        self._actions: list[Callable[[], object]] = []
        self._missing: list[str] = []
        self._differs: list[str] = []
        state.lazy()  # learns the names of the optimizers' parameters
        self._from: Heritage = (
            Same(snapshot, ranks.rank) if snapshot.world == ranks.world else Reshaped(snapshot, ranks.rank, ranks.world)
        )
        for model in state.models:
            self._model(model)
        for name in state.optimizers:
            self._optimizer(name)
        for name in state.statefuls:
            self._stateful(name)
        _report(self._missing, self._from.surplus(), self._differs + self._from.refused)
        snapshot.fetch((entry, part.box) for entry, part in self._reads)

    def apply(self) -> None:
        """Write everything."""
        with torch.no_grad():
            self._snapshot.read_all([(entry, part.local, part.box) for entry, part in self._reads])
            for action in self._actions:
                action()
        for said in self._from.notes:
            logger.warning("ckptd: %s: %s", self._snapshot.version, said)

    def _into(self, entry: str, part: Part, problem: str | None) -> None:
        """Have an entry read into what this rank holds of it, unless there is a problem."""
        self._from.used.add(entry)
        if problem:
            self._differs.append(problem)
        else:
            self._reads.append((entry, part))

    def _tensor(self, name: str, live: torch.Tensor, replicas: tuple[int, ...]) -> None:
        part = part_of(name, live, replicas)
        entry = self._from.entry(name, part.holders[0])
        if entry is not None:
            self._into(entry, part, self._from.mismatch(entry, part))
        elif part.replicas:
            self._missing.append(name)

    def _buffer(self, name: str, live: torch.Tensor) -> None:
        part = part_of(name, memory_of(live), (self._rank,))
        entry = self._from.entry(name, self._rank)
        if entry is None:
            self._missing.append(name)
            return
        look = self._from.shared_buffer_mismatch if is_dtensor(live) else self._from.buffer_mismatch
        self._into(entry, part, look(entry, part))

    def _model(self, model: Model) -> None:
        for name, parameter, replicas in model.parameters():
            self._tensor(f"{model.name}.{name}", parameter, replicas)
        for name, buffer in model.buffers():
            self._buffer(f"{model.name}.{name}", buffer)
        extras = dict(self._from.plain(model.name) or {})
        for path, site in model.extras():
            if path in extras:
                self._actions.append(partial(site.set_extra_state, decode(extras.pop(path), self._from.tensor)))
            else:
                self._missing.append(f"{model.name}.{path}_extra_state")
        self._differs += [f"{model.name}.{path}_extra_state (only in the snapshot)" for path in extras]

    def _stateful(self, name: str) -> None:
        action = self._from.state(name, self._state.statefuls[name])
        if action is None:
            self._missing.append(name)
        else:
            self._actions.append(action)

    def _optimizer(self, name: str) -> None:
        saved = self._from.plain(name)
        if saved is None:
            self._missing.append(name)
            return
        groups = self._state.groups(name)
        names = [[owned.name for owned in group] for group in groups]
        if [group["params"] for group in saved["groups"]] != names:
            self._differs.append(
                f"{name}.param_groups ({[len(group['params']) for group in saved['groups']]} parameters per group in the "
                f"snapshot, {[len(group) for group in names]} here, or others)"
            )
            return
        optimizer = self._state.optimizers[name]
        members = {owned.name: owned for owned in chain.from_iterable(groups)}
        tensors = self._state_of(name, members, saved)
        values = {key: decode(value, self._from.tensor) for key, value in saved["values"].items()}
        options = [decode(group["options"], self._from.tensor) for group in saved["groups"]]
        other = decode(saved["other"], self._from.tensor)
        order = decode(saved["order"], self._from.tensor)
        have = {key for held in (*tensors.values(), *values.values()) for key in held}
        self._missing += [f"{name}.state.*.{key}" for key in order if key not in have]
        self._actions.append(partial(_write_options, optimizer, options, other))
        at = {key: index for index, key in enumerate(order)}
        for owned in members.values():
            made = {key: self._target(name, owned, key, *held, saved) for key, held in tensors[owned.name].items()}
            self._actions.append(partial(_write_state, optimizer, owned, made | values.get(owned.name, {}), at))

    def _state_of(
        self, name: str, members: dict[str, Owned], saved: dict[str, Any]
    ) -> dict[str, dict[str, tuple[str, str]]]:
        """Per parameter: the keys of its optimizer state, the entries that hold them, and how these are distributed."""
        found: dict[str, dict[str, tuple[str, str]]] = {member: {} for member in members}
        firsts = {
            member: {PLAIN: owned.replicas[0], LIKE: first_holder(owned.parameter, owned.replicas)}
            for member, owned in members.items()
        }
        for first in sorted({rank for ranks in firsts.values() for rank in ranks.values()}):
            prefix = f"{name}.state."
            for tensor, entry in self._from.entries(first):
                if not tensor.startswith(prefix):
                    continue
                rest = tensor[len(prefix) :]
                for dot in reversed([match.start() for match in re.finditer(r"\.", rest)]):  # names and keys have dots
                    member, key = rest[:dot], rest[dot + 1 :]
                    if member in members:
                        shape = tuple(members[member].parameter.shape)
                        layout = self._from.layout(saved, member, key, entry, shape)
                        if firsts[member][PLAIN if layout == PLAIN else LIKE] == first:
                            found[member][key] = (entry, layout)
                        break
        return found

    def _target(
        self, name: str, owned: Owned, key: str, entry: str, layout: str, saved: dict[str, Any]
    ) -> torch.Tensor | None:
        """The tensor that will hold this entry, the live one or a new one; None, and the reason noted, if none can."""
        target = self._state.optimizers[name].state.get(owned.parameter, {}).get(key)
        path = f"{name}.state.{owned.name}.{key}"
        try:
            if not isinstance(target, torch.Tensor):
                described = self._snapshot.entry(entry)
                device = torch.device("cpu") if key in saved["on_cpu"] else owned.parameter.device
                target = empty_as(path, owned.parameter, layout, described.whole, dtype_of(described), device)
            part = part_of(path, target, owned.replicas)
            self._into(entry, part, self._from.mismatch(entry, part))
        except StateError as error:
            self._from.used.add(entry)
            self._differs.append(str(error))
            return None
        return target


def _write_state(optimizer: torch.optim.Optimizer, owned: Owned, made: dict[Any, Any], at: dict[Any, int]) -> None:
    """Make the state of one parameter exactly what was captured, in the tensors that were there already.

    `at` gives the places of the keys: a state_dict() shall list them as before.
    """
    optimizer.state.pop(owned.parameter, None)
    if made:
        optimizer.state[owned.parameter] = {key: made[key] for key in sorted(made, key=at.__getitem__)}


def _write_options(optimizer: torch.optim.Optimizer, options: list[dict[str, Any]], other: dict[Any, Any]) -> None:
    """Set what the groups hold beside their parameters. A tensor lr keeps its identity: compiled steps refer to it."""
    for group, saved in zip(optimizer.param_groups, options, strict=True):
        for option, value in saved.items():
            live = group.get(option)
            if isinstance(value, torch.Tensor) and isinstance(live, torch.Tensor):
                if (live.shape, live.dtype) == (value.shape, value.dtype):
                    live.detach().copy_(value)
                    continue
                value = value.to(live.device)
            group[option] = value
    for key in [key for key in optimizer.state if not isinstance(key, torch.Tensor)]:
        del optimizer.state[key]
    optimizer.state.update(other)


def _report(missing: list[str], surplus: list[str], differs: list[str]) -> None:
    problems = []
    for what, names in (("missing in it", missing), ("only in it", surplus), ("different", differs)):
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            problems.append(f"{what}: {', '.join(names[:_MOST_NAMES])}{more}")
    if problems:
        raise StateError(
            f"the snapshot does not fit the objects of this Checkpointer; {'; '.join(problems)}. Nothing was changed; "
            "build the model and optimizer as they were at the capture, with the same names and wrappers"
        )
