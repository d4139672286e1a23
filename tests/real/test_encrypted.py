"""Real daemons with encryption switched on: everything works as without it, and nothing of an image crosses in clear."""

from __future__ import annotations

import pytest
from tests.cluster import Cluster

pytestmark = pytest.mark.slow


def test_a_lost_node_is_rebuilt_over_sealed_connections() -> None:
    """Letters go over TLS and ranges over sealed connections: captured, sealed with parity, lost, rebuilt bit by bit."""
    with Cluster(3, parity=1, encrypted=True) as cluster:
        cluster.begin_life()
        version = cluster.capture(1)
        cluster.lose(1)
        cluster.wait_lost(1)
        assert cluster.gather(0, version) == ["own", "parity", "peer"]
        cluster.restart(1)
        cluster.wait_rebuilt(1, version)
        assert cluster.gather(1, version)[1] == "parity"
