"""torch tensors as entries of an image, and the bytes of a mapped file as torch tensors."""

from __future__ import annotations

import mmap
import os
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckptd.ckpt.boxes import Box
from ckptd.ckpt.errors import CorruptionError, StateError
from ckptd.ckpt.image import Entry, entry_of
from ckptd.ckpt.shm import foresee, touch

_SHARDED = {"DTensor", "ShardedTensor"}
_SAMPLE_WORDS = 16
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without autograd and subclass, sharing its memory. Raises StateError when it is not dense and local."""
    kind = type(tensor)
    if _SHARDED & {base.__name__ for base in kind.__mro__}:
        raise StateError(
            f"{name}: found a {kind.__name__}, expected a whole local tensor; DTensors are captured as parameters and "
            "buffers of a module and as tensors of an optimizer's state: give the Checkpointer that module or optimizer"
        )
    if is_lazy(tensor):
        raise StateError(f"{name}: not initialized yet; run one forward before the first snapshot")
    dense = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)
    if not dense or is_traceable_wrapper_subclass(tensor) or not _copies(tensor.dtype):
        raise StateError(
            f"{name}: found a {kind.__name__} ({tensor.layout}, {tensor.dtype}, {tensor.device}), expected a dense tensor "
            "with bytes of its own; convert it in the object's state_dict()"
        )
    return tensor.detach().as_subclass(torch.Tensor)


@cache
def _copies(dtype: torch.dtype) -> bool:
    """Whether torch can copy elements of this dtype at all (it cannot for its sub-byte placeholders)."""
    try:
        torch.empty(1, dtype=dtype).clone()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def entry(name: str, tensor: torch.Tensor, whole: tuple[int, ...] | None = None, box: Box | None = None) -> Entry:
    """Describe a tensor for the image, or a tensor that is the part in `box` of one of shape `whole`."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return entry_of(name, dtype, tensor.element_size(), tuple(tensor.shape) if whole is None else whole, box)


def dtype_of(described: Entry) -> torch.dtype:
    """Raises StateError when this torch does not know the dtype (the image may come from a newer one)."""
    dtype = getattr(torch, described.dtype_name, None)
    if not isinstance(dtype, torch.dtype) or dtype.itemsize != described.itemsize:
        raise StateError(
            f"{described.name}: torch {torch.__version__} has no dtype {described.dtype_name} of {described.itemsize} bytes;"
            " restore with the torch that the snapshot was captured with"
        )
    return dtype


class Mapping:
    """A file of an exact size as bytes and as typed tensors. It is unmapped when the last tensor is gone.

    A writable mapping is shared and populated at once, so that no page fault falls into a capture. A mapping for reading
    is private to this process: nothing that is done to its tensors reaches the file.
    """

    def __init__(self, path: Path, size: int, *, write: bool) -> None:
        """Raises CorruptionError when the file is missing or of another size."""
        try:
            with path.open("r+b" if write else "rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    raise CorruptionError(f"{path}: found {found} bytes, expected {size}; the daemon must make it anew")
                self.memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED if write else mmap.MAP_PRIVATE)
        except FileNotFoundError as error:
            raise CorruptionError(
                f"{path}: no such file, expected {size} bytes; is the daemon's tmpfs gone?"
            ) from error
        if write:
            with memoryview(self.memory) as view:
                touch(view)
        # numpy holds the mapping's buffer, torch.frombuffer would not: closing it under a tensor is a segfault.
        self._bytes = torch.from_numpy(np.frombuffer(self.memory, dtype=np.uint8))

    def foresee(self, first: int, last: int) -> None:
        """Bytes `first` to `last` stand in the file and will be read."""
        with memoryview(self.memory) as view:
            foresee(view[first - first % mmap.PAGESIZE : last])

    @property
    def place(self) -> tuple[int, int]:
        """The address of the first byte, and how many there are."""
        return self._bytes.data_ptr(), self._bytes.nbytes

    def tensor(self, described: Entry, span: tuple[int, int]) -> torch.Tensor:
        """The entry's elements at bytes `span` of the file, in place."""
        dtype = dtype_of(described)
        if span[0] == span[1]:
            return torch.empty(described.local, dtype=dtype)
        return self._bytes[span[0] : span[1]].view(dtype).view(described.local)


def sample_of(tensor: torch.Tensor) -> npt.NDArray[np.generic] | None:
    """A live numpy view of about 16 words spread over a CPU tensor; None where there is nothing to look at.

    A trip wire compares what it shows at two moments; it proves a change, never that there was none.
    """
    if tensor.device.type != "cpu" or tensor.numel() == 0 or tensor.is_conj() or tensor.is_neg():
        return None
    if tensor.is_contiguous():
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        words = raw[: len(raw) // 8 * 8].view(np.uint64) if len(raw) >= 8 else raw
        return words[:: max(1, len(words) // _SAMPLE_WORDS)][:_SAMPLE_WORDS]
    same_size = _SAME_SIZE.get(tensor.element_size())
    if same_size is None:
        return None
    longest = max(range(tensor.dim()), key=lambda dim: tensor.size(dim) if tensor.stride(dim) else 0)
    for dim in range(tensor.dim() - 1, -1, -1):
        if dim != longest:
            tensor = tensor.select(dim, 0)
    return tensor[:: max(1, len(tensor) // _SAMPLE_WORDS)][:_SAMPLE_WORDS].view(same_size).numpy()
