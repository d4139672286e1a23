"""From the events around a fault to what happened, and to whether the promise was kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ckptd.ckpt.model import Version
from ckptd.daemon.demo.watch import Event
from ckptd.daemon.drill.faults import MEMORY, Fault, Promise

NOTICED = {"node_lost", "rank_lost", "damaged", "skipped", "refused", "persist_failed", "parity_failed"}
"""What a daemon says when something is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One fault of a drill and what came of it. Times are in seconds after it struck; None: not seen, or not needed."""

    fault: Fault
    promise: Promise
    sealed_before: Version | None
    happened: str
    t_noticed: float | None
    t_first_step: float | None
    t_sealed: float | None
    broken: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        before = self.sealed_before
        return {
            "fault": str(self.fault),
            "promised": self.promise.text,
            "happened": self.happened,
            "sealed_before": {"epoch": before.epoch, "step": before.step} if before else None,
            "seconds": {"noticed": self.t_noticed, "first_step": self.t_first_step, "sealed": self.t_sealed},
            "kept": not self.broken,
            "broken": list(self.broken),
        }


def sealed_by(events: Iterable[Event], t: float) -> Version | None:
    """The newest version that was sealed at time `t`. One of a later life counts as newer, as everywhere."""
    return max((version_of(e) for e in events if e.name == "sealed" and e.t <= t), default=None)


def version_of(event: Event) -> Version:
    """The version in a daemon's event."""
    return Version(int(event.fields["epoch"]), int(event.fields["step"]))


def new_seal(events: Sequence[Event], calm: float) -> float | None:
    """When a version was sealed that was captured after `calm`, and is newer than all that were sealed before."""
    before = sealed_by(events, calm)
    captured: dict[Version, float] = {}
    for event in events:
        if event.name == "captured":
            captured.setdefault(version_of(event), event.t)
    sealed = (e for e in events if e.name == "sealed" and e.t >= calm)
    new = (
        e.t for e in sealed if captured.get(version_of(e), 0.0) >= calm and (before is None or version_of(e) > before)
    )
    return min(new, default=None)


def decisions(events: Iterable[Event], t: float) -> list[Event]:
    """What the daemons decided after `t`, in order."""
    return [event for event in events if event.name == "decided" and event.t >= t]


def first_step(events: Iterable[Event], t: float, ranks: int) -> float | None:
    """When every rank had finished a step of a life that began after `t`."""
    first: dict[int, float | None] = {}
    for event in events:
        if event.told_by == "trainer" and event.t >= t:
            if event.name == "restored":
                first[event.fields["rank"]] = None
            elif event.name == "step" and first.get(event.fields["rank"], 0.0) is None:
                first[event.fields["rank"]] = event.t
    times = [when for when in first.values() if when is not None]
    return max(times) if times and len(times) == ranks else None


def judge(
    fault: Fault, promised: Promise, events: Sequence[Event], t: float, sealed_at: float | None, ranks: int
) -> Outcome:
    """Hold what the events say against the promise. `sealed_at` is when a step captured after the fault was sealed."""
    before, decided = sealed_by(events, t), decisions(events, t)
    noticed = min((e.t for e in events if e.name in NOTICED and e.t >= t), default=None)
    broken = [] if sealed_at is not None else ["no step was sealed afterwards"]
    if promised.sources is None:
        broken += ["the training was stopped"] if decided else []
        happened = "the training was stopped" if decided else "the training went on"
    else:
        broken += _badly_restored(promised, decided, before)
        happened = _restored(decided)

    def after(when: float | None) -> float | None:
        return None if when is None else round(when - t, 2)

    return Outcome(
        fault=fault,
        promise=promised,
        sealed_before=before,
        happened=happened,
        t_noticed=after(noticed),
        t_first_step=after(first_step(events, t, ranks)) if decided else None,
        t_sealed=after(sealed_at),
        broken=tuple(broken),
    )


def _badly_restored(promised: Promise, decided: Sequence[Event], before: Version | None) -> list[str]:
    assert promised.sources is not None
    if not decided:
        return ["nothing was restored"]
    broken = []
    for event in decided:
        source, told = str(event.fields["source"]), _restored([event])
        if source not in promised.sources:
            broken.append(f"{told}; expected it from {' or '.join(sorted(promised.sources))}")
        elif before and source in MEMORY and _chosen(event) < before:
            broken.append(f"{told}, older than {before}, which was sealed")
    return broken


def _chosen(event: Event) -> Version:
    return Version(int(event.fields["version_epoch"]), int(event.fields["step"]))


def _restored(decided: Sequence[Event]) -> str:
    if not decided:
        return "nothing was restored"
    last = decided[-1]
    step = f"step {last.fields['step']}" if "step" in last.fields else "nothing"
    return f"restored {step} from {last.fields['source']}"
