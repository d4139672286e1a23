"""What the files of a step may be called, where they lie in its images, and which of them wait for which.

Each file is an entry of one rank's image, `ckptd.files/NAME`, of as many bytes (uint8) as the file has. Beside them stands
`ckptd.files.room`, zeros that fill the image up to whole MiB: a save that is a few bytes longer than the last one fits into
the same slot. It stands in every image of such a step, also of a rank that has no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.strict import short

PREFIX = "ckptd.files/"
ROOM = "ckptd.files.room"
UNIT = 1 << 20
METADATA = ".metadata"
NAME_MAX = 1024  # characters of a file's name with its directories
_PART = re.compile(r"[^/\x00]+")
_IMAGE = re.compile(r"rank-[0-9]{5,9}\.safetensors")
_PARTIAL = re.compile(r"\.distcp$|^\.metadata\.tmp$")
_ALONE = re.compile(r"__[0-9]+\.metadata(\.tmp)?")


def check(file: str) -> None:
    """Raise UsageError for what no file of a step may be called: nothing in a name leads anywhere else."""
    parts = file.split("/")
    if len(file) > NAME_MAX or not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise UsageError(
            f"found the file name {short(file)}, expected at most {NAME_MAX} characters, without '..' and '//'"
        )


def refusal(file: str) -> str:
    """Why a file of that name can't be written, and what to do instead; empty where it can."""
    if _IMAGE.fullmatch(file):
        return "so the image of a rank is called; choose another name"
    if _ALONE.fullmatch(file):
        return "use_collectives=False: ranks that do not agree save nothing that could be loaded whole; leave it out"
    return ""


def is_partial(file: str) -> bool:
    """Whether a file means nothing by itself: what DCP's writers write before `.metadata`, which says that all is there."""
    return bool(_PARTIAL.search(file))


def children(files: Iterable[str], directory: str) -> dict[str, str | None]:
    """What stands right in a directory of the step ("": the step itself): its name, and the file that it is or None.

    A directory is there as long as a file in it is.
    """
    start = f"{directory}/" if directory else ""
    found: dict[str, str | None] = {}
    for file in sorted(files):
        if file.startswith(start):
            name, slash, _ = file[len(start) :].partition("/")
            found[name] = None if slash else file
    return found
