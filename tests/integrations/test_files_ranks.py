"""Real ranks of FSDP2 save by stock torch.distributed.checkpoint to `ckptd://`, beside real daemons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.integrations.files_worker import STEPS
from tests.integrations.test_frameworks import Forge
from tests.payload import JOB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def forge() -> Iterator[Forge]:
    forge = Forge()
    try:
        yield forge
    finally:
        forge.close()


def run(forge: Forge, cluster: Cluster, directory: Path, life: int, kill_at: int = 0) -> list[list[str]]:
    """Run two ranks, each beside a daemon of its own; what each printed."""
    places = ",".join(str(cluster.run_dir(rank)) for rank in range(2))
    outputs = [directory / f"life-{life}-rank-{rank}" for rank in range(2)]
    environment = {"CKPTD_JOB": JOB, "GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": "2"}
    pids = [
        forge.ask(
            example="tests.integrations.files_worker", environment=environment, output=str(output),
            argv=[str(rank), "2", str(directory), str(life), places, str(kill_at)],
        )
        for rank, output in enumerate(outputs)
    ]  # fmt: skip
    ends = [forge.ask(wait=pid) for pid in pids]
    printed = [output.read_text() for output in outputs]
    assert ends == [-9, -9] if kill_at else [0, 0], printed
    return [re.findall(r"^(?:\d+|[0-9a-f]{32})$", text, re.MULTILINE) for text in printed]


def test_a_killed_training_goes_on_from_the_folders_url(forge: Forge, tmp_path: Path) -> None:
    """Both ranks are killed in the save of a step and a node's memory is lost: that step does not exist, the one before
    comes back, one rank's files from parity, and the training goes on with the same bits."""
    with Cluster(2, parity=1) as cluster:
        killed = run(forge, cluster, tmp_path, 1, kill_at=STEPS)
        cluster.lose(1)
        cluster.restart(1)
        resumed = run(forge, cluster, tmp_path, 2)
    assert [rank[0] for rank in killed] == ["0", "0"]
    assert resumed == [[str(STEPS - 1), killed[0][-1]]] * 2
