"""Files as the content of images, and the images of a step as its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ckptd.ckpt.errors import CorruptionError, UsageError
from ckptd.ckpt.image import Entry, Layout
from ckptd.ckpt.strict import short
from ckptd.integrations.files.names import PREFIX, ROOM, UNIT, check
from ckptd.integrations.images import Opened
from ckptd.integrations.tensors import entry


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in memory: bytes `first` to `last` (the one after) of an image."""

    image: Opened
    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first

    def read(self, first: int = 0, last: int | None = None) -> bytes:
        """Bytes `first` to `last` of the file, as far as there are any.

        Raises CorruptionError when the image made way for a newer one.
        """
        last = self.size if last is None else min(last, self.size)
        return self.image.read(self.first + first, self.first + max(first, last))


def packed(
    files: Mapping[str, memoryview], *, job: str, rank: int, world: int
) -> tuple[Layout, dict[str, torch.Tensor]]:
    """The image of a rank's files, and its entries' bytes, which are not copied."""
    parts = {PREFIX + name: _tensor(content) for name, content in files.items()}
    parts[ROOM] = torch.zeros(-sum(part.nbytes for part in parts.values()) % UNIT, dtype=torch.uint8)
    entries = [entry(name, part) for name, part in parts.items()]
    return Layout.of(entries, job=job, rank=rank, world=world), parts


def files_of(images: Sequence[Opened]) -> dict[str, Stored] | None:
    """The files of a step by name; None for a step that is no files, but tensors of a Checkpointer or of `ckptd.dcp`.

    Raises CorruptionError when the images do not agree on that, or two of them have a file of one name.
    """
    marked = [ROOM in image.header.spans for image in images]
    if not any(marked):
        return None
    if not all(marked):
        raise CorruptionError(
            f"{images[0].header.version}: {sum(marked)} of {len(marked)} images are files, expected all"
        )
    found: dict[str, Stored] = {}
    for image in images:
        for described in image.header.entries:
            if described.name != ROOM:
                name = _name(described)
                if name in found:
                    raise CorruptionError(
                        f"{image.header.version}: two ranks wrote {short(name)}; save under another name"
                    )
                found[name] = Stored(image, *image.header.spans[described.name])
    return found


def _name(described: Entry) -> str:
    name = described.name.removeprefix(PREFIX)
    plain = described.dtype == "U8" and len(described.shape) == 1 and described.global_shape == described.shape
    try:
        check(name)
    except UsageError as error:
        raise CorruptionError(f"an image of files: {error}; load another step") from error
    if name == described.name or described.true_dtype or not plain:
        raise CorruptionError(f"an image of files: found entry {short(described.name)}, expected bytes of a file")
    return name


def _tensor(content: memoryview) -> torch.Tensor:
    if not content.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    array = np.frombuffer(content, dtype=np.uint8)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
