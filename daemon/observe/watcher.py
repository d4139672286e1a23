"""The thread that looks: at this node's ranks and links once a second, and at once when a process has gone.

What it sees goes to the collector's daemon as a sighting, which is none of the reports that the node's core makes: a
training that moves on changes it every second, and nothing is announced for that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, PeerError
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.shm import private_dir
from ckptd.ckpt.sighting import (
    GROUPS_MAX,
    REMARK_CHARS,
    REMARKS_MAX,
    RUNS_MAX,
    STACKS_MAX,
    Answer,
    Decided,
    Group,
    Sighting,
    Stamps,
)
from ckptd.daemon.driver import Driver
from ckptd.daemon.launch_events import BarAsked, RestartAsked
from ckptd.daemon.node import Node
from ckptd.daemon.observe.bailiff import Predecessor, Scene
from ckptd.daemon.observe.court import Court, steady
from ckptd.daemon.observe.links import Links, Neighbours
from ckptd.daemon.observe.plugins import Plugins
from ckptd.daemon.observe.ranks import Attached, RankEye
from ckptd.daemon.peers import Peers
from ckptd.daemon.watch.observations import RANKS_MAX, PairSample, pack, pack_samples

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SIT_AGAIN_S = 0.15
"""After word of a process that has gone: until what the other nodes have seen by then has come."""
CORE_S = 2.0
"""How long the node's core is waited for; it answers in milliseconds, unless the daemon ends."""
_LOOKERS = 8


@dataclass(frozen=True, slots=True)
class _Here:
    """What the node's core knows at one moment."""

    attached: tuple[Attached, ...]
    epoch: int
    collector: int
    ledger: Ledger | None
    breach: tuple[tuple[int, str], float] | None = None
    """The `order` of the last round that was found over here, and when, of the monotonic clock."""
    before: Predecessor | None = None
    gone: Mapping[int, float] = field(default_factory=dict)
    """Nodes that count as lost here, and since when. Both by the monotonic clock, too."""

    def scene(self, lost_after_s: float) -> Scene:
        """The same for the court, by its clock."""
        ahead = steady() - time.monotonic()
        breach = (self.breach[0], self.breach[1] + ahead) if self.breach else None
        before = replace(self.before, heard=self.before.heard + ahead) if self.before else None
        gone = {node: at + ahead for node, at in self.gone.items()}
        return Scene(self.ledger, breach, lost_after_s, before, gone)


