"""What a rank's training state consists of, object by object, and how each part may be copied.

    object                   entries                                     kind
    nn.Module                <name>.<fqn> of every parameter             lazy
                             <name>.<fqn> of every persistent buffer     eager
    torch.optim.Optimizer    <name>.state.<fqn>.<key>                    lazy
                             <name>.param_groups.<i>.<key> (tensor lr)   eager
    anything Stateful        <name>.<path of the tensor>                 eager
    random number state      rng.<path>, always there                    eager
    all that is no tensor    one JSON document per rank                  eager

Lazy tensors do not change between two optimizer updates, so they may be copied while training goes on; eager ones are
copied at once. Lazy tensors of a model in DistributedDataParallel are replicated: every rank of its process group holds the
same bytes. DTensors know themselves who holds what (`shards.py`); where a buffer is one, this rank's part is a tensor of its
own. Tied weights are captured under each of their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ckptd.ckpt.errors import StateError
from ckptd.integrations.rng import Generators
from ckptd.integrations.shards import check_state, is_dtensor, layouts_of, memory_of
from ckptd.integrations.tree import Encoder

RNG = "rng"
RESERVED = {RNG, "ckptd"}


@runtime_checkable
class Stateful(Protocol):
    """What torch calls Stateful too: schedulers, samplers, scalers, data loaders, your own classes."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Leaf:
    """A lazy tensor under its name; `tensor` is the live object."""

    name: str
    tensor: torch.Tensor
    replicas: tuple[int, ...]
    """The ranks that hold it alike, in ascending order. Says nothing of DTensors, which know that themselves."""


@dataclass(frozen=True, slots=True)
class Site:
    """A submodule with its canonical path (empty or ending in a dot)."""

    path: str
    module: nn.Module
    replicas: tuple[int, ...]
    """The ranks that hold its parameters alike: this one alone, or those of its DistributedDataParallel."""
    unlike: frozenset[str]
    """The names of parameters that are this rank's own all the same."""


class Model:
    """A module, seen without the wrappers of DistributedDataParallel and torch.compile."""

    def __init__(self, name: str, module: nn.Module, rank: int) -> None:
        self.name = name
        self.module = module
        self._own = (rank,)
        self._sites: list[Site] = []
        self._children: list[int] = []
        self._sharding: list[Any] = []

    def sites(self) -> list[Site]:
        """Every submodule; walked anew only when one was added, removed or replaced."""
        if not self._sites or self._children != _children_of(self._sites):
            self._sites = list(_walk(self.module, "", self._own, frozenset()))
            self._children = _children_of(self._sites)
            self._sharding = [site.module for site in self._sites if _is_fully_sharded(site.module)]
            self.reshard()
        return self._sites

    def reshard(self) -> None:
        """Have fully_shard's modules show their sharded parameters: after an evaluation they may still show whole ones.

        Looks at those that `sites` has found so far, and costs a microsecond each.
        """
        for module in self._sharding:
            module.reshard()

    def parameters(self) -> Iterator[tuple[str, torch.Tensor, tuple[int, ...]]]:
        """(canonical name, parameter, ranks that hold it alike); tied ones under each of their names."""
        for site in self.sites():
            for key, parameter in vars(site.module)["_parameters"].items():
                if parameter is not None:
                    name = site.path + key
                    own = name in site.unlike or is_dtensor(parameter)
                    yield name, parameter, self._own if own else site.replicas

    def buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(canonical name, buffer): the persistent ones, as in a state_dict(); of a DTensor its local tensor."""
        for site in self.sites():
            skipped = vars(site.module)["_non_persistent_buffers_set"]
            for key, buffer in vars(site.module)["_buffers"].items():
                if buffer is not None and key not in skipped:
                    yield site.path + key, memory_of(buffer)

    def extras(self) -> Iterator[tuple[str, nn.Module]]:
        """(canonical path, submodule) of those that define `get_extra_state`."""
        for site in self.sites():
            if type(site.module).get_extra_state is not nn.Module.get_extra_state:
                yield site.path, site.module


def _is_fully_sharded(module: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def _children_of(sites: list[Site]) -> list[int]:
    return [id(child) for site in sites for child in vars(site.module)["_modules"].values()]


def _walk(module: nn.Module, path: str, replicas: tuple[int, ...], unlike: frozenset[str]) -> Iterator[Site]:
    children = vars(module)["_modules"]
    if isinstance(module, DistributedDataParallel):
        replicas = tuple(sorted(dist.get_process_group_ranks(module.process_group)))
        unlike = frozenset(path + name for name in module.parameters_to_ignore)
        yield from _walk(module.module, path, replicas, unlike)
    elif set(children) == {"_orig_mod"}:  # torch.compile's OptimizedModule, whose class is slow to import
        yield from _walk(children["_orig_mod"], path, replicas, unlike)
    else:
        yield Site(path, module, replicas, unlike)
        for name, child in children.items():
            if child is not None:
                yield from _walk(child, f"{path}{name}.", replicas, unlike)


@dataclass(frozen=True, slots=True)
class Owned:
    """A parameter of an optimizer's group under its name."""

    name: str
    parameter: torch.Tensor
    replicas: tuple[int, ...]


