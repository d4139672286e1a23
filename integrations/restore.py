"""Puts a snapshot's images back into live objects: first everything is checked, then everything is written.

Nothing is cast and nothing is guessed: a missing or surplus tensor, another shape or dtype ends in a StateError that
names them all, before the first byte of the training state has changed. Values are written into the tensors that are
there, so that references to them stay valid; `Optimizer.load_state_dict` is not used, because it casts state to the
dtype of its parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch

from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.image import Entry, parse
from ckptd.ckpt.model import Version
from ckptd.ckpt.strict import json_object
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.sources import document_name, own_name
from ckptd.integrations.state import Model, Owned, TrainingState
from ckptd.integrations.tensors import Mapping, dtype_of, plain
from ckptd.integrations.tree import decode

_OF_A_RANK = re.compile(r"(rank-\d{5,}|ckptd)\.")
_MOST_NAMES = 10


class Snapshot:
    """All ranks' images of one version, mapped; tensors by the name of their entry, put together from their parts."""

    def __init__(self, found: Sequence[Found], version: Version, job: str, world: int) -> None:
        """Raises CorruptionError when an image is not what it was announced as, or rows are missing or doubled."""
        self.parts: dict[str, list[tuple[Entry, torch.Tensor]]] = {}
        if [image.rank for image in found] != list(range(world)):
            raise CorruptionError(
                f"{version}: found images of ranks {[image.rank for image in found]}, expected {world}"
            )
        for image in found:
            mapping = Mapping(image.path, image.size, write=False)
            header = parse(memoryview(mapping.memory))
            says = (header.version, header.job, header.rank, header.world)
            if says != (version, job, image.rank, world):
                raise CorruptionError(
                    f"{image.path}: the image says {says}, expected {(version, job, image.rank, world)}"
                )
            for entry in header.entries:
                self.parts.setdefault(entry.name, []).append((entry, mapping.tensor(entry, header.spans[entry.name])))
        for name, parts in self.parts.items():
            parts.sort(key=lambda part: part[0].offsets[:1])
            _check_cover(name, [entry for entry, _ in parts])

    def read(self, name: str, into: torch.Tensor) -> None:
        """Copy a tensor into one of the same shape and dtype."""
        for entry, source in self.parts[name]:
            target = into.narrow(0, entry.offsets[0], source.size(0)) if into.dim() else into
            for dim in _expanded(target):  # all its elements are one in memory: write that one
                target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
            target.copy_(source)

    def tensor(self, name: str) -> torch.Tensor:
        """A private copy of a tensor, on the CPU. Raises KeyError."""
        entry = self.parts[name][0][0]
        made = torch.empty(entry.whole, dtype=dtype_of(entry))
        self.read(name, made)
        return made

    def mismatch(self, name: str, live: torch.Tensor) -> str | None:
        """What keeps the tensor from being read into `live`, in words."""
        entry = self.parts[name][0][0]
        if entry.whole != tuple(live.shape) or dtype_of(entry) != live.dtype:
            here = f"{str(live.dtype).removeprefix('torch.')} {list(live.shape)} here"
            return f"{name} ({entry.dtype_name} {list(entry.whole)} in the snapshot, {here})"
        expanded = _expanded(live)
        if expanded:
            raw = self.tensor(name).unsqueeze(-1).view(torch.uint8)
            if any(not torch.equal(raw, raw.narrow(dim, 0, 1).expand_as(raw)) for dim in expanded):
                return f"{name} (different elements in the snapshot, expanded from one here)"
        return None


def _expanded(tensor: torch.Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if tensor.stride(dim) == 0 and tensor.size(dim) > 1]


