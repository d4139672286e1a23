"""What daemons say of agents and rounds is checked on the way in; what they say to agents arrives as it was sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptd.ckpt.barred import BARS_MAX, Bar, Barred
from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.model import Version
from ckptd.ckpt.rounds import STATES, Agent, Isolation, Member, Place, Round, Standing, Wish
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.translate import letter_in, letter_out
from ckptd.ckpt.wire.translate_rounds import reason_in, standing_in, standing_out

NODES = 4
AGENT = Agent("a-1", 2, "node-1", 7, 3, 4, 1.5, 8, Place(9, "k", 1, 2), "a worker died", "gone")
REPORT = Report(
    1,
    "b",
    3,
    agent=AGENT,
    wish=Wish(9, "k", "a hang", "given up"),
    isolations=(Isolation(3, 2, True, "slow"),),
    barred=Barred(1, (Bar(2, Version(1, 2), "poison"),)),
)
ROUND = Round(9, "k", 3, (Member(2, "a-1", 2), Member(1, "a-2", 1)), "node-5", 7, "node 2 is lost", "done")
LEDGER = Ledger(
    0, "b", 3, nodes=NODES, reports=(REPORT,), round=ROUND, isolations=REPORT.isolations, barred=REPORT.barred
)


@pytest.mark.parametrize("state", STATES)
def test_a_standing_arrives_as_it_was_sent(state: str) -> None:
    """Whatever the agent is told."""
    for told in (standing_in(pb.TendReply(state=state)), Standing("over", "because", AGENT.place, "h", 7, "failed")):
        assert standing_in(standing_out(told)) == told


def test_a_reason_is_one_printable_line_of_bounded_length() -> None:
    """It goes to terminals and logs."""
    assert reason_in("a\x1b[31m\nb") == "a [31m b"
    assert len(reason_in("x" * 10_000)) == 500


def test_a_standing_that_makes_no_sense_is_refused() -> None:
    """An agent acts on nothing that its daemon can't have meant."""
    for told in (pb.TendReply(state="go"), pb.TendReply(state="member", place=pb.Place(key="k", rank=1, size=1))):
        with pytest.raises(CorruptionError):
            standing_in(told)


def set_agent_name(report: pb.Report) -> None:
    report.agent.name = "a b"


def set_agent_host(report: pb.Report) -> None:
    report.agent.host = "host\n"


def set_agent_port(report: pb.Report) -> None:
    report.agent.port = 1 << 16


def set_agent_nodes(report: pb.Report) -> None:
    report.agent.minimum = 5


def set_agent_last_call(report: pb.Report) -> None:
    report.agent.last_call_s = float("nan")


def set_agent_ended(report: pb.Report) -> None:
    report.agent.ended = "perhaps"


def set_agent_rank(report: pb.Report) -> None:
    report.agent.place.rank = 2


def set_wish_end(report: pb.Report) -> None:
    report.wish.end = "done"


def set_isolated_node(report: pb.Report) -> None:
    report.isolations[0].node = NODES


def set_bars_many(report: pb.Report) -> None:
    report.barred.bars.extend([report.barred.bars[0]] * BARS_MAX)


def set_bar_without_a_reason(report: pb.Report) -> None:
    report.barred.bars[0].reason = ""


def set_bar_step(report: pb.Report) -> None:
    report.barred.bars[0].version.step = 1 << 60


def set_lifted(report: pb.Report) -> None:
    report.barred.lifted = 1 << 60


@pytest.mark.parametrize("spoil", [spoil for name, spoil in sorted(globals().items()) if name.startswith("set_")])
def test_a_report_with_one_hostile_field_is_refused(spoil: Callable[[pb.Report], None]) -> None:
    """Every field is checked, whether the report comes by itself or inside a ledger."""
    letter = pb.Letter.FromString(letter_out(REPORT))
    spoil(letter.report)
    with pytest.raises(PeerError, match="a letter that can't be read"):
        letter_in(letter.SerializeToString(), NODES)
    letter = pb.Letter.FromString(letter_out(LEDGER))
    spoil(letter.ledger.reports[0])
    with pytest.raises(PeerError):
        letter_in(letter.SerializeToString(), NODES)


def no_member(ledger: pb.Ledger) -> None:
    ledger.round.members[0].node = NODES


def no_member_twice(ledger: pb.Ledger) -> None:
    ledger.round.members[0].node = 1


def no_size(ledger: pb.Ledger) -> None:
    ledger.round.size = 1


def no_end(ledger: pb.Ledger) -> None:
    ledger.round.end = "well"


def no_key(ledger: pb.Ledger) -> None:
    ledger.round.key = ""


def no_isolated(ledger: pb.Ledger) -> None:
    ledger.isolations[0].node = NODES


@pytest.mark.parametrize("spoil", [spoil for name, spoil in sorted(globals().items()) if name.startswith("no_")])
def test_a_ledger_with_one_hostile_field_is_refused(spoil: Callable[[pb.Ledger], None]) -> None:
    """Every field is checked."""
    letter = pb.Letter.FromString(letter_out(LEDGER))
    spoil(letter.ledger)
    with pytest.raises(PeerError, match="a letter that can't be read"):
        letter_in(letter.SerializeToString(), NODES)
