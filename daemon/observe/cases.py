"""An incident that is open, and what the court says of it as JSON. Plain values."""

from __future__ import annotations

from typing import Any

from ckptd.daemon.observe.bailiff import Action
from ckptd.daemon.watch.verdicts import Verdict


class Case:
    """One incident that is open."""

    def __init__(self, number: int, verdict: Verdict, at: float) -> None:
        self.number, self.verdict, self.seen = number, verdict, at
        self.opened = at
        self.changes = 1
        self.action: Action | None = None
        self.done = ""
        """What was done last, in words."""
        self.fenced = False
        self.stacks: set[int] = set()
        self.reached = 0
        """The greatest step of the life that it happened in."""
        self.resumed: tuple[int, int] | None = None
        """The life that came after, and the step that it began at."""

    @property
    def ends_life(self) -> bool:
        return self.action is not None and self.action.ends_life


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    return {
        "class": verdict.syndrome.value,
        "suspects": {
            "ranks": list(verdict.ranks),
            "nodes": list(verdict.nodes),
            "links": [list(link) for link in verdict.links],
        },
        "reason": verdict.reason,
        "confidence": verdict.confidence.value,
        "loss_s": verdict.loss_s,
        "evidence": dict(verdict.evidence),
        "epoch": verdict.epoch,
    }


def action_json(action: Action | None, done: str) -> dict[str, Any] | None:
    """A decision as JSON, with what was done about it last; None before there is one."""
    if action is None:
        return None
    decision, retreat = action.decision, action.decision.retreat
    return {
        "act": decision.act.value,
        "reason": decision.reason,
        "done": done,
        "nodes": list(decision.nodes),
        "isolate_s": decision.isolate_s,
        "retreat": {"step": retreat.step, "reason": retreat.reason} if retreat else None,
        "exit_code": decision.exit_code,
    }
