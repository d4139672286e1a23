"""Letters between daemons: what is sent arrives equal, and nothing that no daemon would send becomes a value."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.values import NODES, letters, versions

from ckptd.ckpt.barred import Bar, Barred
from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.inventory import Captures, Held, Ledger, Parity, Part, Report
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version
from ckptd.ckpt.rounds import Agent, Isolation, Member, Place, Round, Wish
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.translate import letter_in, letter_out, version_in, version_out

V = Version(1, 2)
IMAGE = Image(0, 100, "0123456789abcdef" * 2)
MAP = GroupMap(3, 1, ((0, 2), (1,)), ((0, "rack-7"), (2, "rack-8")))
TABLE = Table(V, 2, (Payload(0, (IMAGE,)), Payload(1, (Image(1, 50, IMAGE.digest),))), MAP)
REPORT = Report(
    node=1,
    boot="b",
    seq=3,
    data_port=4,
    epoch=5,
    ranks=((0, 77),),
    captures=(Captures(0, 1, V, (V,), 5),),
    held=(Held(V, 2, IMAGE, "peer"),),
    parities=(Parity(V, TABLE.name, 0, 1, 0),),
    tables=(TABLE,),
    part=Part(V, (IMAGE,)),
    sealed=Version(1, 3),
    persisted=Version(1, 4),
    questions=6,
    wanted=Version(1, 5),
    domain="rack-9",
    scanned=False,
    agent=Agent("a-1", 2, "node-1", 7, 3, 4, 1.5, 8, Place(9, "k", 1, 2), "a worker died", "gone"),
    wish=Wish(9, "k", "a hang", "given up"),
    isolations=(Isolation(4, 2, True, "slow"),),
    barred=Barred(2, (Bar(3, V, "poison", alone=True),)),
)
LEDGER = Ledger(
    collector=2,
    boot="b",
    seq=3,
    nodes=NODES,
    map=MAP,
    epoch=5,
    sealed=V,
    shielded=Version(1, 6),
    persisted=Version(1, 3),
    persist=Version(1, 4),
    protect=Version(1, 5),
    tables=(TABLE,),
    reports=(REPORT,),
    lost=(2,),
    round=Round(9, "k", 3, (Member(5, "a-1", 2),), "node-5", 7, "node 2 is lost", "done"),
    isolations=(Isolation(5, 1, True, "bad memory"),),
    barred=Barred(1, (Bar(4, V, "asked for", alone=True),)),
)


@pytest.mark.parametrize("letter", [REPORT, LEDGER])
def test_no_field_is_forgotten(letter: Report | Ledger) -> None:
    """A letter in which every field, also of what it is made of, has another value than its default arrives as sent."""
    for part in (letter, TABLE, MAP, *letter_parts(letter)):
        for field in fields(part):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            assert getattr(part, field.name) != default, f"{type(part).__name__}.{field.name}"
    assert letter_in(letter_out(letter), NODES) == letter


def letter_parts(letter: Report | Ledger) -> list[Any]:
    """What a letter's reports are made of."""
    reports = letter.reports if isinstance(letter, Ledger) else (letter,)
    parts: list[Any] = [
        part for report in reports for part in (*report.held, *report.parities, report.part, *report.captures)
    ]
    parts += [part for report in reports for part in (report.agent, report.wish, *report.isolations)]
    parts += [part for report in reports for part in (report.barred, *report.barred.bars)]
    parts += [report.agent.place for report in reports if report.agent]
    if isinstance(letter, Ledger) and letter.round:
        parts += [letter.round, *letter.round.members, *letter.isolations, letter.barred, *letter.barred.bars]
    return [part for part in parts if part is not None]


@settings(max_examples=20)
@given(letters)
def test_a_letter_arrives_as_it_was_sent(letter: Report | Ledger) -> None:
    """Every report and every ledger comes back equal from its bytes."""
    assert letter_in(letter_out(letter), NODES) == letter


@given(versions)
def test_versions_survive(version: Version) -> None:
    """A version comes back equal; no version stays none."""
    message = version_out(version)
    assert message is not None
    assert version_in(message) == version
    assert version_out(None) is None


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    """Any bytes are a letter or a PeerError, nothing else."""
    with contextlib.suppress(PeerError):
        letter_in(data, NODES)


@settings(max_examples=20)
@given(letters, st.data())
def test_a_spoiled_letter_is_read_or_refused(letter: Report | Ledger, data: st.DataObject) -> None:
    """A good letter with a byte changed, or cut short, is a letter or a PeerError, nothing else."""
    body = bytearray(letter_out(letter))
    where = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        body[where] = data.draw(st.integers(0, 255))
    else:
        del body[where:]
    with contextlib.suppress(PeerError):
        letter_in(bytes(body), NODES)


def set_held_origin(report: pb.Report) -> None:
    report.held[0].origin = "guessed"


def set_held_rank(report: pb.Report) -> None:
    report.held[0].image.rank = 2


def set_held_world(report: pb.Report) -> None:
    report.held[0].world = 1 << 20


def set_held_step(report: pb.Report) -> None:
    report.held[0].version.step = 1 << 53


def set_digest(report: pb.Report) -> None:
    report.held[0].image.digest = "x" * 32


def set_short_digest(report: pb.Report) -> None:
    report.held[0].image.digest = "a" * 31


def set_size(report: pb.Report) -> None:
    report.held[0].image.size = 1 << 46


def set_part_digest(report: pb.Report) -> None:
    report.part.images[0].digest = ""


def set_table_node(report: pb.Report) -> None:
    report.tables[0].payloads[1].node = NODES


