"""A step of which a node was lost with its memory, and nothing is on storage: it leaves by `ckptd export` all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.cluster import Cluster
from tests.exchange.contents import KINDS, told
from tests.payload import JOB
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

import ckptd.dcp
from ckptd.dcp import StorageReader, StorageWriter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
NODES, STEP, NOTE = 3, 7, {"note": "as it was"}
SHARES: list[dict[str, torch.Tensor]] = [
    {f"rank{rank}.weight": torch.randn(300, 200), f"rank{rank}.moment": torch.randn(300, 200).double()}
    for rank in range(NODES)
]
SHARES[0] |= {
    name: tensor for name, tensor in KINDS.items() if name != "wide"
}  # which no safetensors file has as it is
WHOLE = {name: tensor for share in SHARES for name, tensor in share.items()}


def save(cluster: Cluster) -> None:
    """What `ckptd.dcp.save` does on each rank, one rank after the other; rank 0 coordinates and has the metadata."""
    channels = [cluster.client(node) for node in range(NODES)]
    writers = [StorageWriter(STEP, channel=channel) for channel in channels]
    planners, plans = [DefaultSavePlanner() for _ in writers], []
    for rank, (writer, planner) in enumerate(zip(writers, planners, strict=True)):
        planner.set_up_planner(SHARES[rank] | (NOTE if rank == 0 else {}), is_coordinator=rank == 0)
        writer.set_up_storage_writer(rank == 0)
        plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = [writers[rank].write_data(plans[rank], planners[rank]).value() for rank in (2, 1, 0)]
    writers[0].finish(metadata, results)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes with one parity, after rank 0's was lost; no trainer runs."""
    with Cluster(NODES, parity=1) as cluster:
        save(cluster)
        cluster.lose(0)
        cluster.wait_lost(0)
        assert not any(cluster.storage.rglob("*.safetensors"))
        yield cluster


def test_an_export_has_every_bit(cluster: Cluster, tmp_path: Path) -> None:
    """As safetensors and as a DCP directory, each from another node, with the lost image decoded there."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CKPTD_")}
    command = [sys.executable, "-m", "ckptd.daemon.cli", "export", "latest"]
    exports = {
        fmt: subprocess.Popen(
            [*command, str(tmp_path / fmt), "--format", fmt, "--run-dir", str(cluster.run_dir(node)), "--job", JOB],
            env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node, fmt in ((1, "safetensors"), (2, "dcp"))
    }  # fmt: skip
    for export in exports.values():
        said, _ = export.communicate(timeout=60)
        assert export.returncode == 0, said
    assert told(load_file(tmp_path / "safetensors" / "model.safetensors")) == told(WHOLE)
    found: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()} | {"note": ""}
    dcp_load(found, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert found.pop("note") == NOTE["note"]
    assert told(found) == told(WHOLE)
    for node in (1, 2):
        assert cluster.events(node, "gathered")[-1]["sources"].count("parity") == 1


def test_dcps_metadata_survive_the_coordinators_node(cluster: Cluster) -> None:
    """They were in its image alone: another node loads the step with them."""
    found: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()} | {"note": ""}
    ckptd.dcp.load(found, storage_reader=StorageReader(channel=cluster.client(2)), no_dist=True)
    assert found.pop("note") == NOTE["note"]
    assert told(found) == told(WHOLE)
