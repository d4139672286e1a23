"""The training job of the simulated world: lives of trainers that restore, train in step and capture, and may die anywhere.

A trainer is a generator: it yields what it waits for. The bytes of a capture follow from rank, epoch and step, so that a
restore that is torn or mixed shows. When a trainer dies the launcher ends the others, some later than others (until then
they are zombies), and starts a new life once every node has a daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.sim.hands import Opened
from tests.sim.memory import SCALE, digest
from tests.sim.truth import UNNOTICED_S
from tests.sim.world import World

from ckptd.ckpt.client import Decision
from ckptd.ckpt.errors import CkptdError, MemoryBudgetError
from ckptd.ckpt.model import Version
from ckptd.daemon import events as ev
from ckptd.daemon.node import Node

Wait = Callable[[Callable[[Any], None]], None]
Waiting = Generator[Wait, Any, None]
ANSWER_S = 8.0
"""How long a trainer waits for an answer before it asks again, or goes on without the snapshot."""


LATE_S = 4.0
"""A daemon that runs answers a trainer that captures within this time (P4: nobody waits for what he has not caused)."""


class Silence:
    """No answer came: the daemon died, or it waits for something."""


def content(rank: int, version: Version, size: int) -> bytes:
    """What this rank captures at this version."""
    return Random(f"{rank}/{version.epoch}/{version.step}").randbytes(size)


@dataclass(eq=False)
class Proc:
    """A trainer process. `daemon` is the one that it has attached to."""

    rank: int
    node: int
    pid: int
    alive: bool = True
    ended_at: float = 0.0
    epoch: int = 0
    joined: int = 0
    """The epoch that it has joined; 0 before."""
    daemon: Node | None = None
    captures: bool = True
    filling: bool = False
    """Whether it is copying into a slot."""
    stuck_until: float = 0.0
    """Until then it hangs, or until its successor copies; then it goes on where it was."""


@dataclass(eq=False)
class Life:
    """One start of the job: its trainers, what was decided for it, and who has reached which step."""

    procs: list[Proc]
    decision: Decision | None = None
    asked_at: float = 0.0
    decided_at: float = 0.0
    sealed_before: Version | None = None
    """The newest sealed version when the decision was asked for."""
    ended: bool = False
    arrived: dict[int, list[Callable[[Any], None]]] = field(default_factory=dict)
    step: int = 0


class Job:
    """`place[rank]` is the node of each rank; `sizes[rank]` the size of its image."""

    def __init__(self, world: World, place: list[int], sizes: list[int], *, step_s: float = 0.2) -> None:
        self.world, self.place, self.sizes, self.step_s = world, place, sizes, step_s
        self.fill_s = (0.0, 0.05)
        self.restart_s = (0.2, 0.6)
        self.linger_s = (0.0, 0.5)
        self.moves = 0.0
        """How often the ranks change places at a restart."""
        self.resizes = 0.0
        """How often a restart has another number of ranks, as many as there are sizes at most."""
        self.lives: list[Life] = []
        self.granted = self.skipped = self.refused = 0
        self.stopped = False
        self._pids = 1000
        world.truth.expected = lambda rank, version: digest(content(rank, version, sizes[rank]))

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def launch(self) -> None:
        """Start a new life as soon as every node that it needs has a daemon."""
        if self.stopped:
            return
        if any(self.world.hosts[node].node is None for node in self.place):
            self.world.at(0.1, self.launch)
            return
        if self.lives and self.world.rng.random() < self.moves:
            self.world.rng.shuffle(self.place)
        if self.lives and self.resizes and self.world.rng.random() < self.resizes:
            self._resize()
        first = self._pids
        self._pids += len(self.place)
        life = Life([Proc(rank, node, first + rank) for rank, node in enumerate(self.place)])
        self.lives.append(life)
        for proc in life.procs:
            self._go_on(proc, self._live(life, proc))

    def _resize(self) -> None:
        """Go on with more or fewer ranks, on nodes where some were before."""
        rng, nodes = self.world.rng, sorted(set(self.place))
        count = rng.randint(1, len(self.sizes))
        self.place = [*self.place, *(rng.choice(nodes) for _ in self.sizes)][:count]
        self.world.note(-1, "RESIZES", ranks=count)

    def kill(self, rank: int) -> None:
        """A trainer dies; the launcher notices, ends the others and starts anew."""
        self.world.note(-1, "trainer dies", rank=rank)
        self._end(self.life.procs[rank])
        self._start_anew(self.life)

    def hang(self, seconds: float) -> None:
        """A trainer hangs, in the middle of a copy if one copies; it can't be ended, and goes on after a successor began."""
        life = self.life
        proc = next((proc for proc in life.procs if proc.filling and proc.alive), life.procs[0])
        self.world.note(-1, "trainer hangs", rank=proc.rank)
        proc.stuck_until = self.world.now + seconds
        self._start_anew(life, proc)

    def _start_anew(self, life: Life, stuck: Proc | None = None) -> None:
        if life.ended:
            return
        life.ended = True
        if stuck is not None:
            self.world.at(stuck.stuck_until - self.world.now + 1.0, lambda: self._end(stuck))
        for proc in life.procs:
            if proc is stuck:
                continue
            stays = self.world.within(self.linger_s) * (6.0 if self.world.rng.random() < 0.1 else 1.0)
            self.world.at(stays, lambda proc=proc: self._end(proc))  # type: ignore[misc]
        self.world.at(self.world.within(self.restart_s), self.launch)

    def _is_followed(self, proc: Proc) -> bool:
        """Whether another process is this rank by now, and copies: the worst moment to go on."""
        successors = self.life.procs[proc.rank : proc.rank + 1]  # none where the job has shrunk
        return any(successor is not proc and successor.filling for successor in successors)

    def stop(self) -> None:
        """The job ends: all its trainers go."""
        self.stopped = True
        for life in self.lives:
            for proc in life.procs:
                self._end(proc)

    def lose(self, node: int, lingers: float = 0.0) -> None:
        """A node dies: its memory, its daemon, its trainers; the daemon only for the others, while it lingers."""
        if lingers:
            self.world.displace(node, lingers)
        else:
            self.world.lose(node)
        dead = [proc for life in self.lives for proc in life.procs if proc.node == node and proc.alive]
        for proc in dead:
            proc.alive, proc.ended_at = False, self.world.now
        if any(proc in self.life.procs for proc in dead):
            self.kill(next(proc.rank for proc in dead if proc in self.life.procs))

    def evacuate(self, node: int) -> None:
        """The launcher goes on without a node: its ranks go to the others at the next start."""
        others = [other for other in range(len(self.world.hosts)) if other != node]
        self.place = [others[rank % len(others)] if at == node else at for rank, at in enumerate(self.place)]

    def _is_current(self, life: Life) -> bool:
        return life is self.life and not life.ended

    def _end(self, proc: Proc) -> None:
        if not proc.alive:
            return
        proc.alive, proc.ended_at = False, self.world.now
        host = self.world.hosts[proc.node]
        self.world.at(self.world.rng.uniform(0.0, 0.3), lambda: self.world.tell(host, ev.RankGone(proc.rank, proc.pid)))

    # ---- what a trainer waits for -------------------------------------------------------------------

    def _go_on(self, proc: Proc, life: Waiting, value: Any = None) -> None:
        if proc.alive:
            try:
                wait = life.send(value)
            except StopIteration:
                return
            wait(lambda answer: self._go_on(proc, life, answer))

    def _sleep(self, seconds: float) -> Wait:
        return lambda resume: self.world.at(seconds, lambda: resume(None))

    def _ask(self, proc: Proc, question: Callable[[int], ev.Event]) -> Wait:
        def wait(resume: Callable[[Any], None]) -> None:
            answered = False

            def once(value: Any) -> None:
                nonlocal answered
                if not answered:
                    answered = True
                    resume(value)

            self.world.at(ANSWER_S, lambda: once(Silence()))
            self.world.at(self.world.rng.uniform(0.0, 0.003), lambda: self._send(proc, question, once))

        return wait

    def _capture_ask(self, proc: Proc, question: Callable[[int], ev.Event]) -> Wait:
        """Ask, and see to it that the answer comes soon where the daemon lives and was not frozen."""
        host, asked, wait = self.world.hosts[proc.node], self.world.now, self._ask(proc, question)
        daemon = proc.daemon  # another one would be met only after this trainer has attached to it

        def checked(resume: Callable[[Any], None]) -> None:
            def judge(answer: Any) -> None:
                waited = self.world.now - max(asked, host.frozen_until)
                prompt = not proc.alive or host.node is not daemon or waited < LATE_S
                assert prompt, f"P4: rank {proc.rank} waited {waited:.1f} s for the daemon of node {proc.node}"
                resume(answer)

            wait(judge)

        return checked

    def _send(self, proc: Proc, question: Callable[[int], ev.Event], then: Callable[[Any], None]) -> None:
        host = self.world.hosts[proc.node]
        if not proc.alive:
            return
        if host.node is None:
            self.world.at(0.05, lambda: self._send(proc, question, then))
            return
        if host.node is proc.daemon:
            self.world.ask(host, question, then)
            return
        if proc not in self.life.procs and not proc.joined:
            return  # a zombie without an epoch looks like a trainer that has just started: not modelled
        # A new daemon: the client attaches again by itself; a zombie tries to, too.
        proc.daemon = host.node
        world, epoch = len(self.place), proc.joined

        def attached(answer: Any) -> None:
            if isinstance(answer, CkptdError):
                assert not self._is_current(self._life_of(proc)), f"P4: a living trainer was refused: {answer}"
                then(answer)
            elif proc.alive or self.world.rng.random() < 0.5:  # what it had sent before it died may still come
                self.world.ask(host, question, then)

        self.world.ask(host, lambda ticket: ev.AttachAsked(ticket, proc.rank, world, 1, proc.pid, epoch), attached)

    def _life_of(self, proc: Proc) -> Life:
        return next(life for life in self.lives if proc in life.procs)

    def _barrier(self, life: Life, step: int) -> Wait:
        def wait(resume: Callable[[Any], None]) -> None:
            waiting = life.arrived.setdefault(step, [])
            waiting.append(resume)
            if len(waiting) == len(life.procs):
                life.step = step
                for other in waiting:
                    self.world.at(self.world.rng.uniform(0.0, 0.005), lambda other=other: other(None))  # type: ignore[misc]

        return wait

    # ---- a life -------------------------------------------------------------------------------------

    def _live(self, life: Life, proc: Proc) -> Waiting:
        if proc.rank == 0:
            yield from self._decide(life, proc)
        while life.decision is None:
            yield self._sleep(0.02)
        decision = life.decision
        proc.epoch = decision.epoch
        answer = yield self._ask(proc, lambda ticket: ev.JoinAsked(ticket, proc.rank, proc.epoch))
        if answer is not None:
            self.kill(proc.rank)
            return
        proc.joined = proc.epoch
        if decision.version is not None:
            yield from self._restore(life, proc, decision.version)
        step = decision.version.step if decision.version else 0
        while True:
            step += 1
            yield self._sleep(self.step_s)
            yield self._barrier(life, step)
            if proc.captures:
                yield from self._capture(life, proc, Version(proc.epoch, step))

    def _decide(self, life: Life, proc: Proc) -> Waiting:
        def question(ticket: int) -> ev.Event:
            return ev.DecideAsked(
                ticket, len(self.place), False, self.world.stored, proc.pid, self.world.clock_s(proc.node)
            )

        answer: Any = Silence()
        while isinstance(answer, Silence):
            life.sealed_before, life.asked_at = self.world.sealed, self.world.now
            answer = yield self._ask(proc, question)
        if isinstance(answer, CkptdError):
            assert not self._is_current(life), f"a living trainer got no decision: {answer}"
            yield self._sleep(1e9)
        assert isinstance(answer, Decision), answer
        assert answer.reason, "a decision without a reason"
        assert answer.epoch not in self._epochs_in_use(), f"P2: epoch {answer.epoch} was given to two lives"
        life.decision, life.decided_at = answer, self.world.now
        self.world.note(-1, "RESTORES", version=str(answer.version), epoch=answer.epoch, source=answer.source)

    def _is_overtaken(self, life: Life) -> bool:
        """Whether a process lives in a later epoch than this life, or did until just now."""
        assert life.decision is not None
        later = (proc for other in self.lives for proc in other.procs if proc.joined > life.decision.epoch)
        return any(proc.alive or self.world.now - proc.ended_at < UNNOTICED_S for proc in later)

    def _epochs_in_use(self) -> set[int]:
        """The epochs under which something is held, or may still be captured: a new life must have another one."""
        held = {found.version.epoch for host in self.world.hosts for found in host.records.values()}
        lost_at = max(
            (when for when, _ in self.world.noted("node lost")), default=-1.0
        )  # who knew of it may be gone, too
        living = {
            life.decision.epoch
            for life in self.lives
            if life.decision and life.decided_at > lost_at and any(proc.alive for proc in life.procs)
        }
        return held | living | {version.epoch for version in self.world.manifests}

    def _restore(self, life: Life, proc: Proc, version: Version) -> Waiting:
        """Bring this rank's image here, or all where there were more or fewer ranks; P2: the bytes are those that were
        captured, all of the version decided."""
        assert life.decision is not None
        world = life.decision.world
        captured_by = next(
            (len(old.procs) for old in self.lives if old.decision and old.decision.epoch == version.epoch), world
        )
        assert world == captured_by, f"P2: {version} was captured by {captured_by} ranks, the decision says {world}"
        wanted = [proc.rank] if world == len(life.procs) else list(range(world))
        for _ in range(20):
            found = [(rank, self.world.gather(self.world.hosts[proc.node], version, rank)) for rank in wanted]
            if all(data is not None for _, data in found):
                for rank, data in found:
                    whole = data == content(rank, version, self.sizes[rank])
                    assert whole, f"P2: what rank {proc.rank} restored of rank {rank} is not {version}"
                return
            yield self._sleep(0.2)
        self.kill(proc.rank)
        yield self._sleep(1e9)

    def _capture(self, life: Life, proc: Proc, version: Version) -> Waiting:
        size, rng = self.sizes[proc.rank], self.world.rng
        answer = yield self._capture_ask(proc, lambda ticket: ev.BeginAsked(ticket, proc.rank, version, size * SCALE))
        if isinstance(answer, CkptdError):
            self.refused += 1
            full = isinstance(answer, MemoryBudgetError)
            if not full and self._is_current(life):
                # Only one thing may do that: an earlier life that still runs was given an epoch after ours.
                assert self._is_overtaken(life), f"P4: a living trainer was refused: {answer}"
                self.kill(proc.rank)
                yield self._sleep(1e9)
        if not isinstance(answer, Opened):
            self.skipped += answer is None
            return
        self.granted += 1
        slot, file, data = answer.slot, answer.file, content(proc.rank, version, size)
        changed = rng.random() < 0.02  # somebody updates the parameters while they are copied; the trip wires see it
        if changed:
            data = rng.randbytes(size)
        slow = 10.0 if rng.random() < 0.05 else 1.0
        proc.filling = True
        for half in (slice(0, size // 2), slice(size // 2, size)):
            yield self._sleep(slow * self.world.within(self.fill_s))
            while self.world.now < proc.stuck_until and not self._is_followed(proc):
                yield self._sleep(0.01)
            file[half] = data[half]
        proc.filling = False
        if changed:
            yield self._capture_ask(
                proc, lambda ticket: ev.AbortAsked(ticket, slot, version, "changed behind our back")
            )
        else:
            yield self._capture_ask(proc, lambda ticket: ev.CommitAsked(ticket, slot, version))
