"""Write a gathered step as files that other tools open: safetensors, a DCP directory, or a `torch.save` file.

Run by `ckptd export` as a process of its own, `python -m ckptd.integrations.export`, which reads one line of JSON:

    format, directory, replace     where to, and whether an earlier export there may go
    images                         the files of all ranks' images
    part, strip                    of which object, and what to take from the names
    shard_bytes                    the most of one safetensors file
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from ckptd.integrations.exchange.places import check_space, put
from ckptd.integrations.exchange.progress import Teller, answer
from ckptd.integrations.exchange.steps import content_of
from ckptd.integrations.exchange.writers import extra_bytes, write


def export(asked: dict[str, Any]) -> dict[str, Any]:
    """Write it; return the names of the files, how many tensors and bytes they hold, and what was left out.

    Raises UsageError, StateError, CorruptionError, StorageError. The directory is as it was then.
    """
    fmt, directory = str(asked["format"]), Path(asked["directory"])
    content = content_of([Path(image) for image in asked["images"]]).select(asked["part"], asked["strip"])
    check_space(directory.absolute(), content.nbytes + extra_bytes(fmt, content), "the export")
    with put(directory, replace=asked["replace"]) as made:
        left_out = write(fmt, made, content, shard_bytes=asked["shard_bytes"], add=Teller(content.nbytes).add)
        files = sorted(path.name for path in made.iterdir())
    return {"files": files, "tensors": len(content.tensors), "bytes": content.nbytes, "left_out": left_out}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    sys.exit(answer(export))
