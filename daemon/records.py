"""The names and records of the segment directory, and whose directory it is. What is not ours is never touched.

The directory may have been left by another job, another node, or a later version, or be somebody's home: `claim` finds
out before anything is read or removed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import AccessError, CorruptionError
from ckptd.ckpt.groups import parities_of
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import Table
from ckptd.ckpt.strict import is_count, json_object, short
from ckptd.ckpt.tables import nodes_in

SLOT_FILE = re.compile(r"rank-(\d{5,7})\.[0-9a-f]{8}\.safetensors")
PARITY_FILE = re.compile(r"parity\.[0-9a-f]{8}\.bin")
SLOT_RECORD = re.compile(r"rank-(\d{5,7})\.slot-(\d{1,4})\.json")
PARITY_RECORD = re.compile(r"parity-\d{3}-\d{3}-\d\d\.e\d+\.s\d+\.[0-9a-f]{8}\.json")
_OTHERS = re.compile(r"(daemon|owner)\.json|lock|restore|(rank-|parity-|daemon|owner)[A-Za-z0-9.-]*\.tmp")
RECORD_MAX = 64 * 1024 * 1024
"""Bytes of a record at most: the sums of 2^21 pieces, half a terabyte of image, are 42 MB of JSON."""
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose segments these are."""

    job: str
    node: int
    nodes: int
    """How many nodes the job has."""

    @classmethod
    def of(cls, config: Config) -> Owner:
        return cls(config.job, config.node, len(config.nodes))


def slot_file(rank: int) -> str:
    """A new name for a file of the rank's."""
    return f"rank-{rank:05d}.{secrets.token_hex(4)}.safetensors"


def is_ours(name: str) -> bool:
    """Whether a file of this name in the segment directory was put there by ckptd."""
    patterns = (SLOT_FILE, PARITY_FILE, SLOT_RECORD, PARITY_RECORD, _OTHERS)
    return any(pattern.fullmatch(name) for pattern in patterns)


def claim(directory: Path, owner: Owner) -> None:
    """Make the directory ours, or find that it is.

    Raises AccessError, and leaves everything as it was, when it belongs to another job or node, was written by another
    version, or holds files that are not ckptd's.
    """
    path = directory / "owner.json"
    try:
        found = _owner_in(path)
    except FileNotFoundError:
        foreign = sorted(entry.name for entry in directory.iterdir() if not is_ours(entry.name))
        if foreign:
            raise AccessError(
                f"{directory} holds {short(foreign[0])}, which is not ckptd's; choose an empty segment directory"
            ) from None
        write_record(path, {"format": FORMAT, **asdict(owner)})
        return
    except (OSError, ValueError, CorruptionError) as error:
        raise AccessError(
            f"{path} can't be read ({error}); choose another segment directory or remove this one"
        ) from error
    if (found.job, found.node) != (owner.job, owner.node):
        raise AccessError(
            f"{directory} belongs to job {found.job!r}, node {found.node}; this is job {owner.job!r}, node {owner.node}; "
            "choose another segment directory, or remove that one if its snapshots are not needed"
        )
    if found != owner:
        write_record(path, {"format": FORMAT, **asdict(owner)})


def check_kept(parity: Parity, table: Table, owner: Owner) -> None:
    """Raise CorruptionError unless a parity that was found is its node's to keep."""
    if max(nodes_in(table)) >= owner.nodes or parity not in parities_of(table, owner.node):
        raise CorruptionError(f"{parity} is not this node's to keep; made when the job had other nodes")


def _owner_in(path: Path) -> Owner:
    content = read_record(path)
    if content.get("format") != FORMAT:
        raise CorruptionError(f"format {short(content.get('format'))}, this version of ckptd writes {FORMAT}")
    job, numbers = content.get("job"), [content.get(name) for name in ("node", "nodes")]
    if not isinstance(job, str) or not all(is_count(number) for number in numbers):
        raise CorruptionError("expected a job and the numbers node and nodes")
    return Owner(job, *(int(number) for number in numbers if is_count(number)))


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file. Raises OSError, ValueError, CorruptionError; never waits, follows no link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > RECORD_MAX:
            raise CorruptionError(f"{path.name}: expected a regular file of at most {RECORD_MAX} bytes")
        return json_object(file.read(RECORD_MAX))


def write_record(path: Path, content: object) -> None:
    """Write a record, which appears whole or not at all. A tmpfs has nothing to sync."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # whatever it is: a link that somebody has put there is not followed
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_text(json.dumps(content))
    temporary.rename(path)


def is_regular(path: Path) -> bool:
    """Whether it is a file of its own: no link, no directory, no fifo."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def checked_name(name: object, pattern: re.Pattern[str]) -> str:
    """A file name out of a record. Raises CorruptionError for one that could lead elsewhere."""
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise CorruptionError(f"record names the file {short(name)}, expected {pattern.pattern}")
    return name
