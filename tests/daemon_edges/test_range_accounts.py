"""What both ends of the data plane count: the caps that they keep, and the record of transfers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.cluster import until
from tests.contract.wires import DATA, HOST, IMAGE, PARITY, PIECES, READER, SERVER, SIZE, Held, V

from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transfers import Transfers
from ckptd.daemon.transport import Endpoint, NotHeld, Range


@pytest.fixture
def server() -> Iterator[RangeServer]:
    made = RangeServer(HOST, Held().holder(), SERVER)
    yield made
    made.close()


def read(reader: RangeReader, server: RangeServer, first: int, count: int, what: Image | Parity = IMAGE) -> bytes:
    into = bytearray(count * PIECE)
    length = reader.read(Endpoint(1, HOST, server.port), Range(V, what, first, count), memoryview(into))
    return bytes(into[:length])


def test_transfers_are_recorded(server: RangeServer) -> None:
    """Bytes, time and count of what was read are kept for each node; so are reads that failed, damage included."""
    transfers = Transfers()
    with contextlib.closing(RangeReader(READER, transfers=transfers)) as reader:
        read(reader, server, 0, 3)
        read(reader, server, 0, 1)
        with pytest.raises(NotHeld):
            read(reader, server, PIECES, 1, PARITY)
    (row,) = transfers.to_json()
    assert (row["node"], row["read"]["bytes"], row["read"]["count"], row["read"]["failed"]) == (1, 4 * PIECE, 2, 1)
    assert row["read"]["seconds"] > 0
    assert row["read"]["first_s"] > 0


def test_what_was_sent_is_recorded() -> None:
    """Bytes, time and count are kept for each node that reads here."""
    transfers = Transfers()
    server = RangeServer(HOST, Held().holder(), SERVER, transfers=transfers)
    with contextlib.closing(RangeReader(replace(READER, node=4))) as reader:
        read(reader, server, 0, 2)
        rows = until(transfers.to_json, "the server has noted it")
    server.close()
    assert (rows[0]["node"], rows[0]["sent"]["bytes"], rows[0]["sent"]["count"]) == (4, 2 * PIECE, 1)


class Counted(Throttle):
    """Caps that only count."""

    def __init__(self) -> None:
        super().__init__()
        self.grain, self.moved, self.works = 2, 0, 0

    def bytes(self, count: int) -> float:
        self.moved += count
        return 0.0

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        self.works += 1
        yield


def test_both_sides_keep_to_the_caps() -> None:
    """Every byte passes the bandwidth cap where it is read and where it is sent, and the work on it the CPU cap."""
    mine, theirs = Counted(), Counted()
    server = RangeServer(HOST, Held().holder(), SERVER, throttle=theirs)
    with contextlib.closing(RangeReader(READER, throttle=mine)) as reader:
        assert read(reader, server, 0, PIECES) == DATA
    server.close()
    assert (mine.moved, theirs.moved) == (PIECES * PIECE, SIZE)
    assert mine.works >= PIECES // 2
    assert theirs.works == PIECES // 2
