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
from operator import attrgetter, is_
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ckptd.ckpt.errors import StateError
from ckptd.integrations.rng import Generators
from ckptd.integrations.shards import check_state, is_dtensor, layouts_of, memory_of
from ckptd.integrations.staging import Staging
from ckptd.integrations.tensors import plain
from ckptd.integrations.tree import Encoder

RNG = "rng"
RESERVED = {RNG, "ckptd"}
to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


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
        self._modules: list[nn.Module] = []
        self._children: list[nn.Module | None] = []
        self._extras: list[tuple[str, nn.Module]] = []
        self._sharding: list[Any] = []

    def sites(self) -> list[Site]:
        """Every submodule; walked anew only when one was added, removed or replaced."""
        children = _children_of(self._modules)
        if not self._sites or len(children) != len(self._children) or not all(map(is_, children, self._children)):
            self._sites = list(_walk(self.module, "", self._own, frozenset()))
            self._modules = [site.module for site in self._sites]
            self._children = _children_of(self._modules)
            own = nn.Module.get_extra_state
            self._extras = [(s.path, s.module) for s in self._sites if type(s.module).get_extra_state is not own]
            self._sharding = [module for module in self._modules if _is_fully_sharded(module)]
            self.reshard()
        return self._sites

    def reshard(self) -> None:
        """Have fully_shard's modules show their sharded parameters: after an evaluation they may still show whole ones.

        Looks at those that `sites` has found so far, and costs a microsecond each.
        """
        for module in self._sharding:
            module.reshard()

    def slots(self) -> list[torch.Tensor | None]:
        """What stands in the places of the parameters, without names: a few calls for all of them."""
        self.sites()
        return list(chain.from_iterable(map(dict.values, map(attrgetter("_parameters"), self._modules))))

    def parameters(self) -> Iterator[tuple[str, torch.Tensor, tuple[int, ...]]]:
        """(canonical name, parameter, ranks that hold it alike); tied ones under each of their names."""
        for site in self.sites():
            for key, parameter in vars(site.module)["_parameters"].items():
                if parameter is not None:
                    name = site.path + key
                    own = name in site.unlike or is_dtensor(parameter)
                    yield name, parameter, self._own if own else site.replicas

    def buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(canonical name, buffer): the persistent ones, as in a state_dict()."""
        for site in self.sites():
            if buffers := vars(site.module)["_buffers"]:
                skipped = vars(site.module)["_non_persistent_buffers_set"]
                for key, buffer in buffers.items():
                    if buffer is not None and key not in skipped:
                        yield site.path + key, buffer

    def extras(self) -> Iterator[tuple[str, nn.Module]]:
        """(canonical path, submodule) of those that define `get_extra_state`."""
        self.sites()
        yield from self._extras


def _is_fully_sharded(module: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def _children_of(modules: list[nn.Module]) -> list[nn.Module | None]:
    return list(chain.from_iterable(map(dict.values, map(attrgetter("_modules"), modules))))


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
        self.staging = Staging()
        self._own_rank = (rank,)
        self._names: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._fixed: dict[str, Fixed] = {}
        self._buffers: list[torch.Tensor] = []
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
        self._generators = Generators()
        self.statefuls[RNG] = self._generators  # last: loading the others may draw random numbers

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
        self._names, self._fixed = {}, {}
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

    def probe(self) -> list[object]:
        """What stands where the lazy tensors are, without names: a few calls for all, at every step.

        The parameters, the members of the optimizers' groups, and all values of their states.
        """
        found: list[object] = []
        for model in self.models:
            model.reshard()
            found += model.slots()
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                found += group["params"]
            for values in optimizer.state.values():
                found += values.values() if isinstance(values, dict) else [values]
        return found

    def eager(self) -> tuple[dict[str, torch.Tensor], bytes]:
        """Private copies of all eager tensors, and the JSON document of the rest. Call `lazy` first.

        The copies of buffers are on the buffers' devices and lent by `staging`. Raises StateError for values that cannot
        be encoded, and whatever the objects' own state_dict() raises.
        """
        encoder = Encoder()
        buffers = {
            f"{model.name}.{name}": memory_of(buffer) for model in self.models for name, buffer in model.buffers()
        }
        encoder.add_copies(buffers, self.staging.copies_of(self._plain(buffers)))
        objects: dict[str, str] = {}
        for model in self.models:
            objects[model.name] = to_json(
                {
                    path: encoder.encode(site.get_extra_state(), f"{model.name}.{path}_extra_state")
                    for path, site in model.extras()
                }
            )
        for name in self.optimizers:
            objects[name] = self._optimizer(name, encoder)
        for name, stateful in self.statefuls.items():
            if stateful is self._generators:
                objects[name] = to_json(self._generators.encode(encoder, name))
            else:
                objects[name] = to_json(encoder.encode(stateful.state_dict(), name))
        document = ",".join(f"{to_json(name)}:{text}" for name, text in objects.items())
        return encoder.tensors, f"{{{document}}}".encode()

    def _plain(self, buffers: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The buffers as plain tensors; those that were found plain at the last capture are not looked at again."""
        found = list(buffers.values())
        if len(found) == len(self._buffers) and all(map(is_, found, self._buffers)):
            return found
        local = [plain(name, buffer) for name, buffer in buffers.items()]
        self._buffers = found if {type(buffer) for buffer in found} == {torch.Tensor} else []
        return local

    def _optimizer(self, name: str, encoder: Encoder) -> str:
        """The JSON of what an optimizer has beside its tensors: groups, plain values, and which keys live on the CPU."""
        optimizer = self.optimizers[name]
        fixed = self._fixed.get(name)
        if fixed is None:
            fixed = self._fixed[name] = Fixed.of(name, optimizer, self.groups(name))
        groups: list[str] = []
        for at, (group, params) in enumerate(zip(optimizer.param_groups, fixed.params, strict=True)):
            options = _options(group, fixed.told[at], f"{name}.param_groups.{at}", encoder)
            groups.append(f'{{"params":{params},"options":{options}}}')
        values = {
            owned.name: encoder.encode(_plain_values(optimizer, owned), f"{name}.values.{owned.name}")
            for owned in fixed.with_values
        }
        other = {key: optimizer.state[key] for key in fixed.others}
        rest = to_json({**fixed.placed, "values": values, "other": encoder.encode(other, f"{name}.other")})
        return f'{{"groups":[{",".join(groups)}],"on_cpu":{fixed.on_cpu},"order":{fixed.order},{rest[1:]}'