class TrainingState:
    """The objects that a Checkpointer was given, by kind, and the random number generators."""

    def __init__(self, objects: Mapping[str, object], rank: int) -> None:
        """Raises StateError for an object that is neither a module, an optimizer nor Stateful, and for bad names."""
        self.models: list[Model] = []
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.statefuls: dict[str, Stateful] = {}
        self._own_rank = (rank,)
        self._names: dict[int, tuple[str, tuple[int, ...]]] = {}
        for name, thing in objects.items():
            if not name.isidentifier() or name in RESERVED:
                raise StateError(f"{name!r}: expected a Python identifier other than {sorted(RESERVED)}; rename it")
            if isinstance(thing, nn.Module):
                self.models.append(Model(name, thing, rank))
            elif isinstance(thing, torch.optim.Optimizer):
                if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(thing).__mro__):
                    raise StateError(
                        f"{name}: found a ZeroRedundancyOptimizer, whose ranks hold different parts of the state of equal "
                        "parameters; expected one that holds the state of its own: shard with fully_shard() instead"
                    )
                self.optimizers[name] = thing
            elif isinstance(thing, Stateful) and not isinstance(thing, type):
                self.statefuls[name] = thing
            else:
                raise StateError(
                    f"{name}: found a {type(thing).__name__}, expected a module, an optimizer or an object with "
                    "state_dict() and load_state_dict(); give it those two, or leave it out"
                )
        self.statefuls[RNG] = Generators()  # last: loading the others may draw random numbers

    def groups(self, name: str) -> list[list[Owned]]:
        """The parameters of an optimizer's groups, named after the models' (`param_<group>_<index>` where in none)."""
        return [
            [self._own(parameter, f"param_{at}_{index}") for index, parameter in enumerate(group["params"])]
            for at, group in enumerate(self.optimizers[name].param_groups)
        ]

    def _own(self, parameter: torch.Tensor, fallback: str) -> Owned:
        name, replicas = self._names.get(id(parameter), (fallback, self._own_rank))
        return Owned(name, parameter, replicas)

    def lazy(self) -> list[Leaf]:
        """All lazy tensors under their names; also learns the parameters' names anew."""
        leaves = []
        self._names = {}
        for model in self.models:
            prefix = f"{model.name}." if len(self.models) > 1 else ""
            model.reshard()
            for name, parameter, replicas in model.parameters():
                leaves.append(Leaf(f"{model.name}.{name}", parameter, replicas))
                self._names.setdefault(id(parameter), (prefix + name, replicas))
        for name, optimizer in self.optimizers.items():
            for owned in chain.from_iterable(self.groups(name)):
                for key, value in optimizer.state.get(owned.parameter, {}).items():
                    if isinstance(key, str) and isinstance(value, torch.Tensor):
                        path = f"{name}.state.{owned.name}.{key}"
                        check_state(path, value, owned.parameter)
                        leaves.append(Leaf(path, value, owned.replicas))
        return leaves

    def probe(self) -> list[torch.Tensor]:
        """The live lazy tensors without their names: cheap enough for every step, to notice a change of layout."""
        for model in self.models:
            model.reshard()
        found = [
            parameter
            for model in self.models
            for site in model.sites()
            for parameter in vars(site.module)["_parameters"].values()
            if parameter is not None
        ]
        for optimizer in self.optimizers.values():
            for key, values in optimizer.state.items():
                if isinstance(key, torch.Tensor):
                    found += [value for value in values.values() if isinstance(value, torch.Tensor)]
        return found

    def eager(self) -> tuple[dict[str, torch.Tensor], bytes]:
        """Private copies of all eager tensors, and the JSON document of the rest. Call `lazy` first.

        Raises StateError for values that cannot be encoded, and whatever the objects' own state_dict() raises.
        """
        encoder = Encoder()
        objects: dict[str, Any] = {}
        for model in self.models:
            for name, buffer in model.buffers():
                encoder.add(f"{model.name}.{name}", buffer)
            objects[model.name] = {
                path: encoder.encode(site.get_extra_state(), f"{model.name}.{path}_extra_state")
                for path, site in model.extras()
            }
        for name in self.optimizers:
            objects[name] = self._optimizer(name, encoder)
        for name, stateful in self.statefuls.items():
            objects[name] = encoder.encode(stateful.state_dict(), name)
        return encoder.tensors, json.dumps(objects, separators=(",", ":"), allow_nan=False).encode()

    def _optimizer(self, name: str, encoder: Encoder) -> dict[str, Any]:
        """What an optimizer has beside its tensors: groups, plain values in its state, and which keys live on the CPU."""
        optimizer = self.optimizers[name]
        groups: list[dict[str, Any]] = []
        values: dict[str, Any] = {}
        on_cpu: set[str] = set()
        order: dict[
            Any, None
        ] = {}  # tensors lie in the image by size and name; a state_dict() shows keys in this order
        for at, (group, members) in enumerate(zip(optimizer.param_groups, self.groups(name), strict=True)):
            options = {key: value for key, value in group.items() if key != "params"}
            encoded = encoder.encode(options, f"{name}.param_groups.{at}")
            groups.append({"params": [owned.name for owned in members], "options": encoded})
            for owned in members:
                plain = {}
                state = optimizer.state.get(owned.parameter, {})
                order.update(dict.fromkeys(state))
                for key, value in state.items():
                    if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
                        plain[key] = value
                    elif value.device != owned.parameter.device and value.device.type == "cpu":
                        on_cpu.add(key)
                if plain:
                    values[owned.name] = encoder.encode(plain, f"{name}.values.{owned.name}")
        other = {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}
        rest = {"other": encoder.encode(other, f"{name}.other"), "order": encoder.encode(list(order), f"{name}.order")}
        placed = layouts_of(
            name,
            (
                (owned.name, owned.parameter, optimizer.state.get(owned.parameter, {}))
                for owned in chain(*self.groups(name))
            ),
        )
        return {"groups": groups, "values": values, "on_cpu": sorted(on_cpu), **placed, **rest}