def _check_cover(name: str, entries: Sequence[Entry]) -> None:
    first, rows = entries[0], 0
    expected = first.whole[0] if first.whole else 1
    for entry in entries:
        whole_rows = entry.offsets[1:] == (0,) * (len(entry.offsets) - 1) and entry.local[1:] == first.whole[1:]
        alike = (entry.whole, entry.dtype, entry.true_dtype) == (first.whole, first.dtype, first.true_dtype)
        if not (whole_rows and alike and entry.offsets[:1] == ((rows,) if entry.offsets else ())):
            raise CorruptionError(
                f"{name}: the parts in the images overlap or do not fit together; choose another step"
            )
        rows += entry.local[0] if entry.local else 1
    if rows != expected:
        raise CorruptionError(f"{name}: found {rows} rows in the images, expected {expected}; choose another step")


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
        objects = json_object(bytes(snapshot.tensor(document_name(ranks.rank)).numpy()))
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

    def _fits(self, entry: str, live: torch.Tensor) -> bool:
        self._used.add(entry)
        problem = self._snapshot.mismatch(entry, live)
        if problem:
            self._differs.append(problem)
        return not problem

    def _tensor(self, name: str, live: torch.Tensor, replicated: bool) -> None:
        entry = name if replicated else own_name(name, self._rank)
        if entry not in self._snapshot.parts:
            self._missing.append(entry)
        elif self._fits(entry, live):
            self._actions.append(partial(self._snapshot.read, entry, plain(name, live)))

    def _private(self, name: str) -> torch.Tensor:
        entry = own_name(name, self._rank)
        self._used.add(entry)
        return self._snapshot.tensor(entry)

    def _model(self, model: Model, extras: dict[str, Any] | None) -> None:
        for name, parameter, replicated in model.parameters():
            self._tensor(f"{model.name}.{name}", parameter, replicated)
        for name, buffer in model.buffers():
            self._tensor(f"{model.name}.{name}", buffer, replicated=False)
        extras = dict(extras or {})
        for path, site in model.extras():
            if path in extras:
                self._actions.append(partial(site.set_extra_state, decode(extras.pop(path), self._private)))
            else:
                self._missing.append(f"{model.name}.{path}_extra_state")
        self._differs += [f"{model.name}.{path}_extra_state (only in the snapshot)" for path in extras]

    def _stateful(self, name: str, objects: dict[str, Any]) -> None:
        if name in objects:
            self._actions.append(
                partial(self._state.statefuls[name].load_state_dict, decode(objects.pop(name), self._private))
            )
        else:
            self._missing.append(name)

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
        tensors = self._state_of(name, members)
        for owned in members.values():
            self._check_state(optimizer.state.get(owned.parameter, {}), tensors[owned.name])
        values = {key: decode(value, self._private) for key, value in saved["values"].items()}
        options = [decode(group["options"], self._private) for group in saved["groups"]]
        other = decode(saved["other"], self._private)
        self._actions.append(partial(_write_options, optimizer, options, other))
        at = {key: index for index, key in enumerate(decode(saved["order"], self._private))}
        for owned in members.values():
            entries = tensors[owned.name]
            write = partial(
                self._write_state, optimizer, owned, entries, values.get(owned.name, {}), at, saved["on_cpu"]
            )
            self._actions.append(write)

    def _state_of(self, name: str, members: dict[str, Owned]) -> dict[str, dict[str, str]]:
        """Per parameter: the keys of its optimizer state and the entries that hold them."""
        found: dict[str, dict[str, str]] = {member: {} for member in members}
        for replicated in (False, True):
            prefix = f"{own_name(name, 0 if replicated else self._rank)}.state."
            for entry in self._snapshot.parts:
                if not entry.startswith(prefix):
                    continue
                rest = entry[len(prefix) :]
                for dot in reversed([match.start() for match in re.finditer(r"\.", rest)]):  # names and keys have dots
                    owned = members.get(rest[:dot])
                    if owned is not None and owned.replicated == replicated:
                        found[owned.name][rest[dot + 1 :]] = entry
                        break
        return found

    def _check_state(self, live: dict[str, Any], entries: dict[str, str]) -> None:
        for key, entry in entries.items():
            self._used.add(entry)
            if isinstance(live.get(key), torch.Tensor):
                self._fits(entry, live[key])

    def _write_state(
        self,
        optimizer: torch.optim.Optimizer,
        owned: Owned,
        entries: dict[str, str],
        values: dict[Any, Any],
        at: dict[Any, int],
        on_cpu: Iterable[str],
    ) -> None:
        """Make the state of one parameter exactly what was captured, in the tensors that are there already.

        `at` gives the places of the keys: a state_dict() shall list them as before.
        """
        parameter = owned.parameter.detach()
        live = optimizer.state.get(owned.parameter, {})
        made = dict(values)
        for key, entry in entries.items():
            target = live.get(key)
            if not isinstance(target, torch.Tensor):
                described = self._snapshot.parts[entry][0][0]
                device = torch.device("cpu") if key in on_cpu else parameter.device
                if described.whole == tuple(parameter.shape):  # in the parameter's memory order, as optimizers make it
                    target = torch.empty_like(parameter, dtype=dtype_of(described), device=device)
                else:
                    target = torch.empty(described.whole, dtype=dtype_of(described), device=device)
            self._snapshot.read(entry, target.detach())
            made[key] = target
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
