"""The manifest of a persisted step: it names every file with size and digest, is written last, and is the commit.

`<root>/<job>/step-000000012000.e0002/` holds `rank-00003.safetensors` for every rank and `manifest.json`. The epoch in
the name makes a step that was trained again a new generation instead of an overwrite. Pure; docs/formats.md has the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.model import JOB_NAME, Image, Version
from ckptd.ckpt.strict import is_count, json_object, short
from ckptd.ckpt.tables import RANKS_MAX, check_image, number, version_from_json

FORMAT = 1
MANIFEST = "manifest.json"
SUMS = ".sums"
"""How the names end of what vouches for the pieces of an image."""
MANIFEST_MAX = 256 * 1024 * 1024
_STEP_DIR = re.compile(r"step-(\d{12})\.e(\d{4,12})")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a persisted step consists of: one image a rank, ranks 0..world-1."""

    job: str
    version: Version
    images: tuple[Image, ...]

    @property
    def world(self) -> int:
        return len(self.images)


def dir_name(version: Version) -> str:
    """The directory of a persisted version, below the job's."""
    return f"step-{version.step:012d}.e{version.epoch:04d}"


def version_of(name: str) -> Version | None:
    """The version that a directory's name stands for, or None for any other name."""
    match = _STEP_DIR.fullmatch(name)
    return Version(int(match[2]), int(match[1])) if match else None


def file_name(rank: int) -> str:
    """The file of a rank's image in a persisted step."""
    return f"rank-{rank:05d}.safetensors"


def sums_name(rank: int) -> str:
    """What the sums of a rank's image are in: `ckptd.ckpt.pieces.pack_sums`."""
    return f"rank-{rank:05d}{SUMS}"


def missing(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """The first file that is not there with its size, and what is; '' when all are. `sizes`: the bytes of each by name."""
    for image in manifest.images:
        name = file_name(image.rank)
        if (found := sizes.get(name)) != image.size:
            return f"{name} {'is missing' if found is None else f'has {found} bytes, expected {image.size}'}"
    return ""


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    content = {
        "format": FORMAT,
        "job": manifest.job,
        "epoch": manifest.version.epoch,
        "step": manifest.version.step,
        "files": [
            {"name": file_name(image.rank), "rank": image.rank, "size": image.size, "xxh3_128": image.digest}
            for image in manifest.images
        ],
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def decode(data: bytes, name: str) -> Manifest:
    """Parse and check a manifest that was found in directory `name`. Raises CorruptionError, naming the directory."""
    try:
        return _checked(json_object(data), name)
    except (ValueError, CorruptionError) as error:
        raise CorruptionError(f"{name}/{MANIFEST}: {error}; the step is not offered") from error


def _checked(content: dict[str, Any], name: str) -> Manifest:
    if not is_count(content.get("format")) or content["format"] != FORMAT:
        raise CorruptionError(
            f"format {short(content.get('format'))}, expected {FORMAT}; another ckptd may have written it"
        )
    job, files = content.get("job"), content.get("files")
    if not isinstance(job, str) or not JOB_NAME.fullmatch(job):
        raise CorruptionError(f"job {short(job)}, expected a job's name")
    if not isinstance(files, list) or not files:
        raise CorruptionError(f"files {short(files)}, expected a list with one entry for each rank")
    version = version_from_json(content)
    if dir_name(version) != name:
        raise CorruptionError(f"it is of {version}; the directory was renamed or mixed up")
    return Manifest(job, version, tuple(_image(item, rank) for rank, item in enumerate(files)))


def _image(item: Any, rank: int) -> Image:
    if not isinstance(item, dict) or number("rank", item.get("rank"), RANKS_MAX) != rank:
        raise CorruptionError(f"entry {rank} is not rank {rank}'s file")
    if item.get("name") != file_name(rank):
        raise CorruptionError(f"file {short(item.get('name'))}, expected {file_name(rank)!r}")
    return check_image(rank, item.get("size"), item.get("xxh3_128"))
