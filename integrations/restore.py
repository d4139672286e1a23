"""Puts a snapshot's images back into live objects: first everything is checked, then everything is written.

Nothing is cast and nothing is guessed: a missing or surplus tensor, another shape or dtype ends in a StateError that
names them all, before the first byte of the training state has changed. Values are written into the tensors that are
there, so that references to them stay valid; `Optimizer.load_state_dict` is not used, because it casts state to the
dtype of its parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch

from ckptd.ckpt.boxes import Box, tile
from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.image import Entry
from ckptd.ckpt.model import Version
from ckptd.ckpt.strict import json_object
from ckptd.integrations.images import open_images
from ckptd.integrations.loaders import mismatch
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.shards import LIKE, PLAIN, Part, empty_as, first_holder, part_of, saved_layout
from ckptd.integrations.sources import document_name, own_name
from ckptd.integrations.state import Model, Owned, TrainingState
from ckptd.integrations.tensors import Mapping, dtype_of
from ckptd.integrations.tree import decode

_OF_A_RANK = re.compile(r"(rank-\d{5,}|ckptd)\.")
_MOST_NAMES = 10


class Snapshot:
    """All ranks' images of one version, mapped; tensors by the name of their entry, put together from their parts.

    Nothing is read here but headers: `read` touches those rows of an image that it copies, and no others.
    """

    def __init__(self, found: Sequence[Found], version: Version, job: str, world: int) -> None:
        """Raises CorruptionError when an image is not what it was announced as, or elements are missing or doubled."""
        self.parts: dict[str, list[tuple[Entry, Mapping, tuple[int, int]]]] = {}
        for image in open_images(found, version, job, world):
            for entry in image.header.entries:
                self.parts.setdefault(entry.name, []).append((entry, image.mapping, image.header.spans[entry.name]))
        for name, parts in self.parts.items():
            _check_cover(name, [entry for entry, _, _ in parts])

    def read(self, name: str, into: torch.Tensor, wanted: Box) -> None:
        """Copy what lies in `wanted` of a tensor into one of that shape and of the same dtype."""
        written = 0
        for entry, mapping, span in self.parts[name]:
            common = entry.box.meet(wanted)
            if common is None:
                continue
            source = mapping.tensor(entry, span)[common.within(entry.box)]
            target = into[common.within(wanted)]
            for dim in _expanded(target):  # all its elements are one in memory: write that one
                target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
            target.copy_(source)
            written += common.size
        assert written == wanted.size, f"{name}: wrote {written} of {wanted.size} elements, though the parts cover them"

    def tensor(self, name: str) -> torch.Tensor:
        """A private copy of a whole tensor, on the CPU. Raises KeyError."""
        entry = self.parts[name][0][0]
        made = torch.empty(entry.whole, dtype=dtype_of(entry))
        self.read(name, made, Box.whole(entry.whole))
        return made

    def mismatch(self, name: str, part: Part) -> str | None:
        """What keeps a part of the tensor from being read into the one that is there, in words."""
        entry, live = self.parts[name][0][0], part.local
        if entry.whole != part.whole or dtype_of(entry) != live.dtype:
            here = f"{str(live.dtype).removeprefix('torch.')} {list(part.whole)} here"
            return f"{name} ({entry.dtype_name} {list(entry.whole)} in the snapshot, {here})"
        expanded = _expanded(live)
        if expanded:
            values = torch.empty(part.box.shape, dtype=live.dtype)
            self.read(name, values, part.box)
            raw = values.unsqueeze(-1).view(torch.uint8)
            if any(not torch.equal(raw, raw.narrow(dim, 0, 1).expand_as(raw)) for dim in expanded):
                return f"{name} (different elements in the snapshot, expanded from one here)"
        return None


def _expanded(tensor: torch.Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if tensor.stride(dim) == 0 and tensor.size(dim) > 1]


def _check_cover(name: str, entries: Sequence[Entry]) -> None:
    kinds = {(entry.whole, entry.dtype, entry.true_dtype) for entry in entries}
    if len(kinds) != 1 or not tile(entries[0].whole, [entry.box for entry in entries]):
        raise CorruptionError(
            f"{name}: the {len(entries)} parts in the images leave elements out, overlap or do not fit together; "
            "choose another step"
        )


class Restore:
    """One rank's way from a snapshot into its objects: made and checked first, then applied."""

    def __init__(self, state: TrainingState, snapshot: Snapshot, ranks: Ranks) -> None:
        """Raises StateError naming everything that does not fit; nothing has been changed then."""
        self._state = state
        self._snapshot = snapshot
        self._rank = ranks.rank
        self._actions: list[Callable[[], object]] = []
        self._missing: list[str] = []
        self._differs: list[str] = []
        self._used: set[str] = set()
        state.lazy()  # learns the names of the optimizers' parameters
        document = document_name(ranks.rank)
        if document not in snapshot.parts:
            raise StateError(
                f"found no {document} in the snapshot: no Checkpointer captured it; load it by ckptd.dcp.load"
            )
        objects = json_object(bytes(snapshot.tensor(document).numpy()))
        for model in state.models:
            self._model(model, objects.pop(model.name, None))
        for name in state.optimizers:
            self._optimizer(name, objects.pop(name, None))
        for name in state.statefuls:
            self._stateful(name, objects)
        surplus = sorted(objects) + sorted(self._own_names() - self._used)
        _report(self._missing, surplus, self._differs)

    def apply(self) -> None:
        """Write everything."""
        with torch.no_grad():
            for action in self._actions:
                action()

    def _own_names(self) -> set[str]:
        prefix = own_name("", self._rank)
        names = self._snapshot.parts
        return {name for name in names if (name.startswith(prefix) if prefix else not _OF_A_RANK.match(name))}

    def _into(self, entry: str, part: Part) -> None:
        """Have an entry read into what this rank holds of it, if that fits."""
        self._used.add(entry)
        problem = self._snapshot.mismatch(entry, part)
        if problem:
            self._differs.append(problem)
        else:
            self._actions.append(partial(self._snapshot.read, entry, part.local, part.box))

    def _tensor(self, name: str, live: torch.Tensor, replicas: tuple[int, ...]) -> None:
        part = part_of(name, live, replicas)
        entry = own_name(name, part.holders[0])
        if entry in self._snapshot.parts:
            self._into(entry, part)
        elif part.replicas:
            self._missing.append(entry)

    def _private(self, name: str) -> torch.Tensor:
        entry = own_name(name, self._rank)
        self._used.add(entry)
        return self._snapshot.tensor(entry)

    def _model(self, model: Model, extras: dict[str, Any] | None) -> None:
        for name, parameter, replicas in model.parameters():
            self._tensor(f"{model.name}.{name}", parameter, replicas)
        for name, buffer in model.buffers():
            self._tensor(f"{model.name}.{name}", buffer, (self._rank,))
        extras = dict(extras or {})
        for path, site in model.extras():
            if path in extras:
                self._actions.append(partial(site.set_extra_state, decode(extras.pop(path), self._private)))
            else:
                self._missing.append(f"{model.name}.{path}_extra_state")
        self._differs += [f"{model.name}.{path}_extra_state (only in the snapshot)" for path in extras]

    def _stateful(self, name: str, objects: dict[str, Any]) -> None:
        if name not in objects:
            self._missing.append(name)
            return
        stateful, saved = self._state.statefuls[name], decode(objects.pop(name), self._private)
        problem = mismatch(name, stateful, saved)
        if problem:
            self._differs.append(problem)
        self._actions.append(partial(stateful.load_state_dict, saved))

    def _optimizer(self, name: str, saved: dict[str, Any] | None) -> None:
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
        values = {key: decode(value, self._private) for key, value in saved["values"].items()}
        options = [decode(group["options"], self._private) for group in saved["groups"]]
        other = decode(saved["other"], self._private)
        order = decode(saved["order"], self._private)
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
            prefix = f"{own_name(name, first)}.state."
            for entry in self._snapshot.parts:
                if not entry.startswith(prefix):
                    continue
                rest = entry[len(prefix) :]
                for dot in reversed([match.start() for match in re.finditer(r"\.", rest)]):  # names and keys have dots
                    member, key = rest[:dot], rest[dot + 1 :]
                    if member in members:
                        layout = saved_layout(saved, member, key)
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
                described = self._snapshot.parts[entry][0][0]
                device = torch.device("cpu") if key in saved["on_cpu"] else owned.parameter.device
                target = empty_as(path, owned.parameter, layout, described.whole, dtype_of(described), device)
            self._into(entry, part_of(path, target, owned.replicas))
        except StateError as error:
            self._used.add(entry)
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
