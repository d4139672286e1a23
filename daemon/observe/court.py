"""The collector's part: takes the nodes' sightings, has the judge judge them once a second, records what it says and has the
bailiff act on it.

Every daemon has one; it sits only while its node is the collector. A successor needs nothing of it: it hears the same
ranks a second later, and grants them anew the time that a hang takes. Who was on the node of the collector before is in
that one's last ledger.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ckptd.ckpt.errors import PeerError, UsageError
from ckptd.ckpt.sighting import STACKS_MAX, WANTED_MAX, Answer, Decided, Sighting
from ckptd.daemon.launch_events import BarAsked, RestartAsked
from ckptd.daemon.observe.bailiff import ACTIVE, Bailiff, Scene, facts_of
from ckptd.daemon.observe.cases import Case, action_json, verdict_json
from ckptd.daemon.observe.incidents import Incidents, summary
from ckptd.daemon.watch.judge import Judge
from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.observations import Exchange, NodeReport, Process, Table, read_digests, read_samples
from ckptd.daemon.watch.policy import NOWHERE
from ckptd.daemon.watch.verdicts import STANDS, Confidence, Syndrome, Verdict

log = logging.getLogger(__name__)

PENDING_MAX = 4
"""Sightings of a node that wait to be heard; of more the newest count."""
AFRESH_S = 30.0
"""So often at most the judge begins anew because there are new process groups."""
QUIET_S = 10.0
"""A verdict that is not repeated for so long is over."""
VERDICTS_MAX = 20
"""Changes of one incident's verdict that are recorded."""
REACHED = ("stood_s", "ago_s", "silent_s")
"""Evidence that says for how long something has been wrong."""
_clock_start = time.time() - time.monotonic()


def steady() -> float:
    """The wall clock at the daemon's start, gone on without leaps: what this node's stamps show, in seconds."""
    return _clock_start + time.monotonic()


