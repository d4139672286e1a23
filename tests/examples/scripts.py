"""The command lines in the examples' scripts, manifests and pages, as the words that their programs would get."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BASH = shutil.which("bash") or "bash"
PROGRAMS = ("ckptd", "torchrun", "python -m ckptd.integrations.store_host")
_COMMAND = re.compile(rf"(?:^|[;&|(']|\bexec|--)\s*((?:{'|'.join(PROGRAMS)}) .*)$")
_END = re.compile(r"\s(?:\d?[<>]|[&|;])|;\s|'\s*&?$|'\)")
_VARIABLE = re.compile(r"\$(?:\{[^}]*\}|\w+|@)")


def texts() -> dict[str, str]:
    """What holds commands: scripts, the fenced and inline code of the pages, and the containers' scripts."""
    found = {name_of(path): path.read_text() for path in sorted(EXAMPLES.glob("*/*.s*"))}
    for path in sorted(EXAMPLES.glob("*/README.md")):
        fenced = re.findall(r"^```\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        inline = re.findall(
            r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        )
        found[name_of(path)] = "\n".join([*fenced, *inline])
    for path in sorted(EXAMPLES.glob("kubernetes/*.yaml")):
        scripts = [script for document in documents(path) for script in container_scripts(document)]
        found[name_of(path)] = "\n".join(scripts)
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def container_scripts(document: Any) -> Iterator[str]:
    """The arguments of every `bash -c` below."""
    if isinstance(document, dict):
        if document.get("command") == ["bash", "-c"]:
            yield from document["args"]
        for value in document.values():
            yield from container_scripts(value)
    elif isinstance(document, list):
        for value in document:
            yield from container_scripts(value)


def commands(text: str) -> list[list[str]]:
    """The commands of `PROGRAMS` in a text; for each variable stands a 1, for "$@" the name of a script."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        match = _COMMAND.search(line.partition("  #")[0]) if not line.lstrip().startswith("#") else None
        if match:
            ended = _END.split(match[1] + " ", maxsplit=1)[0]
            words = shlex.split(_VARIABLE.sub(lambda found: "train.py" if found[0] == "$@" else "1", ended))
            found.append(words)
    return found
