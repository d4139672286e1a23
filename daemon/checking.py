"""What a check of bytes has found, as rows for people and programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.model import Version
from ckptd.ckpt.storage import Step, Storage

Row = dict[str, Any]


def row(kind: str, what: str, version: Version, size: int, bad: Sequence[int]) -> Row:
    """One thing that was checked; `bad`: its pieces that fail their checksums."""
    found: Row = {
        "kind": kind, "what": what, "epoch": version.epoch, "step": version.step, "bytes": size, "ok": not bad,
    }  # fmt: skip
    if bad:
        found["reason"] = f"{len(bad)} pieces fail their checksum, the first is {bad[0]}"
    return found


def files(storage: Storage, step: Step) -> Iterator[Row]:
    """Every image of a persisted step, each when it has been read."""
    for image in step.manifest.images:
        found = row("file", f"rank {image.rank}", step.manifest.version, image.size, [])
        try:
            storage.check(step, image.rank)
        except CkptdError as error:
            found |= {"ok": False, "reason": str(error)}
        yield found
