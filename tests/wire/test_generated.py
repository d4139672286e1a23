"""The generated messages are those of the .proto file beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ckptd.ckpt.wire.ckptd_pb2 as generated

HERE = Path(generated.__file__).parent


def test_the_generated_files_are_fresh(tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{HERE}",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
    ]
    subprocess.run([*command, "ckptd.proto"], check=True)
    for name in ("ckptd_pb2.py", "ckptd_pb2.pyi"):
        assert (tmp_path / name).read_text() == (HERE / name).read_text(), f"{name} is stale: run `make proto`"
