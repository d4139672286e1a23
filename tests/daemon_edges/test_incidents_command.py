"""`ckptd incidents` and the suspicions in `ckptd status`, as people see them."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

from ckptd.daemon.incidents_command import listing, suspects, timeline
from ckptd.daemon.tables import _watched

VERDICT = {
    "class": "crash",
    "suspects": {"ranks": [3], "nodes": [1], "links": []},
    "reason": "rank 3 went [first]",
    "confidence": "certain",
}
ITEM: dict[str, Any] = {
    "id": 4, "open": False, "verdict": VERDICT, "chosen": None, "lost_steps": 2,
    "times": {"t_fault": 99.0, "t_detected": 100.0},
}  # fmt: skip


def shown(content: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=140).print(content)
    return out.getvalue()


def test_the_list_names_class_and_suspects() -> None:
    """One line each; where nothing was seen, that; and who records from now on, if it is another node."""
    text = shown(listing({"node": 0, "collector": 0, "incidents": [ITEM]}))
    assert all(word in text for word in ("crash", "rank 3 on node 1", "closed"))
    empty = shown(listing({"node": 2, "collector": 0, "incidents": []}))
    assert "nothing has gone wrong" in empty
    assert "node 0 is the collector now" in empty


def test_the_timeline_counts_from_the_fault() -> None:
    """Each entry with the seconds since; unknown ones by their name; stacks at the end, brackets and all."""
    entries = [
        {"t": 100.0, "event": "opened", "verdict": VERDICT},
        {"t": 101.5, "event": "isolated"},
        {"t": 102.0, "event": "resumed", "epoch": 2, "chosen": {"epoch": 2, "step": 40, "tier": "parity"}},
        {"t": 103.0, "event": "from the future"},
        {"t": 103.5, "event": "resumed"},
        {"t": 104.0, "event": "stack", "rank": 3, "text": "in [main]"},
        {"event": "closed"},
    ]
    text = shown(timeline({"node": 0, "collector": 0, "incidents": [ITEM], "entries": entries}))
    for words in ("went [first]", "1.0 s", "step 40 in epoch 2, from parity", "2.5 s", "from the future", "in [main]"):
        assert words in text
    assert "lost steps: 2" in text


def test_suspects_are_links_ranks_nodes_or_nobody() -> None:
    """The narrowest that is known; many are cut short."""
    assert suspects({"suspects": {"links": [[1, 0]], "ranks": [], "nodes": [0, 1]}}) == "link 0 to 1"
    assert suspects({"suspects": {"ranks": list(range(20)), "nodes": [0]}}).startswith(
        "rank 0,1,2,3,4,5,6,7,... on node 0"
    )
    assert suspects({"suspects": {"nodes": [2]}}) == "node 2"
    assert suspects({}) == "nobody"


def test_the_status_has_suspicions_before_what_is_not_seen() -> None:
    """A suspicion says where to read on."""
    watched = {"suspicions": [{"incident": 4, "class": "crash", "reason": "r"}], "remarks": ["node 1: blind"]}
    assert _watched(watched) == [(True, "crash: r (`ckptd incidents 4`)"), (False, "not seen: node 1: blind")]
