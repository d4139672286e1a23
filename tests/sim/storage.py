"""The simulated storage: what a node has written and not synced outlives its daemon and dies with the node.

The steps are those of `ckptd.ckpt.disk` and `ckptd.ckpt.storage`: a temporary file, its content synced, a rename, the
directory synced; when all files stand the version's directory is renamed into place and its parent synced.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random

from tests.sim.memory import digest

from ckptd.ckpt.model import Table, Version

Key = tuple[Version, int]
"""A rank's file of a version."""


@dataclass(slots=True)
class File:
    """A file: `content` and `name` say whether each was synced."""

    data: bytes
    writer: int
    content: bool = False
    name: bool = False
    before: File | None = None
    """What stood under the name: an unsynced rename may turn out not to have happened."""
    rotten: bool = False
    """Whether a byte of it reads wrong at the moment."""

    @property
    def read(self) -> bytes:
        """What a reader sees."""
        return bytes([self.data[0] ^ 1]) + self.data[1:] if self.rotten else self.data


@dataclass(slots=True)
class Published:
    """The name of a published version, with its manifest."""

    table: Table
    writer: int
    at: float
    """When, in simulated seconds."""
    synced: bool = False


@dataclass(slots=True)
class Storage:
    """Every method says False when storage fails. `skipped` are syncs that a planted bug leaves out."""

    works: bool = True
    temporary: dict[tuple[Key, int], File] = field(default_factory=dict)
    files: dict[Key, File] = field(default_factory=dict)
    names: dict[Version, Published] = field(default_factory=dict)
    skipped: Collection[str] = ()

    def write(self, key: Key, data: bytes, writer: int) -> bool:
        """(Over)write the writer's temporary file."""
        if self.works:
            self.temporary[key, writer] = File(data, writer)
        return self.works

    def sync(self, key: Key, writer: int) -> bool:
        """Make the temporary file's content permanent."""
        if self.works and "content" not in self.skipped:
            self.temporary[key, writer].content = True
        return self.works

    def rename(self, key: Key, writer: int) -> bool:
        """Give the temporary file its name."""
        if self.works:
            file = self.temporary.pop((key, writer))
            file.before, self.files[key] = self.files.get(key), file
        return self.works

    def sync_directory(self, key: Key) -> bool:
        """Make the names of the files of a version permanent."""
        if self.works and "names" not in self.skipped:
            self.files[key].name, self.files[key].before = True, None
        return self.works

    def publish(self, table: Table, writer: int, at: float) -> bool:
        """Rename the version into place."""
        if self.works and table.version not in self.names:
            self.names[table.version] = Published(table, writer, at)
        return self.works

    def sync_root(self, version: Version) -> bool:
        """Make the version's name permanent."""
        if self.works and "root" not in self.skipped:
            self.names[version].synced = True
        return self.works

    def remove(self, version: Version) -> None:
        """Take a version away, name and files."""
        self.names.pop(version, None)
        for key in [key for key in self.files if key[0] == version]:
            del self.files[key]

    def lose(self, node: int, rng: Random) -> None:
        """A node stops: each thing that it has not synced is there, gone, or torn."""
        for gone in [key for key in self.temporary if key[1] == node]:
            del self.temporary[gone]
        for key, file in list(self.files.items()):
            if file.writer != node:
                continue
            if not file.name and rng.random() < 0.5:
                if file.before is None:
                    del self.files[key]
                    continue
                file = self.files[key] = file.before
            if not file.content and rng.random() < 0.5:
                file.data = file.data[: len(file.data) // 2].ljust(len(file.data), b"\0")
            file.content = file.name = True  # what is there now stays that way
        for version, name in list(self.names.items()):
            if name.writer == node and not name.synced and rng.random() < 0.5:
                del self.names[version]
            elif name.writer == node:
                name.synced = True

    def read(self, version: Version, rank: int) -> bytes | None:
        """A rank's verified bytes of a published version, or None."""
        name, file = self.names.get(version), self.files.get((version, rank))
        if name is None or file is None:
            return None
        return file.read if digest(file.read) == name.table.holder(rank)[1].digest else None

    def unloadable(self, version: Version) -> str | None:
        """None when every rank of a persisted version can be read, else what can't."""
        name = self.names.get(version)
        if name is None:
            return f"{version} was persisted and its name is gone"
        for rank in range(name.table.world):
            if self.read(version, rank) is None and not self._is_rotten(version, rank):
                return f"{version} was persisted and rank {rank} can't be read"
        return None

    def _is_rotten(self, version: Version, rank: int) -> bool:
        file = self.files.get((version, rank))
        return file is not None and file.rotten
