"""Which part of a tensor this rank holds, and who holds the same part: DTensors and replicas, as far as ckptd knows them.

A DTensor is a local tensor, a mesh of ranks and one placement per dimension of the mesh: `Shard` and torch's
`_StridedShard` cut a dimension of the tensor, `Replicate` repeats what there is. So the ranks whose coordinates differ
only along replicating dimensions hold the same bytes, and all ranks of the mesh together hold the whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from ckptd.ckpt.boxes import Box, Cut, shard
from ckptd.ckpt.errors import StateError
from ckptd.ckpt.strict import short
from ckptd.integrations.tensors import plain

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

_PLACEMENT = re.compile(r"R|S(\d{1,2})(?:/([1-9]\d{0,5}))?")


def is_dtensor(tensor: object) -> TypeGuard[DTensor]:
    """Whether this is a DTensor; their module is slow to import, and where nobody has, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that has this rank's bytes: a DTensor's local one, else the tensor itself."""
    return tensor._local_tensor if is_dtensor(tensor) else tensor  # noqa: SLF001 - to_local() makes a new object for autograd


def first_holder(tensor: torch.Tensor, replicas: Sequence[int]) -> int:
    """The lowest rank that holds a part of the tensor: of a DTensor's mesh, or of its replicas."""
    return int(tensor.device_mesh.mesh.min()) if is_dtensor(tensor) else min(replicas)


@dataclass(frozen=True, slots=True)
class Part:
    """What this rank holds of a tensor."""

    local: torch.Tensor
    """Plain: without autograd and subclass."""
    whole: tuple[int, ...]
    """Shape of the whole tensor."""
    box: Box
    """Where `local` lies in it."""
    holders: tuple[int, ...]
    """All ranks that hold a part of it, in ascending order. The first one lends its name to the tensor's entries."""
    replicas: tuple[int, ...]
    """Those that hold this part, in ascending order."""


def check_state(name: str, value: torch.Tensor, parameter: torch.Tensor) -> None:
    """Raises StateError for a DTensor in the state of a parameter that is none: a restore could not make it anew."""
    if is_dtensor(value) and not is_dtensor(parameter):
        raise StateError(
            f"{name}: found a DTensor in the state of a parameter that is a plain tensor; expected both or none: "
            "distribute the parameter, too"
        )


def part_of(name: str, tensor: torch.Tensor, replicas: Sequence[int]) -> Part:
    """This rank's part. `replicas`: the ranks that hold the tensor alike, if it is not a DTensor, which knows that itself.

    Raises StateError for what cannot be captured: see `plain`, and DTensors with pending sums or scattered rows.
    """
    if not is_dtensor(tensor):
        local = plain(name, tensor)
        ranks = tuple(sorted(replicas))
        return Part(local, tuple(local.shape), Box.whole(tuple(local.shape)), ranks, ranks)
    local = plain(name, memory_of(tensor))
    whole, at = tuple(tensor.shape), tensor.device_mesh.get_coordinate()
    grid = tensor.device_mesh.mesh  # worked out anew at each look
    holders = tuple(sorted(grid.flatten().tolist()))
    if at is None:
        return Part(local, whole, Box((0,) * len(whole), (0,) * len(whole)), holders, ())
    box = _box(name, whole, grid.shape, at, tensor.placements)
    if box.shape != tuple(local.shape):
        raise StateError(
            f"{name}: found a local tensor of shape {list(local.shape)}, expected {list(box.shape)}, which is what "
            f"{tensor.placements} leave of {list(whole)}; shard it evenly, or as distribute_tensor() does"
        )
    same = [slice(None) if placement.is_replicate() else i for placement, i in zip(tensor.placements, at, strict=True)]
    return Part(local, whole, box, holders, tuple(sorted(grid[tuple(same)].flatten().tolist())))


def _box(
    name: str, whole: tuple[int, ...], sizes: Sequence[int], at: Sequence[int], placements: Sequence[Placement]
) -> Box:
    from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

    cuts = []
    for size, index, placement in zip(sizes, at, placements, strict=True):
        if isinstance(placement, _StridedShard):
            cuts.append(Cut(placement.dim, size, index, int(placement.split_factor)))
        elif isinstance(placement, Shard):
            cuts.append(Cut(placement.dim, size, index))
        elif not isinstance(placement, Replicate):
            raise StateError(
                f"{name}: found a DTensor with placement {placement}, expected Shard or Replicate: what is not reduced yet "
                "is no state; redistribute() it before step()"
            )
    if any(cut.dim >= len(whole) for cut in cuts):
        raise StateError(
            f"{name}: found placements {tuple(placements)}, expected some of a tensor of shape {list(whole)}"
        )
    box = shard(whole, cuts)
    if box is None:
        raise StateError(
            f"{name}: found a DTensor of placements {tuple(placements)}, whose local rows are scattered over the whole; "
            "expected one run of rows: shard it without strides, or with Shard after _StridedShard, as fully_shard() does"
        )
    return box


