"""Write a gathered step as files that other tools open: one safetensors file, a DCP directory, or a `torch.save` file.

Run by `ckptd export` as a process of its own: `python -m ckptd.integrations.export FORMAT DIRECTORY IMAGE...`. The parts
of tensors that were split over ranks are joined; what belongs to one rank keeps its prefix `rank-00003.`; each rank's
non-tensor state stays a uint8 tensor of JSON named `ckptd.state.rank-00003`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ckptd.ckpt.errors import CkptdError, CorruptionError, StorageError
from ckptd.ckpt.image import Layout, parse
from ckptd.ckpt.model import Version
from ckptd.integrations.tensors import Mapping, dtype_of, entry


def join(images: Sequence[Path]) -> tuple[dict[str, torch.Tensor], Version, str]:
    """The whole tensors of a step by name, its version and its job, from the images of all its ranks.

    Raises CorruptionError when the images are of different steps or leave elements of a tensor unwritten.
    """
    mappings = [Mapping(path, path.stat().st_size, write=False) for path in images]
    headers = [parse(memoryview(mapping.memory)) for mapping in mappings]
    kinds = {(header.job, header.version, header.world) for header in headers}
    if len(kinds) != 1 or sorted(header.rank for header in headers) != list(range(headers[0].world)):
        raise CorruptionError(
            f"{len(images)} images of {len(kinds)} different steps, expected one of every rank of one step"
        )
    whole: dict[str, torch.Tensor] = {}
    filled: dict[str, int] = {}
    for header, mapping in zip(headers, mappings, strict=True):
        for part in header.entries:
            if part.name not in whole:
                whole[part.name] = torch.empty(part.whole, dtype=dtype_of(part))
                filled[part.name] = 0
            target = whole[part.name]
            if tuple(target.shape) != part.whole or target.dtype != dtype_of(part):
                raise CorruptionError(f"{part.name}: the ranks disagree about its shape or dtype")
            region = tuple(slice(first, first + count) for first, count in zip(part.offsets, part.local, strict=False))
            target[region].copy_(mapping.tensor(part, header.spans[part.name]))
            filled[part.name] += target[region].numel()
    short = [name for name, tensor in whole.items() if filled[name] != tensor.numel()]
    if short:
        raise CorruptionError(f"the images leave parts of {', '.join(short[:3])} unwritten or write them twice")
    return whole, headers[0].version, headers[0].job


def write(fmt: str, directory: Path, tensors: dict[str, torch.Tensor], version: Version, job: str) -> list[str]:
    """Write the tensors below `directory` and return the names of the files. Raises StorageError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if fmt == "dcp":
            dcp_save(dict(tensors), checkpoint_id=directory, no_dist=True)
        elif fmt == "torch":
            torch.save(tensors, directory / "checkpoint.pt")
        else:
            _write_safetensors(directory / "checkpoint.safetensors", tensors, version, job)
    except OSError as error:
        raise StorageError(f"cannot write below {directory}: {error.strerror or error}") from error
    return sorted(path.name for path in directory.iterdir())


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor], version: Version, job: str) -> None:
    """The same format as an image, of a world of one rank."""
    layout = Layout.of([entry(name, tensor) for name, tensor in tensors.items()], job=job, rank=0, world=1)
    with path.open("wb") as file:
        file.write(layout.header_for(version))
        for described in layout.entries:
            file.write(tensors[described.name].reshape(-1).view(torch.uint8).numpy().tobytes())


def main(arguments: Sequence[str]) -> int:
    """Print the names of the files as JSON; return the exit code."""
    fmt, directory, *images = arguments
    try:
        tensors, version, job = join([Path(image) for image in images])
        files = write(fmt, Path(directory), tensors, version, job)
    except CkptdError as error:
        print(f"ckptd: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"files": files, "tensors": len(tensors)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
