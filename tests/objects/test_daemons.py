"""Real daemons and a real S3 server: each node sends its own images, and what a killed one had sent is not sent again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests.cluster import Cluster, until
from tests.objects.s3 import HELD, Fault, Gate, Server

from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.model import Version
from ckptd.ckpt.objects import PART

pytestmark = pytest.mark.slow

SIZE = PART + 1000


def parts(rank: int, number: str = "") -> str:
    return rf"^PUT .*rank-0000{rank}\.safetensors.*partNumber={number}"


def cluster_at(gate: Gate, url: str, *, nodes: int) -> Cluster:
    settings = {"STUCK_AFTER_S": "0.5"}
    return Cluster(nodes, parity=nodes - 1, persist_every=100, storage=url, settings=settings)


def test_daemons_whose_store_is_stuck_and_that_are_killed(gate: Gate, own: Gate, url: str) -> None:
    """While an upload is stuck, training and sealing go on and status says so. A daemon that is killed in the middle of one
    sends what is missing. When all nodes are lost the step comes back from the store. SIGTERM waits for no upload.
    """
    with cluster_at(gate, url, nodes=2) as cluster:
        gate.spoil(Fault("^PUT .*rank-00001", HELD))
        cluster.begin_life(fresh=True)
        first = cluster.capture(100, size=1000)
        until(lambda: cluster.document(1, "Status")["storage"]["stuck_s"] > 0.5, "the alarm")
        (told, *_) = until(lambda: cluster.events(1, "storage_stuck"), "an entry in the record")
        assert told["storage"] == f"{url}/t"
        cluster.capture(101, size=1000)
        assert cluster.document(1, "Status")["persisted"] is None
        gate.heal()
        wait_persisted(cluster, first)
        assert cluster.document(1, "Status")["storage"] == {"where": f"{url}/t", "stuck_s": 0.0, "problem": ""}

        gate.spoil(Fault(parts(1, "2"), HELD))
        second = cluster.capture(200, size=SIZE)
        until(lambda: gate.count(parts(0)) == gate.count(parts(1)) == 2, "all parts that are not held sent")
        wait_until_only_the_held_part_lacks(cluster)
        cluster.kill(1)
        gate.heal()
        cluster._environment["AWS_ENDPOINT_URL"] = own.url
        cluster.restart(1)
        wait_persisted(cluster, second)
        assert [gate.count(parts(1, str(number))) for number in (1, 2)] == [1, 1]
        assert [own.count(parts(1, str(number))) for number in (1, 2)] == [0, 1]
        assert (gate.count(parts(0)), own.count("^PUT .*rank-00000")) == (2, 0), "each node sends its own image"

        cluster.lose(0, 1)
        cluster.restart(0, 1)
        decision = cluster.begin_life()
        assert (decision.version, decision.source) == (second, "storage")
        assert cluster.gather(0, second, size=SIZE) == ["storage", "storage"]

        stuck = own.spoil(Fault("^(PUT|POST)", HELD))
        cluster.capture(300, size=1000)
        assert stuck.met.wait(30.0)
        for process in cluster.processes.values():
            process.terminate()
        assert [process.wait(10.0) for process in cluster.processes.values()] == [0, 0]


@pytest.fixture
def own(server: Server) -> Iterator[Gate]:
    """Another gate before the same server: which daemon sends what."""
    with contextlib.closing(Gate(server)) as made:
        yield made


def wait_persisted(cluster: Cluster, version: Version) -> None:
    named = {"epoch": version.epoch, "step": version.step}
    until(lambda: cluster.document(0, "Status")["persisted"] == named, f"{version} persisted")


def wait_until_only_the_held_part_lacks(cluster: Cluster) -> None:
    def sent() -> bool:
        work = cluster.document(1, "Status")["work"].get("persist", {"done": 0})
        return bool(work["done"] == PART)

    until(sent, "the other part of node 1 in the store")


def test_a_store_that_is_away_is_no_fresh_start(gate: Gate, url: str) -> None:
    """With nothing in memory and a store that can't be asked, the job is told so; it does not begin from step 0."""
    with cluster_at(gate, url, nodes=1) as cluster:
        gate.spoil(Fault("", 403))
        with pytest.raises(
            StorageError, match="no step is in memory, and what is on storage can't be read: cannot list"
        ):
            cluster.begin_life()
        assert cluster.begin_life(fresh=True).version is None
