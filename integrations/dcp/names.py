"""What a checkpoint id means: which step of which job. Nothing in an id is ever a path.

12, "12", "step-12"                   step 12 of this process's job
"ckptd://gpt/step-12"                 step 12 of job gpt
"ckptd://gpt/step-12.e3"              the one of epoch 3, for reading: a step that was saved twice has two epochs
None, "ckptd://gpt"                   the newest step, for reading
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NoReturn

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import JOB_NAME, Version
from ckptd.ckpt.strict import short

SCHEME = "ckptd://"
_STEP = re.compile(r"(?:step-)?([0-9]{1,18})(?:\.e([0-9]{1,10}))?")

CheckpointId = str | int | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Address:
    """A step of a job; None where the id leaves it open."""

    job: str | None = None
    step: int | None = None
    epoch: int | None = None

    def fits(self, version: Version) -> bool:
        """Whether it may be that version which is meant."""
        return self.step in (None, version.step) and self.epoch in (None, version.epoch)

    def __str__(self) -> str:
        step = "the newest step" if self.step is None else f"step {self.step}"
        return step if self.epoch is None else f"{step} (epoch {self.epoch})"


def address_of(checkpoint_id: CheckpointId) -> Address:
    """What an id names. Raises UsageError for anything that is not in the table above."""
    text = text_of(checkpoint_id)
    if text is None:
        return Address()
    job = None
    if text.startswith(SCHEME):
        job, _, text = text.removeprefix(SCHEME).partition("/")
        if not JOB_NAME.fullmatch(job):
            _refuse(checkpoint_id)
        if not text:
            return Address(job)
    found = _STEP.fullmatch(text)
    if found is None:
        _refuse(checkpoint_id)
    return Address(job, int(found[1]), None if found[2] is None else int(found[2]))


def text_of(checkpoint_id: CheckpointId) -> str | None:
    """The id as DCP wants it. Raises UsageError for another type."""
    if checkpoint_id is None or isinstance(checkpoint_id, str):
        return checkpoint_id
    if type(checkpoint_id) is int:
        return str(checkpoint_id)
    return os.fspath(checkpoint_id) if isinstance(checkpoint_id, os.PathLike) else _refuse(checkpoint_id)


def name_of(version: Version) -> str:
    """The last part of an id that names exactly this version."""
    return f"step-{version.step}.e{version.epoch}"


def _refuse(found: object) -> NoReturn:
    raise UsageError(
        f"found checkpoint id {short(found)}, expected a step: 12, 'step-12' or 'ckptd://job/step-12'. Steps in memory have "
        "no folders; a folder is for torch's own FileSystemWriter and FileSystemReader"
    )
