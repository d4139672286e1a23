"""Real daemons under a state that hardly changes: little is read for its parities, and they give back every bit."""

from __future__ import annotations

import pytest
from tests.cluster import Cluster, fill, until
from tests.payload import bytes_of

from ckptd.ckpt.model import PIECE, Version

pytestmark = pytest.mark.slow

PIECES = 40
RANKS = 5


def train(cluster: Cluster, state: list[bytearray], step: int) -> Version:
    """A step that changes the first piece of every rank (as a header does), and two more of rank 1; until it is sealed."""
    version = Version(cluster.epoch, step)
    for rank, data in enumerate(state):
        for piece in (0, 7 + step, 30) if rank == 1 else (0,):
            data[piece * PIECE + step] ^= 1 + step
        slot = cluster.ranks[rank].begin(version, len(data))
        assert slot is not None
        fill(slot, bytes(data))
        cluster.ranks[rank].commit(slot, version)
    for client in cluster.ranks.values():
        assert client.wait(version, "sealed", 30.0) == "sealed"
    return version


def spared(cluster: Cluster, step: int) -> tuple[int, int, int]:
    """The bytes that all daemons have read, copied and updated for the parities of a step."""

    def entries() -> list[dict[str, int]] | None:
        found = [e for node in range(RANKS) for e in cluster.events(node, "protected") if e["step"] == step]
        return found if len(found) == RANKS else None

    found = until(entries, f"step {step} protected")
    read, copied, updated = (sum(e[key] for e in found) for key in ("read_bytes", "copied_bytes", "updated_bytes"))
    return read, copied, updated


def check(cluster: Cluster, state: list[bytearray], version: Version, node: int) -> None:
    """A node gathers every rank's image, bit for bit."""
    client = cluster.client(node)
    assert [item.path.read_bytes() for item in client.gather(version)] == [bytes(data) for data in state]
    client.release(version)


def test_parities_of_a_state_that_hardly_changes() -> None:
    """Most of them is copied; whoever is lost then is rebuilt bit-exact, before and after restarts and rebuilds."""
    state = [bytearray(bytes_of(Version(0, 0), rank, PIECES * PIECE + 100 * rank)) for rank in range(RANKS)]
    with Cluster(RANKS, parity=2) as cluster:
        cluster.begin_life()
        train(cluster, state, 1)
        everything, *nothing = spared(cluster, 1)
        assert nothing == [0, 0]
        for step in (2, 3):
            version = train(cluster, state, step)
            read, copied, updated = spared(cluster, step)
            assert read < everything / 5
            assert copied > everything / 3 / 2
            assert updated > 0
        cluster.lose(1, 3)
        cluster.restart(1, 3)
        for node in (1, 3):
            cluster.wait_rebuilt(node, version)
            assert cluster.slot_file(node, version, node).read_bytes() == state[node]
        check(cluster, state, version, 0)

        until(lambda: cluster.document(0, "Status")["losses_tolerated"] == 2, "protected again")
        cluster.kill(0)
        cluster.restart(0)
        version = train(cluster, state, 4)
        assert spared(cluster, 4)[1] > 0
        cluster.lose(0, 4)
        cluster.wait_lost(0, 4)
        check(cluster, state, version, 2)
