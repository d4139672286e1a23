"""The examples' command lines are true: every option of theirs exists, and takes what it is given."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.examples.scripts import BASH, EXAMPLES, commands, name_of, texts
from torch.distributed.run import get_args_parser

from ckptd.ckpt.settings import Settings
from ckptd.daemon.cli import app
from ckptd.examples import train_gpt
from ckptd.integrations import launch, store_host

SCRIPTS = sorted([*EXAMPLES.glob("*/*.s*"), *EXAMPLES.glob("*/*.env")])
LINES = [(name, words) for name, text in texts().items() for words in commands(text)]


def check(words: list[str]) -> None:
    """Raise or exit when the program would refuse the words."""
    script = [] if any(word.endswith(".py") for word in words) else ["train.py"]  # a page may name an option alone
    if words[:2] == ["ckptd", "run"]:
        check_training(launch.parser().parse_args(words[2:] + script))
    elif words[0] == "ckptd":
        group: Any = typer.main.get_command(app)
        group.commands[words[1]].make_context(words[1], list(words[2:]))
    elif words[0] == "torchrun":
        check_training(get_args_parser().parse_args(words[1:] + script))
    else:
        store_host.parser().parse_args(words[3:])


def check_training(parsed: argparse.Namespace) -> None:
    """The example's own options."""
    if parsed.training_script.endswith("train_gpt.py"):
        train_gpt.parse(parsed.training_script_args)


@pytest.mark.parametrize(("name", "words"), LINES, ids=[f"{name}: {' '.join(words)[:60]}" for name, words in LINES])
def test_every_command_is_understood(name: str, words: list[str]) -> None:
    """By the parser of the program itself."""
    assert name
    check(words)


def test_the_commands_are_found() -> None:
    """Of every example the ones that matter: a check of nothing would pass, too."""
    found = {(name.partition("/")[0], " ".join(words[:2])) for name, words in LINES}
    assert found >= {
        ("torchrun", "ckptd serve"), ("torchrun", "torchrun --nnodes"), ("torchrun", "python -m"),
        ("slurm", "ckptd serve"), ("slurm", "ckptd run"), ("slurm", "ckptd restart"),
        ("kubernetes", "ckptd serve"), ("kubernetes", "ckptd run"), ("kubernetes", "ckptd status"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "exec ckptd serve --node 1 --clean-exits",
        "ckptd serve --node first",
        "ckptd run --nnodes 2 --shutdown-time=1s train.py &",
        "ckptd run --shutdown-timeout 70 examples/train_gpt.py --sigterm-graces 60",
        "torchrun --rdzv-backends c10d train.py",
        "python -m ckptd.integrations.store_host --hosts 1",
    ],
)
def test_a_wrong_option_is_noticed(line: str) -> None:
    with pytest.raises((Exception, SystemExit)) as refused:  # typer has click's errors under names of its own
        check(commands(line)[0])
    assert getattr(refused.value, "exit_code", None) == 2 or getattr(refused.value, "code", None) == 2


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_bash(path: Path) -> None:
    subprocess.run([BASH, "-n", str(path)], check=True, timeout=10.0)


def test_variables_are_settings() -> None:
    """Each CKPTD_* that is set or given to a container is one that ckptd reads."""
    found = set(settings_in(EXAMPLES))
    assert {"CKPTD_JOB", "CKPTD_NODES", "CKPTD_RUN_DIR"} <= found
    assert {name.removeprefix("CKPTD_").lower() for name in found} <= set(Settings.model_fields)


def settings_in(folder: Path) -> Iterator[str]:
    for path in folder.glob("*/*"):
        yield from re.findall(r"\bCKPTD_[A-Z_]+", path.read_text())
