"""Contents for the tests: tensors of every kind in parts, and what a content or a stock tool holds, as bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tests.fakes import bits

from ckptd.ckpt.boxes import Box
from ckptd.integrations.exchange.content import Content, Part, Whole

KINDS = {
    "bf16": torch.randn(5, 3).bfloat16(), "fp8": torch.randn(6).to(torch.float8_e4m3fn), "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "wide": torch.randn(3, 2, dtype=torch.complex128),
    "long": torch.arange(7), "model.block.0.weight": torch.randn(8, 4), "odd name/é": torch.randn(1),
    "fp8.scale": torch.randn(2, 1).to(torch.float8_e5m2), "half": torch.randn(3).half(),
    "u16": torch.tensor([1, 65535]).to(torch.uint16),
}  # fmt: skip
"""One tensor of each kind that is easily got wrong."""


def whole_of(name: str, tensor: torch.Tensor, parts: int = 1) -> Whole:
    """A tensor cut into so many parts at rows, as ranks hold them; views of it, as in a mapped image."""
    boxes = [Box.whole(tuple(tensor.shape))]
    if parts > 1 and tensor.dim() and len(tensor):
        size = -(-len(tensor) // parts)
        boxes = [boxes[0].rows(first, min(size, len(tensor) - first)) for first in range(0, len(tensor), size)]
    shape = tuple(tensor.shape)
    made = tuple(Part(box, lambda box=box: tensor[box.within(Box.whole(shape))]) for box in boxes)  # type: ignore[misc]
    return Whole.of(name, tensor.dtype, shape, made)


def content_of_tensors(tensors: Mapping[str, torch.Tensor], parts: int = 1, step: int | None = None) -> Content:
    """All of them, by name."""
    return Content(tuple(whole_of(name, tensor, parts) for name, tensor in sorted(tensors.items())), step=step)


def held(content: Content) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bits of each tensor."""
    return {
        tensor.name: (str(tensor.dtype), tensor.shape, b"".join(bits(band) for band in tensor.bands()))
        for tensor in content.tensors
    }


def told(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The same of plain tensors."""
    return {name: (str(tensor.dtype), tuple(tensor.shape), bits(tensor)) for name, tensor in tensors.items()}