class Watcher:
    """Owns the thread. `heard`, `answered`, `decided`, `restores` and `wake` may be called from any thread."""

    def __init__(
        self, config: Config, driver: Driver, peers: Peers, court: Court, links: Links, plugins: Plugins, boot: str
    ) -> None:
        """Raises AccessError when the directory for the ranks' files can't be had."""
        self._config, self._driver, self._peers, self._boot = config, driver, peers, boot
        self._court, self._links, self._plugins = court, links, plugins
        self._directory = private_dir(config.run_dir / "watch")
        self._eyes: dict[int, RankEye] = {}
        self._here = _Here((), 0, config.node, None)
        self._stamps: dict[int, tuple[float, float]] = {}
        self._asked: list[int] = []
        self._explain: list[int] = []
        self._decided: Decided | None = None
        self._restored = 0
        """The newest life of which was heard that it reads its state."""
        self._samples: list[PairSample] = []
        self._attached_seen = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_LOOKERS, "look")
        self._background = ThreadPoolExecutor(2, "stacks")
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = False
        self._urgent = False
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look now: somewhere a process has gone."""
        self._urgent = True
        with contextlib.suppress(OSError):  # full: it wakes anyway
            os.write(self._wake_out, b"w")

    def heard(self, ledger: Ledger) -> None:
        """A ledger has come: if it has fewer ranks than the one before, somebody has gone, and all say what they see."""
        count = sum(len(report.ranks) for report in ledger.reports)
        fewer, self._attached_seen = count < self._attached_seen, count
        if fewer:
            self.wake()

    def ask(self, asked: RestartAsked | BarAsked) -> str:
        """Ask this node's core for what the court wants; why it was refused, '' if it was not."""
        try:
            self._driver.ask(lambda ticket: replace(asked, ticket=ticket), CORE_S)
        except CkptdError as error:
            return str(error)
        return ""

    def answered(self, node: int, answer: Answer) -> None:
        """A node has answered to a sighting."""
        with self._lock:
            self._stamps[node] = (answer.at, steady())
            self._asked, self._explain = list(answer.probe) or self._asked, [*self._explain, *answer.explain]

    def decided(self, epoch: int, step: int, source: str) -> None:
        """This node's daemon has let a new life begin."""
        self._decided = Decided(epoch, step, source)

    def restores(self, epoch: int) -> None:
        """A life has joined and reads its state: look now, so that one that ends in its first step was seen."""
        if epoch > self._restored:
            self._restored = epoch
            self.wake()

    def status(self) -> dict[str, Any]:
        """For `ckptd status`."""
        return {"suspicions": self._court.suspicions(), "remarks": self._court.remarks()}

    def incidents(self, number: int) -> dict[str, Any]:
        """For `ckptd incidents`: all that were recorded here, or with a number one of them. Raises UsageError."""
        return self._court.recorded(number)

    def close(self) -> None:
        self._closing = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        for pool in (self._pool, self._background):
            pool.shutdown(wait=False, cancel_futures=True)
        for eye in self._eyes.values():
            eye.close()

    # ---- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing:
            gone = self._wait(max(0.0, due - time.monotonic()))
            if self._closing:
                return
            urgent, self._urgent = self._urgent, False
            if not gone and not urgent and time.monotonic() < due:
                continue
            due = max(due + LOOK_EVERY_S, time.monotonic() + LOOK_EVERY_S / 2) if time.monotonic() >= due else due
            try:
                self._look()
                if gone or urgent:
                    self._sit_again()
            except CkptdError as error:
                log.warning("a look at the ranks failed: %s", error)
            except Exception:  # the thread's last line: one odd look must not be the last one
                log.exception("a look at the ranks failed that should not have")

    def _sit_again(self) -> None:
        if self._here.collector == self._config.node:
            time.sleep(SIT_AGAIN_S)
            self._here = self._driver.look(_here, CORE_S)
            self._sit()

    def _sit(self) -> None:
        self._court.sit(scene=self._here.scene(self._config.timing.lost_after_s))

    def _wait(self, timeout_s: float) -> bool:
        """Until a process goes, somebody wakes us, or the time is over; whether a process has gone."""
        poller = select.poll()
        poller.register(self._wake_in, select.POLLIN)
        watched = {}
        for eye in self._eyes.values():
            if eye.gone_at is None:
                poller.register(eye.process.descriptor, select.POLLIN)
                watched[eye.process.descriptor] = eye
        ready = [descriptor for descriptor, _ in poller.poll(timeout_s * 1e3 + 1)]
        if self._wake_in in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_in, 4096)
        gone = [watched[descriptor] for descriptor in ready if descriptor in watched]
        for eye in gone:
            found = eye.bury()
            log.info("rank %d has gone: %d", found.rank, found.exit)
        return bool(gone)

    def _look(self) -> None:
        self._meet(self._driver.look(_here, CORE_S))
        eyes = [eye for _, eye in sorted(self._eyes.items())][:RANKS_MAX]
        digests = list(self._pool.map(RankEye.look, eyes))
        with self._lock:
            asked, self._asked = self._asked, []
            explain, self._explain = list(dict.fromkeys(self._explain))[:STACKS_MAX], []
            stamps = self._stamps.get(self._here.collector)
        found = self._links.look(Neighbours.of(self._config, self._here.ledger), asked, time.monotonic())
        now = steady()
        seen = Sighting(
            node=self._config.node,
            boot=self._boot,
            epoch=max((eye.attached.epoch for eye in eyes), default=self._here.epoch),
            world=max((eye.attached.world for eye in eyes), default=0),
            at=now,
            digests=pack(digests).tobytes(),
            samples=pack_samples(found).tobytes(),
            groups=_groups(eyes),
            stamps=Stamps(*stamps, now) if stamps else None,
            decided=self._decided,
            stacks=tuple((rank, self._eyes[rank].explain()) for rank in explain if rank in self._eyes),
            remarks=self._remarks(eyes),
            sick=self._plugins.sick()[:REMARK_CHARS],
        )
        if self._here.collector == self._config.node:
            self.answered(self._config.node, self._court.hear(seen))
            self._sit()
        else:
            self._court.adjourn()
            self._peers.send(self._here.collector, seen)

    def _meet(self, here: _Here) -> None:
        """Take the ranks that are attached now. Those that have gone stay in sight until their successors come."""
        self._here = here
        for attached in here.attached:
            old = self._eyes.get(attached.rank)
            if old is not None and old.attached.pid == attached.pid:
                old.attached = attached
                continue
            if old is not None:
                self._eyes.pop(attached.rank).close()
            try:
                self._eyes[attached.rank] = RankEye(self._directory, attached, self._background)
            except PeerError as error:
                log.debug("rank %d can't be watched: %s", attached.rank, error)
        newest = max((attached.epoch for attached in here.attached), default=0)
        for rank, eye in list(self._eyes.items()):
            if eye.gone_at is not None and eye.attached.epoch < newest:
                self._eyes.pop(rank).close()

    def _remarks(self, eyes: list[RankEye]) -> tuple[str, ...]:
        said = [*self._plugins.findings(), *(text for eye in eyes for text in eye.remarks if eye.gone_at is None)]
        return tuple(text[:REMARK_CHARS] for text in said[:REMARKS_MAX])


def _groups(eyes: list[RankEye]) -> tuple[Group, ...]:
    known = {found.number: found.group for eye in eyes for found in eye.groups.values()}
    fitting = [group for _, group in sorted(known.items()) if len(group.runs) <= RUNS_MAX]
    return tuple(fitting[:GROUPS_MAX])


def _here(node: Node) -> _Here:
    attached = tuple(Attached(rank, trainer.pid, trainer.world, trainer.epoch) for rank, trainer in node.ranks)
    breach, before = node.collector.rounds.breach, node.collector.before
    after = Predecessor(before, node.ledger_heard(before.collector)) if before else None
    leads = node.collector_index(time.monotonic())
    return _Here(attached, node.epoch, leads, node.ledger, breach, after, node.collector.gone_since)
