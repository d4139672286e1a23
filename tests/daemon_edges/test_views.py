"""What the command line shows: computed from the node alone, and the same for people and for programs."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ckptd.ckpt.barred import Barred
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.groups import map_of, parities_of
from ckptd.ckpt.inventory import Held, Ledger, Report
from ckptd.ckpt.manifest import Manifest
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version
from ckptd.ckpt.storage import Step
from ckptd.daemon import tables, views
from ckptd.daemon.events import FoundParity, ParityMade, Scanned
from ckptd.daemon.node import Node
from ckptd.daemon.transfers import Transfers

V1, V2, V3 = Version(1, 10), Version(1, 20), Version(2, 30)
USAGE = {"payload": 3_000_000, "parity": 1_000_000}
NODES = ("127.0.0.1:1", "127.0.0.2:2")
DIGEST = "ab" * 16
MAP = map_of(1, range(2), parity=1, size=8)


def images(node: int) -> tuple[Image, ...]:
    return (Image(node, 1000, DIGEST),)


def table(version: Version) -> Table:
    return Table(version, 2, (Payload(0, images(0)), Payload(1, images(1))), MAP)


def report(node: int, *versions: Version, parity: bool = False) -> Report:
    """Node `node` holds its rank's images of these versions, and the parity of the newest one if `parity`."""
    held = tuple(Held(version, 2, image) for version in versions for image in images(node))
    under = (table(versions[-1]),) if parity else ()
    kept = tuple(parity for made in under for parity in parities_of(made, node))
    return Report(node=node, boot="b", seq=1, ranks=((node, 7),), held=held, parities=kept, tables=under)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Node 0 of two with one parity, before it has heard anything."""
    config = Config(job="j", nodes=NODES, run_dir=tmp_path, segment_dir=tmp_path, secret=b"s" * 16)
    made = Node(config.validate(), "b")
    made.handle(Scanned((), (), 1, None), 0.0)
    return made


def ledger(*reports: Report, lost: tuple[int, ...] = (), sealed: Version | None = None, map_: GroupMap = MAP) -> Ledger:
    return Ledger(
        collector=0,
        boot="b",
        seq=1,
        nodes=2,
        map=map_,
        epoch=2,
        sealed=sealed,
        persisted=V1,
        reports=reports,
        lost=lost,
    )


def stored(version: Version) -> Step:
    return Step(Manifest("j", version, images(0) + images(1)), f"/storage/{version.step}", None)


def printed(rendered: Any) -> str:
    out = StringIO()
    Console(file=out, width=200).print(rendered)
    return out.getvalue()


def test_status_before_anything_was_heard(node: Node) -> None:
    """A daemon that knows nothing yet says that, and is not fine."""
    node.ledger = None
    status = views.status(node, USAGE)
    assert not status["ok"]
    assert not status["ready"]
    assert "no collector has been heard yet" in printed(tables.status(status))


def test_status_of_a_healthy_job(node: Node) -> None:
    """It shows every node, the newest versions of each kind, the losses still tolerated and the memory."""
    node.ledger = ledger(report(0, V1, V2, parity=True), report(1, V1, V2, parity=True), sealed=V2)
    node.slots.skipped = 4
    status = views.status(node, USAGE)
    assert status["ok"]
    assert status["ready"]
    assert [(row["node"], row["state"], row["ranks"], row["images"], row["parities"]) for row in status["nodes"]] == [
        (0, "live", [0], 2, 1),
        (1, "live", [1], 2, 1),
    ]
    assert (status["captured"], status["sealed"], status["persisted"]) == tuple(map(views.named, (V2, V2, V1)))
    assert (status["losses_tolerated"], status["skipped"], status["bytes"], status["parity"]) == (1, 4, USAGE, 1)
    text = printed(tables.status(status))
    for word in (
        "job j, seen from node 0",
        *NODES,
        "20 (epoch 1)",
        "3.0 MB slots, 1.0 MB parity",
        "losses still tolerated  1",
    ):
        assert word in text


def test_status_shows_the_transfers(node: Node) -> None:
    """What was read from and sent to each node, how fast of late, and how many reads failed."""
    node.ledger = ledger(report(0, V1), report(1, V1))
    record = Transfers()
    record.read(1, 3_000_000, 0.001, 0.0125)
    record.failed(1)
    text = printed(tables.status(views.status(node, USAGE) | {"transfers": record.to_json()}))
    for shown in ("3.0 MB", "3.0 GB/s", "12.5 ms", "0 bytes"):
        assert shown in text
    assert "delay" not in printed(tables.status(views.status(node, USAGE) | {"transfers": []}))


def test_status_with_a_lost_node(node: Node) -> None:
    """A lost node is named and makes the status a problem; what it held still counts as far as parity reaches."""
    node.ledger = ledger(report(0, V2, parity=True), lost=(1,), sealed=V2)
    status = views.status(node, USAGE)
    assert not status["ok"]
    assert status["reason"] == "nodes lost: 1"
    assert status["nodes"][1]["state"] == "lost"
    assert status["captured"] == views.named(V2)
    assert status["losses_tolerated"] == 0
    assert "nodes lost: 1" in printed(tables.status(status))
    node.ledger = ledger(report(0, V2), lost=(1,), map_=map_of(2, [0], parity=1, size=8))
    assert views.status(node, USAGE)["nodes"][1]["state"] == "left"
    node.ledger = ledger(report(0, V2))
    assert views.status(node, USAGE)["nodes"][1]["state"] == "unheard"
    assert views.status(node, USAGE)["losses_tolerated"] is None


def test_list_says_where_every_step_is(node: Node) -> None:
    """Each step has its places or the reason why it can't be restored, newest first, and the restart's choice."""
    node.ledger = ledger(report(0, V1, V3, V2, parity=True), report(1, V1), sealed=V2)
    listing = views.recoverable(node, [stored(V1), stored(Version(1, 5))])
    assert [(row["step"], row["where"], row["recoverable"]) for row in listing["steps"]] == [
        (30, [], False),
        (20, ["memory", "parity"], True),
        (10, ["memory", "storage"], True),
        (5, ["storage"], True),
    ]
    assert listing["steps"][0]["reason"] == "only 1 of 2 ranks captured it"
    assert listing["steps"][3]["path"] == "/storage/5"
    assert listing["next_restore"] == views.named(V2)
    assert listing["source"] == "parity"
    assert listing["ok"]
    text = printed(tables.steps(listing))
    assert "a restart would take step 20 (epoch 1): from memory (parity); passed over step 30 (epoch 2)" in text
    assert "memory, storage" in text


def test_list_of_nothing(node: Node) -> None:
    """With nothing to restore the list is empty, not fine, and says that a restart would begin anew."""
    node.ledger = ledger(report(0), report(1))
    listing = views.recoverable(node, [])
    assert (listing["steps"], listing["next_restore"], listing["ok"]) == ([], None, False)
    assert "a fresh start" in printed(tables.steps(listing))
    node.ledger = None
    listing = views.recoverable(node, [stored(V1)])
    assert [row["where"] for row in listing["steps"]] == [["storage"]]
    assert "no collector has been heard yet" in printed(tables.steps(listing))


def test_rebuild_state_names_what_is_missing(node: Node) -> None:
    """What this node should hold of the version that would be restored, and does not, is named."""
    facts = ledger(report(1, V2, parity=True), replace(report(0), held=()), sealed=V2)
    node.ledger = replace(facts, tables=(table(V2),))
    state = views.rebuild_state(node)
    assert state["missing"] == [{"rank": 0, "epoch": 1, "step": 20}]
    assert not state["ok"]
    assert "node 0 still lacks rank 0 of step 20" in printed(tables.rebuilt(state))
    node.ledger = ledger(report(0), report(1))
    assert views.rebuild_state(node)["ok"]
    assert "nothing to rebuild" in printed(tables.rebuilt(views.rebuild_state(node)))
    node.ledger = None
    assert views.rebuild_state(node)["ok"] is False


def test_checks_are_listed() -> None:
    """Every checked thing has a row; damaged ones say why, and the sum says how many."""
    rows: list[dict[str, Any]] = [
        {"kind": "slot", "what": "rank 0", "epoch": 1, "step": 20, "bytes": 1000, "ok": True},
        {"kind": "file", "what": "step-x", "ok": False, "reason": "not JSON"},
    ]
    text = printed(tables.checks({"node": 0, "checked": rows}))
    assert "not JSON" in text
    assert "1 damaged" in text
    assert "all is well" in printed(tables.checks({"node": 0, "checked": rows[:1]}))
    assert "nothing to check" in printed(tables.checks({"node": 0, "checked": []}))


def test_what_comes_from_outside_is_printed_as_it_is() -> None:
    """Brackets in names and reasons are text, not markup that vanishes or fails."""
    rows: list[dict[str, Any]] = [{"kind": "file", "what": "[red]x[/red]", "ok": False, "reason": "found [/] here"}]
    text = printed(tables.checks({"node": 0, "checked": rows}))
    assert "[red]x[/red]" in text
    assert "found [/] here" in text
    listing: dict[str, Any] = {"job": "j", "steps": [], "next_restore": None, "reason": "because [bold]"}
    assert "because [bold]" in printed(tables.steps(listing))


def test_found_parities_are_shown(node: Node) -> None:
    """A parity that was found at the start is in the node's own report."""
    (parity,) = parities_of(table(V2), 0)
    node.handle(Scanned((), (FoundParity(parity, table(V2)),), 1, None), 1.0)
    assert (node.report().parities, node.report().tables) == ((parity,), (table(V2),))