@dataclass(frozen=True, slots=True)
class Fixed:
    """What an optimizer's part of the document says as long as its tensors stay the same, as JSON."""

    params: list[str]
    """Per group: its members' names."""
    on_cpu: str
    order: str
    """Tensors lie in the image by size and name; a state_dict() shows keys in this order."""
    with_values: list[Owned]
    """The parameters whose state has more than tensors."""
    others: list[Any]
    """The keys of the state that are no parameters."""
    placed: dict[str, Any]
    """How the state is distributed, where parameters are DTensors (`layouts_of`)."""
    told: list[dict[str, tuple[object, str]]]
    """Per group and option: its value at a capture before, if that can't change in itself, and the JSON of both."""

    @staticmethod
    def of(name: str, optimizer: torch.optim.Optimizer, groups: list[list[Owned]]) -> Fixed:
        on_cpu: set[str] = set()
        order: dict[Any, None] = {}
        with_values = []
        for owned in chain.from_iterable(groups):
            state = optimizer.state.get(owned.parameter, {})
            order.update(dict.fromkeys(state))
            for key, value in state.items():
                if _is_entry(key, value) and value.device != owned.parameter.device and value.device.type == "cpu":
                    on_cpu.add(key)
            if _plain_values(optimizer, owned):
                with_values.append(owned)
        params = [to_json([owned.name for owned in members]) for members in groups]
        keys = to_json(Encoder().encode(list(order), "order"))
        others = [key for key in optimizer.state if not isinstance(key, torch.Tensor)]
        members = chain.from_iterable(groups)
        placed = layouts_of(name, ((o.name, o.parameter, optimizer.state.get(o.parameter, {})) for o in members))
        return Fixed(params, to_json(sorted(on_cpu)), keys, with_values, others, placed, [{} for _ in groups])


def _options(group: dict[str, Any], told: dict[str, tuple[object, str]], path: str, encoder: Encoder) -> str:
    """The JSON of a group's options. Of a dozen, hardly one differs from one update to the next."""
    if not all(type(key) is str and not key.startswith("$") for key in group):
        return to_json(encoder.encode({key: value for key, value in group.items() if key != "params"}, path))
    texts = []
    for key, value in group.items():
        if key != "params":
            known = told.get(key)
            if known is None or known[0] is not value:
                known = (value, to_json({key: encoder.encode(value, f"{path}.{key}")})[1:-1])
                if _is_constant(value):
                    told[key] = known
            texts.append(known[1])
    return f"{{{','.join(texts)}}}"


def _is_constant(value: object) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or type(value) in (bool, int, float, str)


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _plain_values(optimizer: torch.optim.Optimizer, owned: Owned) -> dict[Any, Any]:
    state = optimizer.state.get(owned.parameter, {})
    return {key: value for key, value in state.items() if not _is_entry(key, value)}