def set_table_same_node(report: pb.Report) -> None:
    report.tables[0].payloads[1].node = 0


def set_table_same_rank(report: pb.Report) -> None:
    report.tables[0].payloads[1].images[0].rank = 0


def set_table_rank(report: pb.Report) -> None:
    report.tables[0].payloads[1].images[0].rank = 2


def set_table_world(report: pb.Report) -> None:
    report.tables[0].world = (1 << 32) - 1


def set_table_group_node(report: pb.Report) -> None:
    report.tables[0].map.groups[1].nodes.append(NODES)


def set_table_group_same_node(report: pb.Report) -> None:
    report.tables[0].map.groups[1].nodes.append(0)


def set_table_empty_group(report: pb.Report) -> None:
    report.tables[0].map.groups.append(pb.Nodes())


def set_table_large_group(report: pb.Report) -> None:
    report.tables[0].map.groups.append(pb.Nodes(nodes=range(NODES, NODES + 257)))


def set_table_map_number(report: pb.Report) -> None:
    report.tables[0].map.number = 1 << 53


def set_table_domain(report: pb.Report) -> None:
    report.tables[0].map.domains[0].name = "a\x1b[31m"


def set_table_no_domain(report: pb.Report) -> None:
    report.tables[0].map.domains[0].name = ""


def set_table_domain_node(report: pb.Report) -> None:
    report.tables[0].map.domains[0].node = 1 << 20


def set_parity_table(report: pb.Report) -> None:
    report.parities[0].table = "x" * 32


def set_parity_no_table(report: pb.Report) -> None:
    report.parities[0].table = ""


def set_domain(report: pb.Report) -> None:
    report.domain = "a b"


def set_node(report: pb.Report) -> None:
    report.node = NODES


def set_boot(report: pb.Report) -> None:
    report.boot = ""


def set_long_boot(report: pb.Report) -> None:
    report.boot = "b" * 65


def set_capturing_rank(report: pb.Report) -> None:
    report.captures[0].rank = 1 << 20


def set_unfinished_step(report: pb.Report) -> None:
    report.captures[0].unfinished[0].step = 1 << 53


def set_persisted(report: pb.Report) -> None:
    report.persisted.step = 1 << 53


def set_seq(report: pb.Report) -> None:
    report.seq = (1 << 64) - 1


def set_port(report: pb.Report) -> None:
    report.data_port = 65536


def set_epoch(report: pb.Report) -> None:
    report.epoch = 1 << 53


def set_rank(report: pb.Report) -> None:
    report.ranks[0].rank = 1 << 20


def set_pid(report: pb.Report) -> None:
    report.ranks[0].pid = 1 << 31


def set_sealed(report: pb.Report) -> None:
    report.sealed.epoch = 1 << 60


SPOIL_REPORT = [spoil for name, spoil in sorted(globals().items()) if name.startswith("set_")]


@pytest.mark.parametrize("spoil", SPOIL_REPORT)
def test_a_report_with_one_hostile_field_is_refused(spoil: Callable[[pb.Report], None]) -> None:
    """Every field of a report is checked, whether it comes by itself or inside a ledger."""
    letter = pb.Letter.FromString(letter_out(REPORT))
    spoil(letter.report)
    with pytest.raises(PeerError, match="a letter that can't be read"):
        letter_in(letter.SerializeToString(), NODES)
    letter = pb.Letter.FromString(letter_out(LEDGER))
    spoil(letter.ledger.reports[0])
    with pytest.raises(PeerError):
        letter_in(letter.SerializeToString(), NODES)


def no_collector(ledger: pb.Ledger) -> None:
    ledger.collector = NODES


def no_boot(ledger: pb.Ledger) -> None:
    ledger.boot = ""


def no_seq(ledger: pb.Ledger) -> None:
    ledger.seq = 1 << 53


def no_epoch(ledger: pb.Ledger) -> None:
    ledger.epoch = 1 << 53


def no_version(ledger: pb.Ledger) -> None:
    ledger.persist.step = 1 << 53


def no_shielded(ledger: pb.Ledger) -> None:
    ledger.shielded.epoch = 1 << 53


def no_nodes(ledger: pb.Ledger) -> None:
    ledger.nodes = 0


def no_other_job(ledger: pb.Ledger) -> None:
    ledger.nodes = NODES + 1


def no_map_node(ledger: pb.Ledger) -> None:
    ledger.map.groups[0].nodes.append(NODES)


def no_map_twice(ledger: pb.Ledger) -> None:
    ledger.map.groups[0].nodes.append(0)


def no_lost(ledger: pb.Ledger) -> None:
    ledger.lost.append(NODES)


def no_table(ledger: pb.Ledger) -> None:
    ledger.tables[0].payloads[0].node = NODES


def no_double(ledger: pb.Ledger) -> None:
    ledger.reports.append(ledger.reports[0])


@pytest.mark.parametrize("spoil", [spoil for name, spoil in sorted(globals().items()) if name.startswith("no_")])
def test_a_ledger_with_one_hostile_field_is_refused(spoil: Callable[[pb.Ledger], None]) -> None:
    """Every field of a ledger is checked."""
    letter = pb.Letter.FromString(letter_out(LEDGER))
    spoil(letter.ledger)
    with pytest.raises(PeerError, match="a letter that can't be read"):
        letter_in(letter.SerializeToString(), NODES)


def test_an_empty_letter_is_refused() -> None:
    """A letter that is neither a report nor a ledger is none."""
    for body in (b"", pb.Letter(report=pb.Report()).SerializeToString()):
        with pytest.raises(PeerError):
            letter_in(body, NODES)