PLAIN, LIKE = "plain", "like"


def layout_of(name: str, tensor: torch.Tensor, parameter: DTensor) -> str:
    """How a tensor of the optimizer's state of a DTensor is distributed, in a word that `empty_as` understands.

    A plain tensor, like its parameter, or by placements of its own on the parameter's mesh: S<dim>, S<dim>/<split factor>
    and R, one per dimension of the mesh. Raises StateError for another mesh.
    """
    if not is_dtensor(tensor):
        return PLAIN
    if tensor.device_mesh != parameter.device_mesh:
        raise StateError(
            f"{name}: found a DTensor on another mesh than its parameter's; expected the same, so that a restore can make it"
        )
    if tensor.placements == parameter.placements:
        return LIKE
    return " ".join(_word(placement) for placement in tensor.placements)


def _word(placement: Placement) -> str:
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    if isinstance(placement, _StridedShard):
        return f"S{placement.dim}/{placement.split_factor}"
    return f"S{placement.dim}" if isinstance(placement, Shard) else "R"


def layouts_of(path: str, states: Iterable[tuple[str, torch.Tensor, Mapping[Any, Any]]]) -> dict[str, Any]:
    """What a restore needs to make an optimizer's state anew: how it is distributed, where the parameter is a DTensor.

    `states`: name, parameter and state of each. By key of the state, and by parameter where one differs from the first.
    """
    usual: dict[str, str] = {}
    unlike: dict[str, dict[str, str]] = {}
    for name, parameter, state in states:
        if not is_dtensor(parameter):
            continue
        for key, value in state.items():
            if isinstance(key, str) and isinstance(value, torch.Tensor):
                layout = layout_of(f"{path}.state.{name}.{key}", value, parameter)
                if usual.setdefault(key, layout) != layout:
                    unlike.setdefault(name, {})[key] = layout
    return {"layouts": usual, "unlike": unlike} if usual else {}


def saved_layout(saved: Mapping[str, Any], name: str, key: str) -> str:
    """What `layouts_of` said of one tensor; `LIKE` where it said nothing: plain beside a plain parameter."""
    layout = saved.get("unlike", {}).get(name, {}).get(key) or saved.get("layouts", {}).get(key, LIKE)
    return str(layout)


def empty_as(
    name: str, parameter: torch.Tensor, layout: str, whole: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """An uninitialized tensor of shape `whole` for the state of a parameter, in the memory order that optimizers choose.

    Raises StateError where such a layout does not go with the parameter.
    """
    memory = memory_of(parameter.detach())
    if layout == PLAIN or not is_dtensor(parameter):
        if whole == tuple(parameter.shape):
            return torch.empty_like(memory, dtype=dtype, device=device)
        return torch.empty(whole, dtype=dtype, device=device)
    from torch.distributed.tensor import DTensor

    mesh = parameter.device_mesh
    placements = parameter.placements if layout == LIKE else _placements(name, layout)
    at = mesh.get_coordinate()
    if len(placements) != mesh.ndim or at is None:
        raise StateError(f"{name} (placed as {layout!r} in the snapshot, on a mesh of {mesh.ndim} dimensions here)")
    if layout == LIKE and whole == tuple(parameter.shape):
        local = torch.empty_like(memory, dtype=dtype, device=device)
    else:
        local = torch.empty(_box(name, whole, mesh.mesh.shape, at, placements).shape, dtype=dtype, device=device)
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=torch.Size(whole), stride=stride)


def _placements(name: str, layout: str) -> tuple[Placement, ...]:
    from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

    found: list[Placement] = []
    for word in layout.split(" "):
        match = _PLACEMENT.fullmatch(word)
        if match is None:
            raise StateError(f"{name} (placed as {short(layout)} in the snapshot, expected words like R, S0 or S0/2)")
        dim, factor = match.groups()
        if dim is None:
            found.append(Replicate())
        else:
            found.append(Shard(int(dim)) if factor is None else _StridedShard(int(dim), split_factor=int(factor)))
    return tuple(found)
