"""Whole nodes lost, memory and all: what parity brings back, and what only storage does."""

from __future__ import annotations

import pytest
from tests.cluster import Cluster, until
from tests.payload import bytes_of

pytestmark = pytest.mark.slow


def test_a_lost_node_is_rebuilt_from_parity() -> None:
    """One node of three is lost: its image is decoded bit-exact where it is asked for, and by its replacement."""
    with Cluster(3, parity=1) as cluster:
        cluster.begin_life()
        for step in (1, 2):
            version = cluster.capture(step)
        cluster.lose(1)
        cluster.wait_lost(1)
        assert cluster.gather(0, version) == ["own", "parity", "peer"]
        assert cluster.document(2, "Status")["losses_tolerated"] == 0

        cluster.restart(1)
        cluster.wait_rebuilt(1, version)
        assert cluster.slot_file(1, version, 1).read_bytes() == bytes_of(version, 1)
        tolerated = until(lambda: cluster.document(2, "Status")["losses_tolerated"], "protected again")
        assert tolerated == 1
        cluster.lose(2)  # another one: what was rebuilt protects as well as what was captured
        cluster.wait_lost(2)
        decision = cluster.document(0, "List")
        assert decision["next_restore"] == {"epoch": version.epoch, "step": version.step}
        assert cluster.gather(1, version) == ["peer", "parity", "parity"]


def test_two_nodes_are_rebuilt_with_two_parities() -> None:
    """With two parities any two of four nodes may go at once; the job goes on from the sealed step, bit-exact."""
    with Cluster(4, parity=2) as cluster:
        cluster.begin_life()
        version = cluster.capture(1)
        cluster.lose(0, 3)
        cluster.wait_lost(0, 3)
        assert cluster.gather(1, version) == ["parity", "own", "peer", "parity"]
        cluster.restart(0, 3)
        for node in (0, 3):
            cluster.wait_rebuilt(node, version)
        decision = cluster.begin_life()
        assert (decision.version, decision.source, decision.world) == (version, "parity", 4)
        assert decision.epoch > version.epoch
        cluster.capture(2)


def test_a_second_loss_while_a_rebuild_runs() -> None:
    """A survivor dies while it is read for a replacement: the rest of the payload is decoded from the others, bit-exact."""
    size = 24 << 20
    with Cluster(4, parity=2) as cluster:
        cluster.begin_life()
        version = cluster.capture(1, size=size)
        cluster.lose(1)
        cluster.wait_lost(1)
        cluster.start(1, BANDWIDTH_BYTES_S=str(16 << 20))  # two images are to be read: three seconds
        until(lambda: cluster.events(1, "rebuild"), "the rebuild has begun")
        cluster.lose(2)
        assert not cluster.events(1, "rebuilt")
        cluster.wait_rebuilt(1, version)
        assert cluster.slot_file(1, version, 1).read_bytes() == bytes_of(version, 1, size)
        cluster.wait_lost(2)
        assert cluster.gather(0, version, size=size) == ["own", "parity", "parity", "peer"]


def test_more_losses_than_parity_fall_back_to_storage() -> None:
    """Two of three nodes lost with one parity, then all: the newest persisted step is chosen, and it is said why."""
    with Cluster(3, parity=1, persist_every=2) as cluster:
        cluster.begin_life()
        cluster.capture(1)
        stored = cluster.capture(2, level="persisted")
        cluster.capture(3)
        cluster.lose(1, 2)
        cluster.restart(1, 2)
        decision = cluster.begin_life()
        assert (decision.version, decision.source) == (stored, "storage")
        assert "passed over step 3 (epoch 1)" in decision.reason
        assert "of the 2 needed parts" in decision.reason
        assert cluster.gather(1, stored) == ["storage"] * 3

        cluster.capture(3)
        stored = cluster.capture(4, level="persisted")
        cluster.lose(0, 1, 2)
        cluster.restart(*range(3))
        decision = cluster.begin_life()
        assert (decision.version, decision.source) == (stored, "storage")
        assert cluster.gather(2, stored) == ["storage"] * 3
