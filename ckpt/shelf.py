"""A storage root looked at from outside, without daemons: whose steps are there, how large, how old, whole or not.

`ckptd.ckpt.shelf_files` looks at a directory, `ckptd.ckpt.shelf_objects` at a prefix of an object store. Both read names,
sizes and manifests; no image is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ckptd.ckpt import manifest
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.model import Version
from ckptd.ckpt.place import Place
from ckptd.ckpt.retention import Kept


@dataclass(frozen=True, slots=True)
class Published:
    """What has a step's name, and is not known to be unfinished."""

    version: Version
    world: int
    """The ranks of its manifest; 0 where that can't be read."""
    nbytes: int
    """What its files take."""
    written_at: float | None
    """Seconds since 1970, by the storage's clock; None where it does not say."""
    problem: str
    """Why it can't be restored; empty where it can."""
    is_link: bool = False
    """Whether it stands elsewhere, and is somebody else's."""

    def kept(self, now: float) -> Kept:
        """What a rule of retention asks. `now`: seconds since 1970."""
        return Kept(self.version, None if self.written_at is None else now - self.written_at, not self.problem)


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is being written or removed, or was when its process died."""

    where: str
    """Its path, or its URL."""
    nbytes: int
    touched_at: float | None
    """When it was last written to: seconds since 1970, by the storage's clock; None where it does not say."""


class Shelf(Protocol):
    """Every method raises StorageError; so does a manifest that can't be read now, which is not the same as a broken one."""

    @property
    def where(self) -> str:
        """The root in words of a user: a path or a URL."""

    def place(self, job: str) -> Place:
        """Where a job's steps are read, written and removed."""

    def jobs(self) -> list[str]:
        """The jobs that have steps, or beginnings of some."""

    def knows(self, job: str) -> bool:
        """Whether there is anything of a job."""

    def published(self, job: str) -> list[Published]:
        """A job's steps, newest first. StorageError where the job is not known."""

    def leftovers(self, job: str) -> list[Leftover]:
        """What is not, or no longer, a published step, and what writers that died have left in those that are."""

    def discard(self, leftover: Leftover) -> None:
        """Remove what was left behind, so that nobody can publish it any more. What somebody else removed is fine."""


def judged(
    job: str, version: Version, content: bytes, sizes: Mapping[str, int], nbytes: int, at: float | None
) -> Published:
    """A step by its manifest's content and the sizes of what stands beside it."""
    name = manifest.dir_name(version)
    try:
        found = manifest.decode(content, name)
        if found.job != job:
            raise CorruptionError(f"{name} belongs to job {found.job!r}")
        if problem := manifest.missing(found, sizes):
            raise CorruptionError(f"{name}/{problem}")
    except CorruptionError as error:
        return Published(version, 0, nbytes, at, str(error))
    return Published(version, found.world, nbytes, at, "")
