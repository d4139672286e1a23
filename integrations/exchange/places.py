"""Where an export goes: written beside its place and renamed to it, so that it is there whole or not at all."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd.ckpt import disk
from ckptd.ckpt.errors import StorageError, UsageError

_OURS = re.compile(
    r"model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json|\.metadata|__\d+_\d+\.distcp|checkpoint\.pt"
)
_SLACK = 16 * 1024 * 1024  # for headers, indices and the file system's own


def check_target(directory: Path, *, replace: bool) -> None:
    """Raise UsageError unless the directory is missing, empty, or (with `replace`) holds nothing but an earlier export."""
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory; choose another")
    names = sorted(path.name for path in directory.iterdir())
    if names and not replace:
        raise UsageError(
            f"{directory} is not an empty directory; choose another, or replace an earlier export by --force"
        )
    strange = [path.name for path in directory.iterdir() if not _OURS.fullmatch(path.name) or not path.is_file()]
    if strange:
        raise UsageError(
            f"{directory} holds {min(strange)!r}, which no export writes; --force replaces whole directories: move it away"
        )


def check_space(directory: Path, needed: int, what: str) -> None:
    """Raise StorageError when fewer bytes are free where `directory` is, or will be, than are needed."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed + _SLACK:
        raise StorageError(
            f"{what} takes {needed} bytes and {_SLACK} to spare, {there} has {free} free; free some, or choose another disk"
        )


@contextmanager
def put(directory: Path, *, replace: bool) -> Iterator[Path]:
    """An empty directory beside `directory`, which takes its place when the block ends well, and else goes away.

    Raises UsageError as `check_target` does, StorageError.
    """
    directory = directory.resolve()  # a link to a directory stays, and what it names is replaced
    check_target(directory, replace=replace)
    token = secrets.token_hex(4)
    made, old = (directory.with_name(f".{directory.name}.{token}.{end}") for end in ("partial", "old"))
    try:
        made.mkdir(parents=True)
        yield made
        check_target(directory, replace=replace)  # somebody may have put something there meanwhile
        if directory.exists():
            directory.rename(old)
        try:
            made.rename(directory)
        except OSError:
            if old.exists():
                old.rename(directory)
            raise
        disk.sync_dir(directory.parent)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
