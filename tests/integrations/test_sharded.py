"""Two and four real ranks in FSDP2, hybrid sharding, tensor parallelism and mixtures over gloo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.integrations.launch import run_ranks
from tests.integrations.sharded_worker import KEPT, STEPS, digest_of, layers
from tests.real.training import Training
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]
MODULE = "tests.integrations.sharded_worker"
Printed = list[dict[str, Any]]


def train(directory: Path, world: int, mode: str, names: list[str], **environment: str) -> Printed:
    """Run all ranks; what each printed, in rank order: the results by scenario."""
    return [json.loads(out) for out in run_ranks(MODULE, world, str(directory), mode, *names, environment=environment)]


def trained(directory: Path, world: int, names: list[str]) -> Printed:
    """Train without an interruption, capturing; then leave `KEPT` as the newest step that can be restored."""
    for name in names:
        (directory / name).mkdir()
    fresh = train(directory, world, "fresh", names)
    assert [rank[name]["captured"] for rank in fresh for name in names] == [STEPS] * world * len(names)
    for name in names:
        for step in range(KEPT + 1, STEPS + 1):
            (directory / name / f"version-1-{step}" / "rank-00001.safetensors").unlink()
    return fresh


def assert_goes_on(name: str, fresh: Printed, later: Printed) -> None:
    """Losses, parameters, buffers, optimizer state and random numbers of every rank are the uninterrupted run's."""
    before, after = [rank[name] for rank in fresh], [rank[name] for rank in later]
    assert [rank["losses"] for rank in after] == [rank["losses"][KEPT:] for rank in before], name
    assert [rank["digest"] for rank in after] == [rank["digest"] for rank in before], name


def captured_by(image: Path) -> int:
    """Bytes of the parameters and moments in an image."""
    sharded = re.compile(r"model\.\d\.(weight|bias)|optimizer\.state\.\d\.\w+\.(exp_avg|momentum)")
    return sum(tensor.nbytes for name, tensor in safetensors.torch.load_file(image).items() if sharded.match(name))


def assert_split(directory: Path, world: int, whole: str) -> None:
    """Every rank captured about its part, and stock DCP joins the same parameters."""
    kept = directory / f"version-1-{KEPT}"
    sizes = [captured_by(kept / f"rank-{rank:05d}.safetensors") for rank in range(world)]
    assert max(sizes) < 1.4 * sum(sizes) / world
    blank = {f"model.{key}": torch.zeros_like(tensor) for key, tensor in layers().named_parameters()}
    dcp_load(blank, storage_reader=HuggingFaceStorageReader(str(kept)), no_dist=True)
    assert digest_of(list(blank.values())) == whole


def test_two_ranks_come_back_from_a_real_daemon(tmp_path: Path) -> None:
    """Ranks of FSDP2 kill themselves once their daemon has a step, and their successors train on from it, exactly."""
    fresh = trained(tmp_path, 2, ["fsdp"])
    assert_split(tmp_path / "fsdp", 2, fresh[0]["fsdp"]["whole"])
    with Training(STEPS) as job:
        killed = run_ranks(MODULE, 2, str(tmp_path), "killed", "fsdp", environment=job.environment)
        assert [json.loads(out) for out in killed] == [rank["fsdp"]["losses"][:KEPT] for rank in fresh]
        assert_goes_on("fsdp", fresh, train(tmp_path, 2, "daemon", ["fsdp"], **job.environment))


def test_four_ranks_resume_bit_identically(tmp_path: Path) -> None:
    """FSDP2, hybrid sharding, tensor parallelism under it, and a mixture of sharded and replicated models."""
    names = ["fsdp", "fsdp_fused", "hsdp", "tensor_parallel", "mixture"]
    fresh = trained(tmp_path, 4, names)
    resumed = train(tmp_path, 4, "resume", names)
    for name in names:
        assert_goes_on(name, fresh, resumed)
    for name in ("fsdp", "hsdp"):
        assert_split(tmp_path / name, 4, fresh[0][name]["whole"])
