"""The package as users get it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = ("__init__", "accelerate", "dcp", "lightning", "transformers")
FOLDERS = ("ckpt", "daemon", "erasure", "integrations", "examples")


def run(*arguments: str) -> str:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    """Links become files, each module is in, and tests and benchmarks stay out."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    (entries,) = (name for name in files if name.endswith(".dist-info/entry_points.txt"))
    plugin = "[torchrun.handlers]\nckptd = ckptd.integrations.rendezvous_plugin:getter"
    assert plugin in zipfile.ZipFile(wheel).read(entries).decode()
    names = {name for name in files if ".dist-info/" not in name}
    sources = {f"ckptd/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert sources <= names
    others = names - sources
    assert {name for name in others if name.endswith(".py")} == {f"ckptd/{name}.py" for name in PUBLIC}
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "ckptd/tests"))]


def test_importing_ckptd_loads_neither_torch_nor_grpc() -> None:
    """The public face costs nothing until it is used, and the frameworks are extras that nobody needs."""
    heavy = {"torch", "grpc", "numpy", "transformers", "lightning", "accelerate"}
    out = run(sys.executable, "-c", f"import sys, ckptd; print({heavy} & set(sys.modules))")
    assert out.strip() == "set()"


def test_the_daemon_never_loads_torch() -> None:
    """Everything that `ckptd serve` imports comes without torch, so a broken CUDA context can't reach it."""
    out = run(sys.executable, "-c", "import sys, ckptd.daemon.cli, ckptd.daemon.main; print('torch' in sys.modules)")
    assert out.strip() == "False"


def test_the_command_line_knows_its_version() -> None:
    """`ckptd --version` names the installed version."""
    out = run(sys.executable, "-m", "ckptd.daemon.cli", "--version")
    assert out.startswith("ckptd 0.")
