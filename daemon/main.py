"""The composition root: reads nothing itself, builds the parts from a checked configuration, runs until told to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from ckptd.ckpt.budget import check_budget
from ckptd.ckpt.config import SOON_DAYS, Config, split_address
from ckptd.ckpt.groups import group_of
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.rounds import REASON_CHARS
from ckptd.ckpt.shm import exclusive, private_dir
from ckptd.ckpt.sighting import Answer, Sighting
from ckptd.ckpt.storage import Storage
from ckptd.ckpt.wire.translate import Letter
from ckptd.daemon import events as ev
from ckptd.daemon.channel import PLAIN
from ckptd.daemon.driver import Driver
from ckptd.daemon.fetch import Fetcher
from ckptd.daemon.jobs import Jobs
from ckptd.daemon.launch_events import BarAsked
from ckptd.daemon.limits import limits
from ckptd.daemon.node import Node
from ckptd.daemon.observe.bailiff import Bailiff
from ckptd.daemon.observe.court import Court
from ckptd.daemon.observe.health import HealthProbe
from ckptd.daemon.observe.incidents import Incidents
from ckptd.daemon.observe.links import Links
from ckptd.daemon.observe.plugins import Plugins, installed
from ckptd.daemon.observe.watcher import Watcher
from ckptd.daemon.peers import Peers, PeerServer
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import Member
from ckptd.daemon.record import EventRecord
from ckptd.daemon.records import Owner
from ckptd.daemon.scrub import Scrubber
from ckptd.daemon.sealed import SEALED
from ckptd.daemon.segments import Segments
from ckptd.daemon.server import LocalServer
from ckptd.daemon.storage_watch import StorageWatch
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transfers import Transfers
from ckptd.daemon.transport import Holder
from ckptd.erasure import serving

log = logging.getLogger(__name__)


def serve(config: Config, *, clean_exit: bool = False) -> None:
    """Run this node's daemon until SIGTERM or SIGINT.

    `clean_exit` removes the segments at the end; otherwise they stay for the next daemon to find. Raises CkptdError when
    the directories, the address or the socket can't be had, or memory_bytes is more than there is.
    """
    check_budget(config.memory_bytes, limits(config.segment_dir))
    private_dir(config.run_dir)
    told: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        told.append(number)  # no Event: it has a lock, and a second signal may come while this one is handled

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    os.nice(config.nice)
    with _lock(config.run_dir / "lock"), contextlib.ExitStack() as parts:
        segments = Segments(config.segment_dir, config.memory_bytes, Owner.of(config))
        parts.callback(segments.close, clean=clean_exit)
        record = EventRecord(config.run_dir / "events.jsonl", config.node)
        parts.callback(record.close)
        driver = _assemble(config, segments, record, parts)
        log.info(
            "node %d of %d, job %s, socket %s",
            config.node,
            len(config.nodes),
            config.job,
            config.run_dir / "ckptd.sock",
        )
        group = group_of(config.whole_map, config.node)
        if group and group.code.m:
            origin = serving(group.code.k, group.code.m)[0].origin  # found now, not when the first parity is due
            log.info("parity of %d by %d nodes, made with %s", group.code.k, group.code.m, origin)
        if len(config.nodes) == 1:
            log.warning("a single node has no parity: its snapshots survive the trainer, not the node")
        if config.tls and (left := config.tls.days_left(datetime.now(timezone.utc))) < SOON_DAYS:
            log.warning("this node's certificate expires in %d days; make new ones with `ckptd certs` in time", left)
        driver.run(lambda: bool(told))


def _assemble(config: Config, segments: Segments, record: EventRecord, parts: contextlib.ExitStack) -> Driver:
    """Build and start every part; each is stopped by `parts` in the opposite order."""
    node = Node(config, boot=secrets.token_hex(8))
    wrapping = SEALED if config.tls else PLAIN
    member = Member(job=config.job, node=config.node, secret=config.secret, wrapping=wrapping)
    throttle = Throttle(bandwidth_bytes_s=config.bandwidth_bytes_s, cpu_share=config.cpu_share)
    parts.callback(throttle.close)
    transfers = Transfers()
    reader = RangeReader(member, throttle=throttle, transfers=transfers)
    parts.callback(reader.close)
    fetcher = Fetcher(config, segments, reader, throttle)
    parts.callback(fetcher.close)
    storage = Storage(config.storage, config.job) if config.storage else None
    if storage:
        parts.callback(storage.close)
    jobs = Jobs(config, segments, fetcher, storage)
    parts.callback(jobs.foresight.close)
    storage_watch = StorageWatch(jobs, record, storage.where if storage else "", config.stuck_after_s)
    parts.callback(storage_watch.close)
    if config.scrub_every_s:
        parts.callback(Scrubber(segments, throttle, config.scrub_every_s).close)
    peers = Peers(config)
    parts.callback(peers.close)
    driver = Driver(node, segments, jobs, peers, record)
    segments.on_damage = driver.post
    jobs.on_spoiled = lambda version, reason: driver.post(BarAsked(0, reason[:REASON_CHARS], version, alone=True))
    parts.callback(driver.close)
    watcher, court = _watch(config, driver, peers, Links(member, transfers), node.boot, parts)
    if len(config.nodes) > 1:
        host, _ = split_address(config.nodes[config.node])
        holder = Holder(segments.image, segments.parity, segments.check, segments.listed)
        ranges = RangeServer(host, holder, member, throttle=throttle, transfers=transfers)
        parts.callback(ranges.close)
        node.data_port = ranges.port

        def received(letter: Letter) -> Answer | None:
            if isinstance(letter, Sighting):
                return court.hear(letter) if peers.knows(letter) else None
            event = ev.ReportCame(letter) if isinstance(letter, Report) else ev.LedgerCame(letter)
            peers.admit(letter, lambda: driver.post(event))
            if isinstance(letter, Ledger):
                watcher.heard(letter)
            return None

        parts.callback(PeerServer(config, node.boot, received).close)
    local = LocalServer(config, driver, jobs, segments, record, transfers, watcher, storage_watch)
    parts.callback(local.close)
    local.start()
    watcher.start()
    return driver


def _watch(
    config: Config, driver: Driver, peers: Peers, links: Links, boot: str, parts: contextlib.ExitStack
) -> tuple[Watcher, Court]:
    """The parts that look at the trainers and the links, and judge what is seen."""
    parts.callback(links.close)
    probes = installed()
    plugins = Plugins([*probes, HealthProbe(config.health_socket)] if config.health_socket else probes)
    parts.callback(plugins.close)
    court = Court(Incidents(config.run_dir / "incidents"), Bailiff(config.act))
    watcher = Watcher(config, driver, peers, court, links, plugins, boot)
    court.on_urgent, court.on_errand, peers.answered = watcher.wake, watcher.ask, watcher.answered
    parts.callback(watcher.close)
    return watcher, court


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the run directory: one daemon each, and a stale socket in it is known to be dead."""
    descriptor = exclusive(path, "choose another --run-dir")
    try:
        yield
    finally:
        os.close(descriptor)
