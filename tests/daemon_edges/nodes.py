"""Nodes in this process: real segments, real range servers and the jobs over them, but nobody who decides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.cluster import shm_dir
from tests.payload import bytes_of

from ckptd.ckpt.config import Config
from ckptd.ckpt.groups import parities_of
from ckptd.ckpt.inventory import Held, Ledger, Report
from ckptd.ckpt.model import Image, Payload, Table, Version
from ckptd.ckpt.storage import Storage
from ckptd.daemon import events as ev
from ckptd.daemon.fetch import Fetcher
from ckptd.daemon.jobs import Jobs
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import Member
from ckptd.daemon.segments import Segments
from ckptd.daemon.transport import Holder

JOB, SECRET = "j", b"s" * 32


class NodeHere:
    """One node: what it holds, serves and can do. Rank n lives on node n."""

    def __init__(self, config: Config, folder: Path, storage: Storage) -> None:
        self.config = config
        self.damage: list[ev.Damaged | ev.ParityDamaged] = []
        self.segments = Segments(folder / str(config.node))
        self.segments.on_damage = self.damage.append
        holder = Holder(self.segments.image, self.segments.parity, self.segments.check, self.segments.listed)
        member = Member(job=JOB, node=config.node, secret=SECRET)
        self.server = RangeServer("127.0.0.1", holder, member)
        self._reader = RangeReader(member)
        self.fetcher = Fetcher(config, self.segments, self._reader)
        self.jobs = Jobs(config, self.segments, self.fetcher, storage)

    @property
    def slot(self) -> ev.SlotId:
        return ev.SlotId(self.config.node, 0)

    def capture(self, version: Version, size: int) -> Image:
        """Fill the node's slot with what its rank has at this version, and record it."""
        return self.hold(version, bytes_of(version, self.config.node, size), self.slot)

    def hold(self, version: Version, data: bytes, slot: ev.SlotId) -> Image:
        """Fill a slot with these bytes, and record it."""
        path = self.segments.file_for(slot, len(data))
        path.write_bytes(data)
        event = self.jobs.record(ev.Record(slot, version, len(self.config.nodes)))
        assert event.image is not None, event.reason
        return event.image

    def report(self) -> Report:
        """What the node would tell the others."""
        world = len(self.config.nodes)
        held = tuple(Held(found.version, world, found.image, found.origin) for found, _ in self.segments.slot_entries())
        kept = self.segments._parities
        return Report(
            node=self.config.node,
            boot="b",
            seq=1,
            data_port=self.server.port,
            held=held,
            parities=tuple(kept),
            tables=tuple({entry.found.table for entry in kept.values()}),
        )

    def close(self) -> None:
        self.fetcher.close()
        self._reader.close()
        self.server.close()
        self.segments.close(clean=True)


def forget_sums(node: NodeHere) -> None:
    """What a daemon that is restarted does not know any more: the sums of the images that its parities protect."""
    kept = node.segments._parities
    kept |= {parity: replace(entry, listed={}) for parity, entry in kept.items()}


class NodesHere:
    """Several of them, and what a collector would make of their reports."""

    def __init__(self, nodes: list[NodeHere]) -> None:
        self.nodes = nodes

    def __getitem__(self, node: int) -> NodeHere:
        return self.nodes[node]

    def capture(self, version: Version, sizes: list[int]) -> Table:
        images = [node.capture(version, size) for node, size in zip(self.nodes, sizes, strict=True)]
        payloads = tuple(Payload(image.rank, (image,)) for image in images)
        return Table(version, len(images), payloads, self.nodes[0].config.whole_map)

    def ledger(self, *lost: int) -> Ledger:
        reports = tuple(node.report() for node in self.nodes if node.config.node not in lost)
        count, map_ = len(self.nodes), self.nodes[0].config.whole_map
        return Ledger(collector=0, boot="b", seq=1, nodes=count, map=map_, reports=reports, lost=lost)

    def protect(self, table: Table) -> None:
        """Make every parity of a version under a table."""
        ledger = self.ledger()
        for node in self.nodes:
            owed = parities_of(table, node.config.node)
            made = node.jobs.make_parity(ev.MakeParity(table, owed, ledger))
            assert made.made == owed, made.reason


@contextlib.contextmanager
def nodes_here(count: int, parity: int, root: Path) -> Iterator[NodesHere]:
    """`count` nodes with a common storage below `root`."""
    config = Config(
        job=JOB,
        nodes=tuple(f"127.0.0.1:{node + 1}" for node in range(count)),
        parity=parity,
        run_dir=root,
        segment_dir=root,
        storage=root / "storage",
        secret=SECRET,
    )
    with shm_dir() as folder:
        storage = Storage(root / "storage", JOB)
        nodes = [NodeHere(replace(config, node=node).validate(), folder, storage) for node in range(count)]
        try:
            yield NodesHere(nodes)
        finally:
            for node in nodes:
                node.close()
