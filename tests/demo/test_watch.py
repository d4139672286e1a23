"""Followed files give each completed line once, whatever their writers go through."""

from __future__ import annotations

from pathlib import Path

from ckptd.daemon.demo.stage import Progress
from ckptd.daemon.demo.watch import Event, Watch, parse_line, tail_of


def test_a_line_is_read_when_it_is_complete_and_once(tmp_path: Path) -> None:
    log, watch = tmp_path / "log", Watch()
    watch.follow(log, "daemon")
    assert watch.poll() == [], "the file need not exist yet"
    log.write_text('{"t": 2.0, "event": "ready", "node": 0}\n{"t": 3.0, "eve')
    assert watch.poll() == [Event(2.0, "daemon", "ready", {"node": 0})]
    with log.open("a") as file:
        file.write('nt": "captured"}\n')
    assert watch.poll() == [Event(3.0, "daemon", "captured", {})]
    assert watch.poll() == []
    assert [event.name for event in watch.events] == ["ready", "captured"]


def test_events_of_several_files_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    watch = Watch()
    for name, t in (("a", 2.0), ("b", 1.0)):
        (tmp_path / name).write_text(f'{{"t": {t}, "event": "{name}"}}\n')
        watch.follow(tmp_path / name, "daemon")
    assert [event.name for event in watch.poll()] == ["b", "a"]


def test_a_replaced_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    log, watch = tmp_path / "log", Watch()
    watch.follow(log, "daemon")
    log.write_text('{"t": 1, "event": "first life"}\n')
    watch.poll()
    log.write_text('{"t": 2, "event": "x"}\n')
    watch.follow(log, "daemon")
    assert [event.name for event in watch.poll()] == ["x"]


def test_a_torn_line_is_no_event() -> None:
    """A writer that is killed may leave half a line."""
    for line in (
        b'{"t": 1, "eve',
        b"",
        b"[]",
        b"7",
        b'{"t": "x", "event": "y"}',
        b'{"event": "y"}',
        b'{"t": 1}',
        b"\xff",
    ):
        assert parse_line(line, "trainer") is None


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail_of(log, 2) == []
    log.write_text("one\ntwo\nthree\n")
    assert tail_of(log, 2) == ["two", "three"]


def test_progress_is_what_every_rank_has_done() -> None:
    progress = Progress(2, 24)

    def step(t: float, rank: int, step: int) -> str | None:
        return progress.note(Event(t, "trainer", "step", {"rank": rank, "step": step, "loss": (3.0).hex()}))

    lines = [step(t, rank, t) for t in range(1, 5) for rank in (0, 1)]
    assert progress.step == 4
    assert lines == [None] * 3 + ["step 2 of 24, loss 3.000"] + [None] * 3 + ["step 4 of 24, loss 3.000, 1.00 s a step"]
    progress.note(Event(5, "daemon", "sealed", {"node": 0, "epoch": 1, "step": 3}))
    progress.note(Event(5, "daemon", "persisted", {"node": 0, "epoch": 1, "step": 0}))
    assert progress.line(6) == "step 4 of 24, loss 3.000, sealed to 3"
    progress.note(Event(7, "trainer", "restored", {"rank": 0, "step": 2}))
    assert progress.line(8) == "step 2 of 24, loss 3.000, sealed to 2", "a rollback counts back"
    assert progress.finished == set()
