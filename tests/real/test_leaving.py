"""What real daemons do when a node does not come back, and about damage that nobody has read yet."""

from __future__ import annotations

import pytest
from tests.cluster import Cluster, until
from tests.payload import flip

from ckptd.ckpt.model import PIECE, Version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SIZE = 3 * PIECE + 17


def states(cluster: Cluster, witness: int) -> dict[int, str]:
    return {row["node"]: row["state"] for row in cluster.document(witness, "Status")["nodes"]}


def is_shielded(cluster: Cluster, witness: int, version: Version) -> bool:
    found = cluster.document(witness, "Status")["shielded"]
    return bool(found == {"epoch": version.epoch, "step": version.step})


def test_the_others_go_on_without_a_node_that_does_not_come_back() -> None:
    """Its images are taken over, and the step is protected anew: another node may be lost. Then the ranks go on elsewhere,
    steps are sealed by fewer nodes, and the node is taken in again when it returns."""
    with Cluster(4, parity=1, settings={"LEAVE_AFTER_S": "3"}) as cluster:
        cluster.begin_life(fresh=True)
        version = cluster.capture(5, size=SIZE)
        cluster.lose(3)
        until(lambda: states(cluster, 0)[3] == "left", "node 3 has left")
        until(lambda: is_shielded(cluster, 0, version), "the step is protected by the others")
        cluster.lose(2)
        cluster.wait_lost(2)
        assert set(cluster.gather(0, version, size=SIZE)) <= {"own", "peer", "parity"}
        cluster.restart(2)
        cluster.wait_rebuilt(2, version)

        for client in cluster.ranks.values():
            client.close()
        cluster.placement = [0, 1, 2, 0]
        cluster.ranks.clear()
        assert cluster.begin_life().version == version
        later = cluster.capture(6, size=SIZE)
        assert is_shielded(cluster, 1, later)
        assert not list(cluster.segments(1).glob("rank-00003.*")), "what was taken over is not kept when it is old"

        cluster.restart(3)
        until(lambda: states(cluster, 0)[3] == "live", "node 3 is back")
        whole = "group 0: nodes 0, 1, 2 and 3 (3+1)"
        until(lambda: any(whole in line for line in cluster.document(0, "Status")["groups"]["lines"]), whole)
        until(lambda: is_shielded(cluster, 0, later), "the step is protected by all")


def test_rot_is_found_and_repaired_in_place() -> None:
    """The scrubber finds a flipped bit that nobody has read; the piece is decoded and stands again as it was captured."""
    with Cluster(3, parity=1, settings={"SCRUB_EVERY_S": "0.5"}) as cluster:
        cluster.begin_life(fresh=True)
        version = cluster.capture(5, size=SIZE)
        path = cluster.slot_file(1, version, 1)
        before = path.read_bytes()
        flip(path, 2 * PIECE + 3)
        until(lambda: cluster.events(1, "repaired"), "the image is repaired")
        assert path.read_bytes() == before
        (parity,) = cluster.parity_files(2, version)
        flip(parity, 5)
        until(lambda: cluster.parity_files(2, version) != [parity], "the parity is made anew")
        assert not cluster.events(1, "damaged")
        cluster.lose(0)
        cluster.wait_lost(0)
        assert "parity" in cluster.gather(2, version, size=SIZE)
