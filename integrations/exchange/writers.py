"""A content as files below a directory that is the writer's own: safetensors, a DCP directory, or a `torch.save` file."""

from __future__ import annotations

import io
import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ckptd.ckpt import disk
from ckptd.ckpt.errors import StateError, UsageError
from ckptd.ckpt.image import MAX_HEADER
from ckptd.integrations.exchange.content import Add, Content, Part, Whole, check_name

FORMATS = ("safetensors", "dcp", "torch")
INDEX = "model.safetensors.index.json"
_ALIGNED = 8  # what safetensors pads its header to
_SCRATCH = ".joined"


def write(fmt: str, directory: Path, content: Content, *, shard_bytes: int, add: Add) -> list[str]:
    """Write the content into an empty directory, synced; return what was left out, by name.

    `shard_bytes`: the most bytes of tensors in a safetensors file (a larger tensor gets one of its own); 0: one file. `add`
    is told of bytes that were written. Raises OSError; StateError for what the format cannot hold.
    """
    if fmt == "dcp":
        _dcp(directory, content, add)
    elif fmt == "torch":
        _torch(directory, content, add)
    elif fmt == "safetensors":
        _safetensors(directory, content, shard_bytes, add)
    else:
        raise UsageError(f"format {fmt!r}: expected one of {', '.join(FORMATS)}")
    disk.sync_dir(directory)
    return [] if fmt == "dcp" else list(content.objects)


def extra_bytes(fmt: str, content: Content) -> int:
    """How many bytes a format takes for a while beside those of its files."""
    if fmt != "torch":
        return 0
    return sum(tensor.nbytes for tensor in content.tensors if len(tensor.parts) > 1)


# ---- safetensors --------------------------------------------------------------------------------------------


def _safetensors(directory: Path, content: Content, shard_bytes: int, add: Add) -> None:
    shards = list(_shards(content.tensors, shard_bytes))
    about = {"format": "pt"}
    own: dict[str, Any] = {} if content.step is None else {"step": content.step}
    if len(shards) == 1:
        _file(directory / "model.safetensors", shards[0], about, own, add)
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _file(directory / name, shard, about, own, add)
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in content.tensors)}, "weight_map": where}
    disk.write_durably(directory / INDEX, json.dumps(index, indent=1).encode())


def _shards(tensors: Sequence[Whole], limit: int) -> Iterator[list[Whole]]:
    shard: list[Whole] = []
    size = 0
    for tensor in tensors:
        if shard and limit and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _file(path: Path, tensors: Sequence[Whole], about: dict[str, str], own: dict[str, Any], add: Add) -> None:
    entries = {check_name(tensor.name): tensor.entry for tensor in tensors}
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    carried = {name: entry.true_dtype for name, entry in entries.items() if entry.true_dtype}
    own = own | ({"dtypes": carried} if carried else {})
    header: dict[str, Any] = {"__metadata__": about | ({"ckptd": json.dumps(own)} if own else {})}
    end = 0
    for tensor in ordered:
        entry, first, end = entries[tensor.name], end, end + tensor.nbytes
        header[tensor.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // _ALIGNED) * _ALIGNED)
    if len(text) > MAX_HEADER:
        raise StateError(
            f"{len(tensors)} tensors need a header of {len(text)} bytes, a safetensors file may have {MAX_HEADER}; "
            "export in smaller shards"
        )
    with _synced(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            for band in tensor.bands():
                file.write(_bytes_of(band).data)
                add(band.nbytes)


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _bytes_of(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    raw: np.ndarray[Any, np.dtype[np.uint8]] = tensor.reshape(-1).view(torch.uint8).numpy()
    return raw


# ---- torch.save ---------------------------------------------------------------------------------------------


class _Counted(io.RawIOBase):
    """A file that tells how much was written."""

    def __init__(self, file: BinaryIO, add: Add) -> None:
        self._file, self._add = file, add

    def write(self, data: Any) -> int:
        count = self._file.write(data)
        self._add(count)
        return count

    def flush(self) -> None:
        self._file.flush()


def _torch(directory: Path, content: Content, add: Add) -> None:
    """A dict of tensors. torch.save wants all of them at once: they stay mapped from files, and take no memory."""
    scratch = directory / _SCRATCH
    size = extra_bytes("torch", content)
    room = None
    if size:
        with scratch.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            room = mmap.mmap(file.fileno(), size)
        scratch.unlink()
    mapped, start = {}, 0
    for tensor in content.tensors:
        if len(tensor.parts) == 1 or room is None or not tensor.nbytes:
            mapped[tensor.name] = _alone(tensor.parts[0].read())
            continue
        raw = torch.from_numpy(np.frombuffer(room, dtype=np.uint8, count=tensor.nbytes, offset=start))
        mapped[tensor.name] = raw.view(tensor.dtype).view(tensor.shape)
        tensor.copy_to(mapped[tensor.name])
        start += tensor.nbytes
    with _synced(directory / "checkpoint.pt") as file:
        torch.save(mapped, _Counted(file, add))  # type: ignore[arg-type]  # all that it needs


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a storage of its own: torch.save writes whole storages, and this one's is a whole image."""
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.from_numpy(_bytes_of(tensor)).view(tensor.dtype).view(tensor.shape)


# ---- DCP ----------------------------------------------------------------------------------------------------


class _Planner(DefaultSavePlanner):
    """Writes every part as it is: a DCP directory holds tensors in parts, so nothing needs to be joined."""

    def __init__(self, content: Content, add: Add) -> None:
        super().__init__(flatten_state_dict=True)
        self._content, self._add = content, add
        self._parts: dict[MetadataIndex, Part] = {}

    def create_local_plan(self) -> SavePlan:
        items = [self._item(tensor, part) for tensor in self._content.tensors for part in tensor.parts]
        items += [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in self._content.objects]
        names = [*(tensor.name for tensor in self._content.tensors), *self._content.objects]
        self.plan = SavePlan(items, planner_data={name: self._content.paths.get(name, (name,)) for name in names})
        return self.plan

    def _item(self, tensor: Whole, part: Part) -> WriteItem:
        index = MetadataIndex(tensor.name, torch.Size(part.box.offsets))
        self._parts[index] = part
        chunk = ChunkStorageMetadata(torch.Size(part.box.offsets), torch.Size(part.box.shape))
        data = TensorWriteData(chunk, TensorProperties(dtype=tensor.dtype), torch.Size(tensor.shape))
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            content = self._content.objects[write_item.index.fqn]
            self._add(len(content))
            return io.BytesIO(content)
        # Mapped, as DCP keeps every tensor until the last one is written.
        part = _alone(self._parts[MetadataIndex(write_item.index.fqn, write_item.index.offset)].read())
        self._add(part.nbytes)
        return part


def _dcp(directory: Path, content: Content, add: Add) -> None:
    writer = FileSystemWriter(directory, single_file_per_rank=True, sync_files=True)
    dcp_save({}, storage_writer=writer, planner=_Planner(content, add), no_dist=True)
