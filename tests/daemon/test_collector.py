"""The collector: what follows from the reports, however late, often or out of order they come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptd.ckpt.config import Config, Timing
from ckptd.ckpt.groups import map_of, parities_of
from ckptd.ckpt.inventory import Held, Ledger, Part, Report
from ckptd.ckpt.model import Image, Payload, Table, Version
from ckptd.daemon.collector import Collector

NODES = 3
MAP = map_of(1, range(NODES), parity=1, size=8)
TIMING = Timing(report_every_s=0.25, lost_after_s=2.0, settle_s=10.0)


def collector(node: int = 0, **settings: Any) -> Collector:
    addresses = tuple(f"host:{index + 1}" for index in range(NODES))
    where = Path("/nowhere")
    config = Config(
        node=node, nodes=addresses, secret=b"s" * 16, run_dir=where, segment_dir=where, storage=where, timing=TIMING,
        **settings,
    )  # fmt: skip
    return Collector(config, f"boot-{node}")


def image(rank: int) -> Image:
    return Image(rank, 100, f"{rank:032x}")


def table(version: Version) -> Table:
    return Table(version, NODES, tuple(Payload(node, (image(node),)) for node in range(NODES)), MAP)


def report(node: int, *held: Version, parities: tuple[Version, ...] = (), seq: int = 1, boot: str = "a") -> Report:
    """Node `node` has captured these versions, and keeps its parity of those."""
    return Report(
        node,
        boot,
        seq,
        held=tuple(Held(version, NODES, image(node)) for version in held),
        parities=tuple(parity for version in parities for parity in parities_of(table(version), node)),
        tables=tuple(table(version) for version in parities),
    )


def told(subject: Collector, *reports: Report, now: float = 0.0) -> Ledger:
    """The collector leads, and takes in these reports."""
    subject.ledger(now)
    for item in reports:
        subject.observe(item, now)
    return subject.ledger(now)


V1, V2, V3 = Version(1, 1), Version(1, 2), Version(1, 3)


def test_sealed_needs_all_images_and_all_parities() -> None:
    """Not before the last rank, and not before the last parity; then at once."""
    subject = collector()
    assert told(subject, *(report(n, V1, seq=1) for n in (0, 1))).protect is None
    captured = told(subject, *(report(n, V1, seq=2) for n in range(3)))
    assert (captured.protect, captured.sealed) == (V1, None)
    assert told(subject, *(report(n, V1, parities=(V1,), seq=3) for n in (0, 1))).sealed is None
    assert told(subject, report(2, V1, parities=(V1,), seq=3)).sealed == V1


def test_an_image_that_is_gone_keeps_its_version_from_being_sealed() -> None:
    """With all parities placed it could be decoded, but one of the losses that are promised would be spent already."""
    subject = collector()
    ledger = told(subject, *(report(n, V1, parities=(V1,)) for n in (0, 1)), report(2, parities=(V1,)))
    assert ledger.sealed is None
    assert told(subject, report(2, V1, parities=(V1,), seq=2)).sealed == V1


def test_what_is_being_protected_is_finished_first() -> None:
    """Newer snapshots that come faster than parity is made do not keep everything from being sealed."""
    subject = collector()
    assert told(subject, *(report(n, V1) for n in range(3))).protect == V1
    assert told(subject, *(report(n, V1, V2, seq=2) for n in range(3))).protect == V1
    assert told(subject, *(report(n, V1, V2, parities=(V1,), seq=3) for n in range(3))).protect == V2


def test_the_target_is_among_the_tables_however_many_versions_there_are() -> None:
    """Many slots hold many versions: what is to be protected must not fall off the list."""
    subject = collector()
    versions = [Version(1, step) for step in range(1, 10)]
    told(subject, *(report(n, versions[0]) for n in range(3)))
    ledger = told(subject, *(report(n, *versions, seq=2) for n in range(3)))
    assert ledger.protect == versions[0]
    assert ledger.table(versions[0]) is not None


def test_a_replaced_node_makes_the_sealed_version_due_for_protection_again() -> None:
    """Once its image is rebuilt; sealed itself never goes back."""
    subject = collector()
    assert told(subject, *(report(n, V1, parities=(V1,)) for n in range(3))).sealed == V1
    empty = told(subject, report(2, boot="b"))
    assert (empty.sealed, empty.protect) == (V1, None)
    assert told(subject, report(2, V1, boot="b", seq=2)).protect == V1


def test_late_and_repeated_reports_change_nothing() -> None:
    """An older report of the same run says nothing, one of a run that was replaced does not come back for good."""
    subject = collector()
    told(subject, report(1, V1, seq=5, boot="a"), report(1, seq=1, boot="b"))
    assert not subject.observe(report(1, V1, seq=4, boot="a"), 0.0)
    assert not subject.observe(report(1, V1, seq=5, boot="a"), 0.0)
    ledger = told(subject, report(0))
    assert ledger.reports[1] == report(1, seq=1, boot="b")


def test_silence_is_loss_and_a_word_is_return() -> None:
    """After `lost_after_s` without a report a node is lost; one never heard has `settle_s` to start."""
    subject = collector()
    told(subject, report(0), report(1))
    assert told(subject, report(0, seq=2), now=2.5).lost == (1,)
    assert told(subject, report(0, seq=3), report(1, seq=2), now=3.0).lost == ()
    assert 2 in told(subject, report(0, seq=4), now=10.5).lost


def test_a_successor_knows_who_is_gone_and_waits_for_the_others() -> None:
    """The collector it followed is lost at once; the rest get a moment to report; nothing announced is forgotten."""
    first, second = collector(0), collector(1)
    ledger = told(first, *(report(n, V1, parities=(V1,)) for n in range(3)))
    second.follow(ledger, 0.0)
    taken_over = told(second, report(1, V1, parities=(V1,)), now=5.0)
    assert taken_over.lost == (0,)
    assert [item.node for item in taken_over.reports] == [1]
    assert taken_over.sealed == V1
    assert told(second, report(1, V1, seq=2), now=7.5).lost == (0, 2)


def test_a_collector_that_leads_again_forgets_old_reports() -> None:
    """What it heard when it led before would make everybody look lost, and a decision wrong."""
    first, second = collector(0), collector(1)
    told(second, *(report(n, V1) for n in (1, 2)), now=0.0)
    second.follow(told(first, *(report(n, V1) for n in range(3)), now=50.0), 50.0)
    again = told(second, report(1, V1, seq=2), now=100.0)
    assert again.lost == (0,)
    assert [item.node for item in again.reports] == [1]


def sealed_reports(*versions: Version, seq: int, part: Version | None = None) -> list[Report]:
    reports = [report(n, *versions, parities=versions, seq=seq) for n in range(3)]
    return [replace(r, part=Part(part, (image(r.node),)) if part else None) for r in reports]


def test_the_first_sealed_step_at_or_after_every_multiple_is_persisted() -> None:
    """With an interval of 2: not step 1; step 3, if 2 never was sealed; not again before 4."""
    subject = collector(persist_every=2)
    assert told(subject, *sealed_reports(V1, seq=1)).persist is None
    assert told(subject, *sealed_reports(V3, seq=2)).persist == V3
    subject.published(V3)
    assert told(subject, *sealed_reports(V3, seq=3)).persist is None
    assert told(subject, *sealed_reports(Version(1, 4), seq=4)).persist == Version(1, 4)


def test_a_slow_storage_finishes_what_it_began() -> None:
    """A newer sealed step does not take the place of one that is being written, or nothing would ever be persisted."""
    subject = collector(persist_every=1)
    assert told(subject, *sealed_reports(V1, seq=1)).persist == V1
    ledger = told(subject, *sealed_reports(V1, V2, seq=2))
    assert (ledger.sealed, ledger.persist) == (V2, V1)
    assert subject.ready_to_publish(ledger) is None
    written = told(subject, *sealed_reports(V2, seq=3, part=V1))
    assert subject.ready_to_publish(written) == table(V1)


def test_a_step_that_can_not_be_persisted_any_more_is_given_up() -> None:
    """An image that is neither in a slot nor on storage ends it, and the newest sealed step is written instead."""
    subject = collector(persist_every=1)
    told(subject, *sealed_reports(V1, seq=1))
    assert told(subject, *sealed_reports(V2, seq=2)).persist == V2


def test_a_persisted_step_stays_persisted_for_a_successor() -> None:
    """What any node knows to be persisted is not written again by a collector that has just started."""
    subject = collector(persist_every=1)
    reports = [replace(item, persisted=V1) for item in sealed_reports(V1, seq=1)]
    ledger = told(subject, *reports)
    assert (ledger.persisted, ledger.persist) == (V1, None)


def test_a_time_between_persisted_steps_counts_from_the_beginning_of_the_last() -> None:
    """The first sealed step at once, the next when the time is over, and the newest one then."""
    subject = collector(persist_every="10s")
    assert told(subject, *sealed_reports(V1, seq=1), now=5.0).persist == V1
    subject.published(V1)
    assert told(subject, *sealed_reports(V2, seq=2), now=6.0).persist is None
    assert told(subject, *sealed_reports(V3, seq=3), now=14.9).persist is None
    assert told(subject, *sealed_reports(V3, seq=4), now=15.0).persist == V3


def test_a_successor_keeps_the_time_between_persisted_steps() -> None:
    """Who took over knows when the last one was begun, as the ledgers said so."""
    first, second = collector(0, persist_every="10s"), collector(1, persist_every="10s")
    second.follow(told(first, *sealed_reports(V1, seq=1), now=1.0), 1.0)
    first.published(V1)
    second.follow(told(first, *sealed_reports(V1, V2, seq=2), now=2.0), 2.0)
    assert told(second, *sealed_reports(V2, seq=3), now=9.0).persist is None
    assert told(second, *sealed_reports(V2, seq=4), now=11.0).persist == V2


def test_auto_leaves_storage_time_to_breathe() -> None:
    """After a step that took 100 s to be written the next one comes 200 s later at the earliest, after a quick one 60 s."""
    for took_s, pause_s in ((100.0, 200.0), (0.1, 60.0)):
        subject = collector(persist_every="auto", mtbf_node_s=60.0)
        assert told(subject, *sealed_reports(V1, seq=1)).persist == V1
        subject.published(V1)
        assert told(subject, *sealed_reports(V2, seq=2), now=took_s).persist is None
        assert told(subject, *sealed_reports(V2, seq=3), now=pause_s - 0.1).persist is None
        assert told(subject, *sealed_reports(V2, seq=4), now=pause_s).persist == V2


def test_what_a_trainer_wants_on_storage_is_due_at_once() -> None:
    """As soon as that step or a newer one is sealed, though nothing is persisted otherwise; and only once."""
    subject = collector()
    wanting = [replace(item, wanted=V2) for item in sealed_reports(V1, seq=1)]
    assert told(subject, *wanting).persist is None
    wanting = [replace(item, wanted=V2 if item.node == 1 else None) for item in sealed_reports(V1, V3, seq=2)]
    assert told(subject, *wanting).persist == V3
    subject.published(V3)
    later = [replace(item, wanted=V2) for item in sealed_reports(V3, Version(1, 4), seq=3)]
    assert told(subject, *later).persist is None
