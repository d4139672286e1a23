"""The Flight Recorder's status as torch 2.13 writes it, and as nobody should."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ckptd.ckpt.errors import PeerError
from ckptd.daemon.observe.recorder import ENTRIES_MAX, read_status


def entry(seq: int, **changes: Any) -> dict[str, Any]:
    """An entry as torch 2.13's gloo makes it, as far as it is read."""
    return {
        "collective_seq_id": seq, "input_sizes": [[4]], "is_p2p": False, "pg_id": 0, "process_group": ["0", "default_pg"],
        "profiling_name": "gloo:all_reduce", "state": "scheduled", "time_created_ns": 1_795_581_023_784_562_061 + seq,
    } | changes  # fmt: skip


def status(enqueued: str = "8", completed: str = "7", entries: object = (), started: str = "-1") -> bytes:
    groups = {
        "0": {
            "last_completed_collective": completed,
            "last_enqueued_collective": enqueued,
            "last_started_collective": started,
        }
    }
    return json.dumps({"entries": entries, "pg_status": groups, "version": "2.10"}).encode()


def test_the_status_of_a_group() -> None:
    """What was entered and completed; what was started counts where the backend tells it; none is 0."""
    assert read_status(status()).progress == {0: (8, 7)}
    assert read_status(status(started="6")).progress == {0: (6, 6)}
    assert read_status(status("-1", "-1")).progress == {0: (0, 0)}


def test_the_entries_are_told_apart_by_what_they_do() -> None:
    """The same collective on the same sizes has the same number; another size or kind another one."""
    found = read_status(status(entries=[entry(1), entry(2), entry(3, input_sizes=[[5]])])).entries
    assert [e.seq for e in found] == [1, 2, 3]
    assert found[0].op == found[1].op != found[2].op


@pytest.mark.parametrize(
    "wrong",
    [
        {"pg_id": "x"}, {"pg_id": -1}, {"collective_seq_id": 1.5}, {"time_created_ns": None}, {"process_group": ["0"]},
        {"process_group": [0, 1]}, {"profiling_name": 7}, {"is_p2p": True}, {"time_created_ns": 1 << 80},
    ],
    ids=str,
)  # fmt: skip
def test_single_entries_that_make_no_sense_are_left_out(wrong: dict[str, Any]) -> None:
    """The others and the status stand."""
    found = read_status(status(entries=[entry(1), entry(2, **wrong), 17, None]))
    assert [e.seq for e in found.entries] == [1]
    assert found.progress == {0: (8, 7)}


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"pong", b"[]", b"{}", b'{"pg_status": []}', b'{"pg_status": {"x": {}}}', b'{"pg_status": {"0": 7}}',
        status("9" * 30), status("nan"), b"[" * 100_000, b"\x80\x04\x95",
        json.dumps({"pg_status": {str(n): {} for n in range(1000)}}).encode(),
    ],
    ids=range(12),
)  # fmt: skip
def test_nonsense_is_refused(answer: bytes) -> None:
    """Anything else than a status, pickles included, is an error of the peer and nothing worse."""
    with pytest.raises(PeerError):
        read_status(answer)


def test_no_more_entries_are_read_than_the_newest() -> None:
    """A recorder of any size is read in bounded memory."""
    found = read_status(status(entries=[entry(n) for n in range(ENTRIES_MAX + 10)])).entries
    assert len(found) == ENTRIES_MAX
    assert found[-1].seq == ENTRIES_MAX + 9
