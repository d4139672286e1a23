"""Two real ranks in DistributedDataParallel over gloo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def train(directory: Path, mode: str) -> list[dict[str, Any]]:
    """Run both ranks; what each printed, in rank order."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.ddp_worker", str(rank), str(directory), mode],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    return [json.loads(out) for out, _ in printed]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_two_ranks_resume_bit_identically(tmp_path: Path) -> None:
    """Each rank copies half of the replicated state, both go on exactly, stock DCP opens the directory, and when the
    snapshot does not fit one rank, all ranks raise."""
    fresh = train(tmp_path, "fresh")
    assert [rank["failed"] for rank in fresh] == [0, 0]
    assert len(list(tmp_path.glob("version-1-6/rank-*"))) == 2  # committed at the exit of the process
    for step in (4, 5, 6):
        (tmp_path / f"version-1-{step}" / "rank-00001.safetensors").unlink()  # one rank's is missing: not recoverable
    kept = tmp_path / "version-1-3"

    first, second = (safetensors.torch.load_file(kept / f"rank-0000{rank}.safetensors") for rank in range(2))
    replicated = re.compile(r"model\.\d\.(weight|bias)|optimizer\.state\.")
    shared = [sum(t.nbytes for name, t in image.items() if replicated.match(name)) for image in (first, second)]
    assert max(shared) < 0.6 * sum(shared)
    assert not torch.equal(first["model.1.running_mean"], second["rank-00001.model.1.running_mean"])
    state = {"model.0.weight": torch.zeros(64, 8), "optimizer.state.3.weight.exp_avg": torch.zeros(4, 64)}
    dcp_load(state, storage_reader=HuggingFaceStorageReader(str(kept)), no_dist=True)
    assert all(bool(tensor.any()) for tensor in state.values())

    resumed = train(tmp_path, "resume")
    assert [rank["losses"] for rank in resumed] == [rank["losses"][3:] for rank in fresh]
    assert [rank["digest"] for rank in resumed] == [rank["digest"] for rank in fresh]
    assert "Unrecoverable: rank 0 was ready, 1 of the 2 ranks failed" in resumed[0]["said"]
    assert "StateError: the snapshot does not fit" in resumed[1]["said"]
    assert "missing in it: data" in resumed[1]["said"]