def test_what_the_parities_took(node: Node) -> None:
    """Beside the lag stand the times of the last parities, what was read for them and what was spared."""
    node.ledger = ledger(report(0, V1, V2), report(1, V1, V2), sealed=V1)
    assert views.status(node, USAGE)["sealing"] == {"lag_s": None}
    made = parities_of(table(V2), 0)
    node.duties._protecting.start(V2)
    node.duties.parity_made(ParityMade(table(V2), made, "", 0.25, 0.125, 4000, 3000, 2000), 1.0)
    node.sealing_lag_s = 0.5
    content = views.status(node, USAGE)
    took = {"waited_s": 0.25, "coded_s": 0.125, "read_bytes": 4000, "copied_bytes": 3000, "updated_bytes": 2000}
    assert content["sealing"] == {"lag_s": 0.5, **took}
    said = (
        "0.500 s (waited 0.250 s for bytes, coded 0.125 s; 4.0 kB read, of the parity 3.0 kB copied and 2.0 kB updated)"
    )
    assert said in printed(tables.status(content))


def test_what_is_barred_is_shown_with_its_reason_and_not_restored(node: Node) -> None:
    """In the status, in the list, and in why a restart takes another one. What is safe is shown as ever."""
    whole = ledger(report(0, V1, V2, parity=True), report(1, V1, V2, parity=True), sealed=V2)
    node.ledger = replace(whole, barred=Barred().adding(V2, "trainers crashed 2 times at step 21 after it"))
    status = views.status(node, USAGE)
    why = "trainers crashed 2 times at step 21 after it"
    assert status["barred"] == [{"epoch": 1, "step": 20, "reason": why, "alone": False}]
    assert (status["captured"], status["losses_tolerated"]) == (views.named(V2), 1)
    shown = printed(tables.status(status))
    assert "step 20 on, to epoch 1, is barred  trainers crashed 2 times at step 21 after it" in shown
    listing = views.recoverable(node, ())
    assert [(row["step"], row["recoverable"], bool(row["barred"])) for row in listing["steps"]] == [
        (20, True, True),
        (10, True, False),
    ]
    assert listing["next_restore"] == views.named(V1)
    shown = printed(tables.steps(listing))
    assert "barred: trainers crashed 2 times" in shown
    node.ledger = replace(whole, barred=Barred().adding(V2, "damaged", alone=True))
    assert "step 20 of epoch 1 is barred  damaged" in printed(tables.status(views.status(node, USAGE)))
    assert "passed over step 20 (epoch 1): trainers crashed 2 times" in shown


def test_a_step_that_is_asked_for_is_what_is_left_when_all_newer_ones_are_barred(node: Node) -> None:
    """Also those of lives that only storage knows. What can't be restored is refused by name."""
    node.ledger = ledger(report(0, V1, V2, parity=True), report(1, V1, V2, parity=True))
    assert views.bar_after(node, [stored(Version(7, 30))], 20) == Version(7, 21)
    assert views.bar_after(node, [stored(Version(7, 30))], 30) == Version(7, 31)
    for step in (15, 5):
        with pytest.raises(UsageError, match=f"step {step} can't be restored; `ckptd list` shows"):
            views.bar_after(node, [stored(Version(7, 30))], step)
    node.ledger = None
    with pytest.raises(UsageError, match="no collector was heard"):
        views.bar_after(node, [], 10)
