"""An environment of its own for each peer, made by pip, kept below a folder so that the next run is quick.

It sees the packages of the environment that runs this (torch, numpy, ours), and pip adds what the peer needs to it: each
peer runs with our torch, which pip is told to keep. A peer that can't be had is reported with pip's own words.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import System

_INSTALL_S = 300.0
_READY = "installed"
_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a system can be run."""

    python: Path
    version: str


class UnavailableError(Exception):
    """A peer can't be had here; the message is pip's, or its own."""


def prepare(system: System, folder: Path) -> Ready:
    """The environment of a system, made if it is not there yet. Raises UnavailableError."""
    if not system.requirement:
        return Ready(Path(sys.executable), importlib.metadata.version(system.package))
    place = folder / name_of(system.requirement, importlib.metadata.version("torch"))
    python = place / "bin" / "python"
    if not (place / _READY).exists():
        _install(system.requirement, place, python)
    return Ready(python, (place / _READY).read_text().strip())


def name_of(requirement: str, torch: str) -> str:
    """A folder name for what would be installed: another pin, Python or torch gives another one."""
    package = re.split(r"[\[=<>]", requirement, maxsplit=1)[0]
    key = f"{requirement} {sys.version} {torch} {sysconfig.get_path('purelib')}"
    return f"{package}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def reason_of(output: str) -> str:
    """Of what pip printed, the sentence that says why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it said nothing"])[-1][:_REASON_CHARS]


def _install(requirement: str, place: Path, python: Path) -> None:
    venv.create(place, with_pip=True, clear=True)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    (inside / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    constraints = place / "constraints.txt"
    constraints.write_text(f"torch=={importlib.metadata.version('torch').split('+')[0]}\n")
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            [*command, "-c", str(constraints), requirement],
            capture_output=True, text=True, check=False, timeout=_INSTALL_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"pip install {requirement}: not done within {_INSTALL_S:.0f} s") from error
    if done.returncode:
        raise UnavailableError(f"pip install {requirement}: {reason_of(done.stderr)}")
    package = re.split(r"[\[=<>]", requirement, maxsplit=1)[0]
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    (place / _READY).write_text(
        subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    )
