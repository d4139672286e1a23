"""File systems that a test mounts for itself, where it may."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(where: Path, kind: str, *options: str) -> Iterator[Path]:
    """A new file system of that kind at `where`, which is made. Skips the test where this user can't mount one."""
    where.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.getuid() != 0 or mount is None or umount is None:
        pytest.skip(f"only root can mount a {kind}")
    done = subprocess.run(
        [mount, "-t", kind, *options, "ckptd-test", str(where)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this root can't mount a {kind}: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run([umount, str(where)], check=True)
