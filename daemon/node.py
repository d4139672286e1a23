"""One daemon as a pure machine: `handle(event, now) -> effects`. No clock, no I/O, no threads, no randomness.

The driver performs the effects and feeds what comes of them back as events, so the same code runs under a real clock
with real sockets and in one thread under a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ckptd.ckpt.client import Attachment
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.inventory import Held, Ledger, Part, Report
from ckptd.ckpt.model import Version
from ckptd.daemon import events as ev
from ckptd.daemon.catalog import Holding
from ckptd.daemon.collector import Collector, newest
from ckptd.daemon.decisions import Decisions
from ckptd.daemon.duties import Duties
from ckptd.daemon.events import named, note, refuse
from ckptd.daemon.launch import Launch
from ckptd.daemon.launch_events import AgentCame, AgentEnded, BarAsked, RestartAsked
from ckptd.daemon.ranks import Ranks, Trainer
from ckptd.daemon.rounds import news_of_rounds
from ckptd.daemon.slots import Known, Slots


class Node:
    """The state of one daemon. `boot` names this run of it; see the module for the shape."""

    def __init__(self, config: Config, boot: str) -> None:
        self.config = config
        self.boot = boot
        self.collector = Collector(config, boot)
        self.duties = Duties(config)
        self.ranks = Ranks(config.node)
        self.slots = Slots(config, self.ranks, self.duties)
        self.catalog = self.slots.catalog
        self.decisions = Decisions(config, boot)
        self.launch = Launch(config.node, len(config.nodes))
        self.ledger: Ledger | None = None
        self.epoch = 0
        self.sealed: Version | None = None
        self.persisted: Version | None = None
        self.wanted: Version | None = None
        """The newest version that a trainer here wants on storage, whether it is due or not."""
        self.sealing_lag_s: float | None = None
        """From the capture of the last image here to the word that its version is sealed."""
        self.part: Part | None = None
        self.data_port = 0
        self.scanned = False
        self._heard: dict[int, float] = {}
        self._boots: dict[int, str] = {}
        self._born: float | None = None
        self._said: Report | None = None
        self._changed = True
        self._reported_at = float("-inf")
        self._handlers: dict[type, Callable[[Any, float], list[ev.Effect]]] = {
            ev.Scanned: self._on_scanned,
            ev.Tick: self._on_tick,
            ev.ReportCame: self._on_report,
            ev.LedgerCame: self._on_ledger,
            ev.AttachAsked: self._on_attach,
            ev.RankGone: self._on_rank_gone,
            ev.DecideAsked: self._on_decide,
            ev.JoinAsked: self._on_join,
            ev.BeginAsked: lambda event, _now: self.slots.begin(event, self.known()),
            ev.CommitAsked: lambda event, _now: self.slots.commit(event),
            ev.AbortAsked: lambda event, _now: self.slots.abort(event),
            ev.PersistAsked: self._on_persist_asked,
            ev.SlotMade: lambda event, _now: self.slots.made(event),
            ev.Recorded: self.slots.recorded,
            ev.RebuildAsked: self._on_rebuild_asked,
            ev.ParityMade: self._on_parity_made,
            ev.Rebuilt: self._on_rebuilt,
            ev.Written: self._on_written,
            ev.Published: self._on_published,
            ev.Removed: lambda event, _now: self.duties.removed(event),
            ev.Damaged: self._on_damaged,
            ev.Repaired: self._on_repaired,
            ev.ParityDamaged: self._on_parity_damaged,
            AgentCame: self._on_agent_came,
            AgentEnded: self._on_agent_ended,
            BarAsked: self._on_bar_asked,
            RestartAsked: self._on_restart_asked,
        }

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Take one event at time `now` (seconds, monotonic) and return what is to be done, in order."""
        if self._born is None:
            self._born = now
        effects = self._handlers[type(event)](event, now)
        effects += self._communicate(now)
        return effects

    # ---- what the node says of itself ---------------------------------------------------------

    def report(self) -> Report:
        """Everything that this node can serve: under a new sequence number when that has changed, else the same again."""
        before = self._said
        report = Report(
            node=self.config.node,
            boot=self.boot,
            seq=before.seq if before else 1,
            data_port=self.data_port,
            epoch=self.epoch,
            ranks=tuple((rank, trainer.pid) for rank, trainer in self.ranks),
            captures=self.ranks.captures(self.catalog),
            held=tuple(held for _, held in self.catalog.holding()),
            parities=self.duties.parities(),
            tables=self.duties.tables(),
            part=self.part,
            sealed=self.sealed,
            persisted=self.persisted,
            questions=self.decisions.asked,
            wanted=self.wanted,
            domain=self.config.domain,
            scanned=self.scanned,
            agent=self.launch.agent,
            wish=self.launch.wish,
            isolations=self.launch.isolations,
            barred=self.launch.barred,
        )
        if before is None or report != before:
            before = self._said = replace(report, seq=before.seq + 1) if before else report
        return before

    def collector_index(self, now: float) -> int:
        """The lowest node that this one believes to be alive: itself, or one whose ledger it heard not long ago."""
        for node in range(self.config.node):
            heard = self._heard.get(node, self._born if self._born is not None else now)
            if now - heard < self.config.timing.lost_after_s:
                return node
        return self.config.node

    def ledger_heard(self, node: int) -> float:
        """When the last ledger of a node came; never: minus infinity."""
        return self._heard.get(node, float("-inf"))

    def _communicate(self, now: float) -> list[ev.Effect]:
        """Report changes at once and everything now and then; announce the ledger where this node is the collector."""
        self._changed |= self.slots.take_changed()
        if not self._changed and now - self._reported_at < self.config.timing.report_every_s:
            return []
        self._changed, self._reported_at = False, now
        report = self.report()
        self.collector.observe(report, now)
        collector = self.collector_index(now)
        # Lower nodes are told too although they seem dead: one that comes back must learn what there is.
        effects: list[ev.Effect] = [ev.Send(node, report) for node in range(min(collector + 1, self.config.node))]
        if collector == self.config.node:
            effects += self._announce(now)
        return effects

    def _announce(self, now: float) -> list[ev.Effect]:
        before = self.ledger
        ledger = self.collector.ledger(now)
        effects: list[ev.Effect] = [
            ev.Send(node, ledger) for node in range(len(self.config.nodes)) if node != self.config.node
        ]
        effects += [*self._news_of_nodes(before, ledger), *news_of_rounds(before, ledger)]
        effects += self._adopt(ledger, now)
        table = self.collector.ready_to_publish(ledger)
        if table:
            effects += self.duties.publish(table, now)
        return effects

    def _news_of_nodes(self, before: Ledger | None, after: Ledger) -> list[ev.Effect]:
        """The collector's entries about nodes that were lost or have joined since the last ledger."""
        old_lost = set(before.lost) if before else set()
        notes = [note("node_lost", lost=node) for node in after.lost if node not in old_lost]
        joined = [r.node for r in after.reports if r.node in old_lost or self._boots.get(r.node) != r.boot]
        return [*notes, *(note("node_joined", joined=node) for node in joined)]

    # ---- membership ---------------------------------------------------------------------------

    def _on_scanned(self, event: ev.Scanned, now: float) -> list[ev.Effect]:
        for found in event.slots:
            held = Held(found.version, found.world, found.image, found.origin)
            self.catalog.act(found.slot, "find", Holding(held))
        self.duties.found(event.parities)
        self.epoch = max(self.epoch, event.epoch)
        self.sealed = newest(self.sealed, event.sealed)
        self.scanned = self._changed = True
        ready = note("ready", images=len(event.slots), parities=len(event.parities), data_port=self.data_port)
        return [ready, *self._remember(), *self.duties.outdated(self.sealed, self.ledger)]

    def _remember(self) -> list[ev.Effect]:
        """Keep what must not go back. Not before the scan, which brings what was kept: that would be written over."""
        return [ev.Remember(self.epoch, self.sealed)] if self.scanned else []

    def _on_tick(self, _event: ev.Tick, now: float) -> list[ev.Effect]:
        self.launch.tick(now)
        return self._work(now)

    def _on_report(self, event: ev.ReportCame, now: float) -> list[ev.Effect]:
        if self.collector.observe(event.report, now) and self.collector_index(now) == self.config.node:
            self._changed = True  # what follows from it is announced at once
        return []

    def _on_ledger(self, event: ev.LedgerCame, now: float) -> list[ev.Effect]:
        ledger = event.ledger
        self._heard[ledger.collector] = now
        # A collector that goes on without this node has not heard it: what is safe among those whom it hears may be less
        # safe than what is kept here. It takes this node in as soon as it hears it.
        if ledger.collector != self.collector_index(now) or self.config.node in ledger.left:
            return []
        known = self.ledger
        if known and known.collector == ledger.collector and known.boot == ledger.boot and ledger.seq <= known.seq:
            return []
        return self._adopt(ledger, now)

    def _adopt(self, ledger: Ledger, now: float) -> list[ev.Effect]:
        """Take the collector's facts as ours, and do what follows from them."""
        self.ledger = ledger
        self._boots |= {report.node: report.boot for report in ledger.reports}
        if ledger.collector != self.config.node:
            self.collector.follow(ledger, now)
        self.launch.follow(ledger)
        effects: list[ev.Effect] = []
        sealed = newest(self.sealed, ledger.sealed)
        if sealed is not None and sealed != self.sealed:
            lag_s = self.slots.lag_s(sealed, now)
            self.sealing_lag_s = lag_s if lag_s is not None else self.sealing_lag_s
            effects.append(note("sealed", **named(sealed), **({} if lag_s is None else {"lag_s": lag_s})))
        if sealed != self.sealed or ledger.epoch > self.epoch:
            self.sealed, self.epoch = sealed, max(self.epoch, ledger.epoch)
            effects += self._remember()
        self.persisted = newest(self.persisted, ledger.persisted)
        effects += [*self.duties.outdated(self.sealed, ledger), *self.slots.give_up_surplus(self.known())]
        part = self.part
        if part and (ledger.persist not in (None, part.version) or (self.persisted and self.persisted >= part.version)):
            self.part = None
        return [*effects, *self._work(now), *self._settle()]

    def known(self) -> Known:
        """What decides about the slots now."""
        return Known(self.ledger, self.sealed, self.part, self._newest_life(), self.scanned)

    def _work(self, now: float) -> list[ev.Effect]:
        """Start whatever this node should be doing and is not."""
        if self.ledger is None or not self.scanned:
            return []
        return self.duties.work(self.ledger, self.catalog, self.part, now)

    # ---- trainers -----------------------------------------------------------------------------

    def _on_attach(self, event: ev.AttachAsked, now: float) -> list[ev.Effect]:
        if not 0 <= event.rank < event.world:
            return [refuse(event.ticket, UsageError(f"rank {event.rank}: expected 0 to {event.world - 1}"))]
        problem = self.ranks.refuses(event.rank, event.pid, event.epoch, self._newest_life())
        if problem:
            return [refuse(event.ticket, problem)]
        effects: list[ev.Effect] = []
        if self.ranks.attach(event.rank, Trainer(event.world, event.local_world, event.pid)):
            effects += self._bury(event.rank)
        if event.epoch:  # this daemon was restarted: the trainer goes on in the life that it was in
            self.ranks.join(event.rank, event.epoch)
            self.epoch = max(self.epoch, event.epoch)
            effects += self._remember()
        size = len(self.config.nodes)
        attached = Attachment(self.config.node, size, self.config.parity if size > 1 else 0)
        return [*effects, ev.Answer(event.ticket, attached)]

    def _newest_life(self) -> int:
        """The newest epoch in which a trainer is attached anywhere: who lives in an older one has a successor.

        Not the newest that was given: that may be of a life which ended before it began, on a node that is lost.
        """
        lives = self.ledger.lives() if self.ledger else set()
        return max([*lives, *(trainer.epoch for _, trainer in self.ranks)], default=0)

    def _on_rank_gone(self, event: ev.RankGone, now: float) -> list[ev.Effect]:
        if not self.ranks.leave(event.rank, event.pid):
            return []
        return [*self._bury(event.rank), note("rank_lost", rank=event.rank, pid=event.pid)]

    def _bury(self, rank: int) -> list[ev.Effect]:
        """The trainer that was this rank is gone, with what it was capturing and asking."""
        self._changed = True
        return [*map(ev.Retire, self.slots.discard_unfinished(rank)), *self.decisions.abandon(rank)]

    def _on_join(self, event: ev.JoinAsked, now: float) -> list[ev.Effect]:
        problem = self.ranks.join(event.rank, event.epoch)
        if problem:
            return [refuse(event.ticket, problem)]
        self.epoch = max(self.epoch, event.epoch)
        self._changed = True
        return [*self._remember(), ev.Answer(event.ticket, None)]

    def _on_persist_asked(self, event: ev.PersistAsked, now: float) -> list[ev.Effect]:
        stored = self.config.storage is not None
        if stored:
            self.wanted, self._changed = newest(self.wanted, event.version), True
            self.duties.hurry()
        return [ev.Answer(event.ticket, stored)]

    # ---- agents -------------------------------------------------------------------------------

    def _on_agent_came(self, event: AgentCame, now: float) -> list[ev.Effect]:
        before = self.launch.agent
        problem = self.launch.came(event, self.ledger, now)
        self._changed |= self.launch.agent != before
        return [ev.Answer(event.ticket, problem or self.launch.standing(event.agent.name, self.ledger))]

    def _on_agent_ended(self, event: AgentEnded, _now: float) -> list[ev.Effect]:
        self.launch.ended(event)
        self._changed = True
        return [note("agent_ended", how=event.ended, reason=event.reason)]

    def _on_bar_asked(self, event: BarAsked, _now: float) -> list[ev.Effect]:
        self.launch.bar(event)
        self._changed = True
        barred = {"barred": str(event.bar)} if event.bar else {}
        return [ev.Answer(event.ticket, None), note("bar_asked", reason=event.reason, lifted=event.lift, **barred)]

    def _on_restart_asked(self, event: RestartAsked, _now: float) -> list[ev.Effect]:
        problem = self.launch.ask(event, self.ledger)
        self._changed = True
        asked = {"reason": event.reason, "isolate": list(event.isolate), "refused": str(problem or "")}
        return [ev.Answer(event.ticket, problem), note("restart_asked", **asked)]

    # ---- recovery -----------------------------------------------------------------------------

    def _on_decide(self, event: ev.DecideAsked, now: float) -> list[ev.Effect]:
        problem = self.ranks.is_other(0, event.pid)
        if problem:
            return [refuse(event.ticket, problem)]
        self.decisions.ask(event, self._said.seq + 1 if self._said else 1)
        self._changed = True
        return []

    def _settle(self) -> list[ev.Effect]:
        """Answer those who wait for a decision, once it can be made."""
        effects: list[ev.Effect] = []
        if self.ledger is None or self.catalog.recording():
            return []
        for asked, decision in self.decisions.settle(self.ledger, self.epoch):
            self.epoch, self._changed = decision.epoch, True
            chosen = decision.version
            restored = {"version_epoch": chosen.epoch, "step": chosen.step} if chosen else {}
            decided = note("decided", epoch=self.epoch, source=decision.source, reason=decision.reason, **restored)
            effects += [*self._remember(), ev.Answer(asked.ticket, decision), decided]
        return effects

    # ---- what the duties come back with ---------------------------------------------------------

    def _on_rebuild_asked(self, event: ev.RebuildAsked, now: float) -> list[ev.Effect]:
        self.duties.hurry()
        return [*self._work(now), ev.Answer(event.ticket, None)]

    def _on_parity_made(self, event: ev.ParityMade, now: float) -> list[ev.Effect]:
        self._changed = True
        effects = self.duties.parity_made(event, now)
        return [*effects, *self.duties.outdated(self.sealed, self.ledger), *self._work(now)]

    def _on_rebuilt(self, event: ev.Rebuilt, now: float) -> list[ev.Effect]:
        self._changed = True
        return self.duties.rebuilt(event, self.catalog, now)

    def _on_written(self, event: ev.Written, now: float) -> list[ev.Effect]:
        self._changed = True
        if not event.reason:
            before = self.part.images if self.part and self.part.version == event.version else ()
            self.part = Part(event.version, (*before, *event.images))
        return self.duties.written(event, now)

    def _on_published(self, event: ev.Published, now: float) -> list[ev.Effect]:
        self._changed = True
        if not event.reason:
            self.persisted = newest(self.persisted, event.version)
            self.collector.published(event.version)
        return self.duties.published(event, self.launch.barred, now)

    def _on_damaged(self, event: ev.Damaged, now: float) -> list[ev.Effect]:
        return self.slots.damaged(event, self.known(), now)

    def _on_repaired(self, event: ev.Repaired, now: float) -> list[ev.Effect]:
        return self.slots.repaired(event, now)

    def _on_parity_damaged(self, event: ev.ParityDamaged, now: float) -> list[ev.Effect]:
        self._changed = True
        return self.duties.parity_damaged(event.parity, self.sealed)

    def check_invariants(self) -> None:
        """What must hold after every event; called by tests and simulation."""
        for part in (self.catalog, self.duties, self.ranks, self.collector, self.launch):
            part.check_invariants()
        if self.ledger and self.ledger.sealed:
            assert self.sealed is not None, "a sealed version was announced and not kept"
            assert self.sealed >= self.ledger.sealed, f"sealed went back from {self.ledger.sealed} to {self.sealed}"
