"""Paths of `ckptd://`: which job, which step, which file of it."""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import JOB_NAME
from ckptd.ckpt.strict import short
from ckptd.integrations.dcp.names import SCHEME, Address, address_of
from ckptd.integrations.files.names import check


@dataclass(frozen=True, slots=True)
class Place:
    """A path, taken apart. What a path leaves out is empty."""

    job: str = ""
    step: str = ""
    """As it was written: `step-12`, `12` or `step-12.e3`."""
    file: str = ""
    """Its name below the step, directories and all."""

    @property
    def address(self) -> Address:
        """Which step is meant. Raises UsageError for a name that is none."""
        return address_of(f"{SCHEME}{self.job}/{self.step}")


def place_of(path: str) -> Place:
    """Take apart a path without its scheme. Raises UsageError when it can't be that of anything."""
    job, _, rest = path.partition("/")
    step, _, file = rest.partition("/")
    if job and not JOB_NAME.fullmatch(job):
        raise UsageError(f"found {short(path)}, expected the name of a job before the first slash")
    if file:
        check(file)
    return Place(job, step, file)