class Court:
    """Methods may be called from many threads."""

    def __init__(self, incidents: Incidents, bailiff: Bailiff | None = None) -> None:
        """Without a `bailiff`: one that acts, as far as `on_errand` does."""
        self._incidents, self._bailiff = incidents, bailiff or Bailiff()
        self.on_errand: Callable[[RestartAsked | BarAsked], str] = lambda _: ""
        """Asks this node's core; returns why that was refused, '' if it was not. Is called without any lock held."""
        self.on_urgent: Callable[[], None] = lambda: None
        """Is called when word comes of a process that has gone: it should sit soon."""
        self._lock = threading.Lock()
        self._pending: dict[int, deque[tuple[Sighting, float]]] = {}
        self._newest: dict[int, Sighting] = {}
        self._digests: dict[int, Table] = {}
        self._gone: set[tuple[int, int]] = set()
        self._groups: dict[int, tuple[int, ...]] = {}
        self._judge: Judge | None = None
        self._begun = 0.0
        self._cases: dict[tuple[int, str], Case] = {}
        self._wanted_probes: dict[int, list[int]] = {}
        self._wanted_stacks: dict[int, list[int]] = {}
        self._remarks: set[str] = set()
        self._sick: dict[int, tuple[str, float]] = {}
        """What a node's checker says against it, and when that was heard."""

    def hear(self, seen: Sighting, now: float | None = None) -> Answer:
        """Take a sighting, whoever is the collector; returns what to answer. `now`: of `steady`."""
        at = steady() if now is None else now
        with self._lock:
            self._pending.setdefault(seen.node, deque(maxlen=PENDING_MAX)).append((seen, at))
            probe = tuple(self._wanted_probes.pop(seen.node, ())[:WANTED_MAX])
            explain = tuple(self._wanted_stacks.pop(seen.node, ())[:STACKS_MAX])
        try:
            gone = {
                (seen.epoch, int(row["rank"])) for row in read_digests(seen.digests) if row["process"] == Process.GONE
            }
        except PeerError:
            gone = set()  # said when it is judged
        if not gone <= self._gone and len(self._gone) < 1 << 20:
            self._gone |= gone
            self.on_urgent()
        return Answer(at if now is not None else steady(), probe, explain)

    def suspicions(self) -> list[dict[str, Any]]:
        """What is wrong now, for `ckptd status`."""
        with self._lock:
            cases = list(self._cases.values())
        return [
            {"incident": case.number, **verdict_json(case.verdict), "decision": action_json(case.action, case.done)}
            for case in cases
            if case.resumed is None
        ]

    def recorded(self, number: int) -> dict[str, Any]:
        """The summaries of all incidents; with a number (from 1 on) that of one, and its entries. Raises UsageError."""
        if not number:
            return {"incidents": self._incidents.summaries()}
        entries = self._incidents.entries(number)
        return {"incidents": [summary(number, entries)], "entries": entries}

    def remarks(self) -> list[str]:
        """What can't be seen, and what was odd about what was seen."""
        with self._lock:
            said = {f"node {node}: {text}" for node, seen in self._newest.items() for text in seen.remarks}
            said |= {f"{text} ({count} times)" for text, count in (self._judge.remarks if self._judge else {}).items()}
            return sorted(said | self._remarks)[:100]

    def adjourn(self, now: float | None = None) -> None:
        """This node is not the collector: what it has heard is forgotten. `now`: of `steady`."""
        at = steady() if now is None else now
        with self._lock:
            self._pending.clear()
            for key in list(self._cases):
                self._close(key, {"t": at, "event": "closed", "reason": "another node is the collector from here on"})
            if self._judge is not None:
                self._newest, self._digests, self._judge = {}, {}, None
                self._sick = {}
                self._gone, self._groups = set(), {}

    def sit(self, now: float | None = None, scene: Scene | None = None) -> list[Verdict]:
        """Hear what has come, judge, and act. `now`: of `steady`; `scene`: what this node's core knows at that moment."""
        at, scene = steady() if now is None else now, scene or Scene()
        with self._lock:
            reports = self._take()
            self._begin(at, scene)
            judge = self._judge
            if judge is None:
                return []
            judge.hear(reports, at)
            self._bailiff.begins(judge.fleet.epoch, scene)
            verdicts = self._bailiff.lost(judge.fleet.layout.node_of.tolist(), judge.fleet.epoch, scene, at)
            judge.fleet.over_at = self._bailiff.over_since(judge.fleet.epoch, scene)
            verdicts = [*self._believed(verdicts or judge.judge(at)), *self._unhealthy(judge.fleet.epoch, at)]
            self._wanted_probes = {}
            for receiver, sender in judge.probes:
                self._wanted_probes.setdefault(receiver, []).append(sender)
            self._record(verdicts, at)
            for verdict in verdicts:
                self._decide(self._cases[verdict.epoch, verdict.syndrome.value], scene, at)
            self._fence(scene, at)
            self._follow(at)
            for number, said in self._bailiff.settled(scene):
                self._acted(number, said, at)
            errands = self._bailiff.errands(at)
        for errand in errands:
            problem = self.on_errand(errand.event)
            with self._lock:
                self._acted(errand.incident, self._bailiff.heard(errand, problem, at), at)
        return verdicts

    # ---- what is done about it --------------------------------------------------------------------

    def _believed(self, verdicts: list[Verdict]) -> list[Verdict]:
        """Without deaths that come to light when the life's end is decided: who dies of a lost peer was not the cause."""
        ending = {case.verdict.epoch for case in self._cases.values() if case.ends_life}
        return [
            verdict
            for verdict in verdicts
            if verdict.syndrome is not Syndrome.CRASH
            or verdict.epoch not in ending
            or (verdict.epoch, verdict.syndrome.value) in self._cases
        ]

    def _decide(self, case: Case, scene: Scene, now: float) -> None:
        """Decide about a case, again as long as nothing final was decided."""
        if case.action is not None and case.action.decision.act in ACTIVE:
            return
        assert self._judge is not None
        where = tuple(sorted({int(node) for node in self._judge.fleet.layout.node_of}))
        epoch, made = case.verdict.epoch, self._decided(case.verdict.epoch)
        origin = made.step if made and made.source != "none" else NOWHERE
        stood = self._steps(epoch, case.verdict.ranks)[1]
        sick = {node: why for node, (why, _) in self._sick.items()}
        facts = replace(facts_of(scene, max(case.reached, stood), where, origin=origin, stood=stood), sick=sick)
        action = self._bailiff.take(case.number, case.verdict, facts, scene, now)
        before, case.action = case.action, action
        if before is None or (before.decision.act, before.done) != (action.decision.act, action.done):
            case.done = action.done
            entry = {"t": now, "event": "decided", "decision": action_json(action, action.done)}
            self._incidents.add(case.number, entry)
            log.warning(
                "incident %d: %s: %s (%s)", case.number, action.decision.act.value, action.decision.reason, action.done
            )

    def _acted(self, number: int, said: str, now: float) -> None:
        log.warning("incident %d: %s", number, said)
        for case in self._cases.values():
            if case.number == number and case.done != said:
                case.done = said
                self._incidents.add(number, {"t": now, "event": "acted", "done": said})

    def _fence(self, scene: Scene, now: float) -> None:
        """Note when the processes of whom a case is about have ended, or their nodes are lost."""
        lost = set(scene.ledger.lost) if scene.ledger else set()
        for case in self._cases.values():
            if case.fenced or not (case.ends_life or case.verdict.syndrome in STANDS):
                continue
            if not any(self._lives(table, case.verdict) for node, table in self._digests.items() if node not in lost):
                case.fenced = True
                self._incidents.add(case.number, {"t": now, "event": "isolated", "t_isolated": now})

    @staticmethod
    def _lives(table: Table, verdict: Verdict) -> bool:
        """Whether one of the suspects' processes (of all, where nobody is suspected) still is there."""
        rows = table[(table["epoch"] == verdict.epoch) & (table["process"] != Process.GONE)]
        return any(not verdict.ranks or int(rank) in verdict.ranks for rank in rows["rank"])

    def _unhealthy(self, epoch: int, now: float) -> list[Verdict]:
        """What the nodes' health checkers say against them, of nodes that still speak."""
        sick = {node: why for node, (why, at) in sorted(self._sick.items()) if now - at < QUIET_S}
        if not sick:
            return []
        reason = "; ".join(f"node {node}: {why}" for node, why in sick.items())
        return [Verdict(Syndrome.NODE_UNHEALTHY, reason, nodes=tuple(sick), confidence=Confidence.CERTAIN, epoch=epoch)]

    # ---- what has come ----------------------------------------------------------------------------

    def _take(self) -> list[NodeReport]:
        reports = []
        for node, waiting in self._pending.items():
            while waiting:
                seen, back = waiting.popleft()
                try:
                    reports.append(self._report(seen, back))
                except PeerError as error:
                    if len(self._remarks) < 100:
                        self._remarks.add(f"node {node}: {error}")
        return reports

    def _report(self, seen: Sighting, back: float) -> NodeReport:
        digests, samples = read_digests(seen.digests), read_samples(seen.samples)
        stamps = seen.stamps
        exchange = Exchange(stamps.answered, stamps.heard, stamps.sent, back) if stamps else None
        before = self._newest.get(seen.node)
        self._newest[seen.node], self._digests[seen.node] = seen, digests
        self._sick.pop(seen.node, None)
        if seen.sick:
            self._sick[seen.node] = (seen.sick, back)
        for rank, text in seen.stacks:
            self._explained(rank, text, back)
        if before is not None and before.boot != seen.boot:
            log.info("node %d: its daemon was started anew", seen.node)
        return NodeReport(seen.node, digests, samples, seen.at, exchange)

    def _begin(self, now: float, scene: Scene) -> None:
        """Begin a life when all its ranks have been seen; begin it again when there are process groups that are new."""
        epoch = max((seen.epoch for seen in self._newest.values()), default=0)
        if not epoch or (self._judge is not None and epoch < self._judge.fleet.epoch):
            return
        new = self._judge is None or epoch > self._judge.fleet.epoch
        if new:
            self._groups = {}
        groups = dict(self._groups)
        for seen in self._newest.values():
            if seen.epoch == epoch:
                groups.update({group.number: tuple(group.members) for group in seen.groups})
        if not new and (groups.keys() == self._groups.keys() or now - self._begun < AFRESH_S):
            return
        layout = self._layout(epoch, groups, scene)
        if layout is None:
            return
        try:
            if self._judge is not None and new:
                self._judge.begin(layout, epoch, now)
            else:
                self._judge = Judge(layout, epoch=epoch, now=now)
        except UsageError as error:
            self._remarks.add(str(error))
            return
        self._groups, self._begun = groups, now
        self._gone = {pair for pair in self._gone if pair[0] >= epoch}

    def _layout(self, epoch: int, groups: dict[int, tuple[int, ...]], scene: Scene) -> Layout | None:
        """Who is where in this life; None before all its ranks were seen, here or by a collector that is lost."""
        world = max(seen.world for seen in self._newest.values() if seen.epoch == epoch)
        gone = scene.ranks_lost(epoch)
        nodes = [gone.get(rank, -1) for rank in range(world)]
        for node, digests in self._digests.items():
            for rank in digests["rank"][digests["epoch"] == epoch]:
                if rank < world:
                    nodes[int(rank)] = node
        if not world or -1 in nodes:
            return None
        fitting = {number: members for number, members in groups.items() if max(members) < world}
        return Layout(nodes, fitting)

    # ---- what is said -----------------------------------------------------------------------------

    def _record(self, verdicts: list[Verdict], now: float) -> None:
        for verdict in verdicts:
            key = (verdict.epoch, verdict.syndrome.value)
            case = self._cases.get(key)
            if case is None:
                entry = {"t": now, "event": "opened", "verdict": verdict_json(verdict), "t_detected": now}
                since = next((value for name, value in verdict.evidence if name in REACHED), None)
                entry |= {"t_fault": now - since} if since is not None else {}
                case = self._cases[key] = Case(self._incidents.open(entry), verdict, now)
                log.warning("%s: %s (incident %d)", verdict.syndrome.value, verdict.reason, case.number)
            elif _suspects(case.verdict) != _suspects(verdict) and case.changes < VERDICTS_MAX:
                case.changes += 1
                self._incidents.add(case.number, {"t": now, "event": "verdict", "verdict": verdict_json(verdict)})
            case.verdict, case.seen = verdict, now
            case.reached = max(case.reached, self._steps(verdict.epoch)[1])
            self._ask_for_stacks(case)

    def _ask_for_stacks(self, case: Case) -> None:
        for rank in case.verdict.ranks[:STACKS_MAX]:
            assert self._judge is not None
            node = int(self._judge.fleet.layout.node_of[rank])
            if rank not in case.stacks and rank not in self._wanted_stacks.get(node, ()):
                self._wanted_stacks.setdefault(node, []).append(rank)

    def _explained(self, rank: int, text: str, now: float) -> None:
        for case in self._cases.values():
            if rank in case.verdict.ranks and rank not in case.stacks and text:
                case.stacks.add(rank)
                self._incidents.add(case.number, {"t": now, "event": "stack", "rank": rank, "text": text})

    def _follow(self, now: float) -> None:
        """What becomes of the open cases: they pass, or another life begins and reaches a step."""
        epoch = self._judge.fleet.epoch if self._judge else 0
        for key, case in list(self._cases.items()):
            if case.verdict.epoch == epoch:
                if now - case.seen > QUIET_S and not case.ends_life:
                    self._close(key, {"t": now, "event": "closed", "reason": "it is not seen any more"})
                continue
            first, last = self._steps(epoch)
            if case.resumed is None or case.resumed[0] != epoch:
                self._resume(case, epoch, first, now)
            elif case.resumed is not None and first > case.resumed[1]:
                self._incidents.add(case.number, {"t": now, "event": "first step", "step": first, "t_first_step": now})
                if case.ends_life:
                    self._bailiff.restarted(now - case.opened)
                self._close(
                    key, {"t": now, "event": "closed", "reason": f"the job trains in epoch {epoch}, step {last}"}
                )

    def _resume(self, case: Case, epoch: int, step: int, now: float) -> None:
        made = self._decided(epoch)
        chosen = made.step if made else step
        case.resumed = (epoch, chosen)
        entry = {"t": now, "event": "resumed", "epoch": epoch, "t_state_ready": now}
        entry |= {"chosen": {"epoch": epoch, "step": chosen, "tier": made.source if made else "unknown"}}
        self._incidents.add(case.number, {**entry, "lost_steps": max(0, case.reached - chosen)})

    def _close(self, key: tuple[int, str], entry: dict[str, Any]) -> None:
        case = self._cases.pop(key)
        self._incidents.add(case.number, entry)
        log.info("incident %d is closed: %s", case.number, entry["reason"])

    def _decided(self, epoch: int) -> Decided | None:
        """What a life was restored from, as the daemon of its rank 0 says."""
        return next((s.decided for s in self._newest.values() if s.decided and s.decided.epoch == epoch), None)

    def _steps(self, epoch: int, ranks: tuple[int, ...] = ()) -> tuple[int, int]:
        """The least and the greatest step of a life's ranks, or of some of them, as last seen."""
        rows = [row for table in self._digests.values() for row in table[table["epoch"] == epoch]]
        steps = [int(row["step"]) for row in rows if not ranks or int(row["rank"]) in ranks]
        return (min(steps), max(steps)) if steps else (0, 0)


def _suspects(verdict: Verdict) -> tuple[object, ...]:
    return verdict.ranks, verdict.nodes, verdict.links
