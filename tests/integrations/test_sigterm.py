"""SIGTERM with a grace time: one last snapshot, and then what the signal did before."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType

import pytest
from tests.cluster import until
from tests.fakes import FakeChannel
from tests.runs import Run

from ckptd.ckpt.errors import DaemonUnavailable, UsageError
from ckptd.ckpt.model import Version
from ckptd.integrations import window
from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.sigterm import Sigterm


def idle(ready: Event) -> None:
    """What a worker does that nobody ends."""
    ready.set()  # a signal that came before the interpreter was ready in its new process would be lost
    while True:
        time.sleep(0.01)


def tell_often(pid: int) -> None:
    for _ in range(3000):
        os.kill(pid, signal.SIGTERM)


class Before:
    """A handler that was there before; it only counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.calls += 1


@pytest.fixture
def before() -> Iterator[Before]:
    handler = Before()
    old = signal.signal(signal.SIGTERM, handler)
    yield handler
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.signal(signal.SIGTERM, old)


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


def test_the_last_snapshot_is_taken_persisted_and_waited_for(
    channel: FakeChannel, before: Before, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it is not due; then the old handler has its way, and the Checkpointer is closed."""
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, every=100, sigterm_grace_s=60.0, **run.objects)
    ck.restore()
    for step in (1, 2):
        run.update()
        ck.step(step)
    signal.raise_signal(signal.SIGTERM)
    assert (before.calls, channel.recorded()) == (0, [])
    run.update()
    with caplog.at_level(logging.WARNING, "ckptd"):
        ck.step(3)
    assert channel.recorded() == [Version(1, 3)]
    assert channel.calls[-4:] == ["commit", "persist", "wait", "close"]
    assert "SIGTERM: step 3 (epoch 1) is persisted" in caplog.text
    assert before.calls == 1


def test_a_due_step_is_captured_once(channel: FakeChannel, before: Before) -> None:
    """The last snapshot of a step that is due anyway is that one."""
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, sigterm_grace_s=60.0, **run.objects)
    ck.restore()
    run.update()
    signal.raise_signal(signal.SIGTERM)
    ck.step(1)
    assert (channel.calls.count("begin"), ck.stats.failed, before.calls) == (1, 0, 1)


def test_a_full_daemon_is_waited_for(channel: FakeChannel, before: Before) -> None:
    """The last snapshot waits for a slot, whatever `when_full` says: there will be no other one."""
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, sigterm_grace_s=60.0, **run.objects)
    ck.restore()
    channel.full_s = 5.0
    run.update()
    ck.step(1)
    signal.raise_signal(signal.SIGTERM)
    run.update()
    ck.step(2)
    assert channel.recorded() == [Version(1, 2)]
    assert (ck.stats.skipped, ck.stats.waited, ck.stats.waited_s) == (1, 1, 5.0)


def test_a_daemon_that_is_gone_does_not_keep_the_trainer(channel: FakeChannel, before: Before) -> None:
    """It leaves all the same, and the failure is counted."""
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, sigterm_grace_s=60.0, **run.objects)
    ck.restore()
    channel.fail["persist"] = DaemonUnavailable("gone")
    run.update()
    signal.raise_signal(signal.SIGTERM)
    ck.step(1)
    assert (before.calls, ck.stats.failed) == (1, 1)


def test_a_failure_that_is_raised_does_not_keep_the_trainer(channel: FakeChannel, before: Before) -> None:
    """With on_error="raise" too, the old handler has its way, and the failure is raised then."""
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, on_error="raise", sigterm_grace_s=60.0, **run.objects)
    ck.restore()
    channel.fail["persist"] = DaemonUnavailable("gone")
    run.update()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(DaemonUnavailable, match="gone"):
        ck.step(1)
    assert before.calls == 1


def test_a_wait_for_the_daemon_ends_with_the_grace_time(
    channel: FakeChannel, before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that hangs costs no more than the time that there is."""
    monkeypatch.setattr(window, "_PATIENCE_S", 0.01)
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, sigterm_grace_s=0.05, **run.objects)
    ck.restore()
    run.update()
    channel.hang = threading.Event()
    signal.raise_signal(signal.SIGTERM)
    ck.step(1)
    channel.hang.set()
    ck.close()
    assert before.calls == 1


def test_signals_at_once_are_one_word(channel: FakeChannel, before: Before) -> None:
    """A scheduler tells the process and its group, and torchrun passes it on: the last snapshot is taken all the same."""
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, every=100, sigterm_grace_s=60.0, **run.objects)
    ck.restore()
    run.update()
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert before.calls == 0
    ck.step(1)
    assert (channel.recorded(), before.calls) == ([Version(1, 1)], 1)


def test_a_handler_that_interrupts_itself_does_not_wait_for_itself(before: Before) -> None:
    """Thousands of signals from another process end in the handler from before, and not in a lock."""
    listening = Sigterm(0.2)
    context = multiprocessing.get_context("spawn")
    sender = context.Process(target=tell_often, args=(os.getpid(),))
    sender.start()
    until(lambda: before.calls, "the old handler")
    sender.join(20.0)
    assert sender.exitcode == 0
    assert not listening.came


def test_a_later_signal_is_not_waited_with(
    channel: FakeChannel, before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody insists: the old handler is called at once, and is the handler again."""
    monkeypatch.setattr("ckptd.integrations.sigterm.ECHO_S", 0.0)
    listening = Sigterm(60.0)
    signal.raise_signal(signal.SIGTERM)
    assert (before.calls, listening.came) == (0, True)
    signal.raise_signal(signal.SIGTERM)
    assert (before.calls, listening.came) == (1, False)


def test_the_grace_time_ends_by_itself(before: Before) -> None:
    """A training that comes to no step does not outstay its time."""
    listening = Sigterm(0.01)
    signal.raise_signal(signal.SIGTERM)
    until(lambda: before.calls, "the old handler")
    assert not listening.came


def test_a_forked_process_is_not_kept_alive(before: Before) -> None:
    """A worker that was forked after the handler was set, and is told to end, ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    listening = Sigterm(60.0)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=idle, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(20.0)
    worker.terminate()
    worker.join(20.0)
    listening.close()
    signal.signal(signal.SIGTERM, before)
    assert worker.exitcode == -signal.SIGTERM
    assert not listening.came


def test_without_a_signal_nothing_is_left_behind(channel: FakeChannel, before: Before) -> None:
    """Closing puts the old handler back; so does the end of the block."""
    with Checkpointer(job="job", channel=channel, sigterm_grace_s=5.0, **Run.new().objects):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_somebody_elses_handler_is_left_alone(before: Before) -> None:
    """A handler that was set later is not replaced by the one from before."""
    listening, later = Sigterm(5.0), Before()
    signal.signal(signal.SIGTERM, later)
    listening.close()
    assert signal.getsignal(signal.SIGTERM) is later
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("grace_s", [0.0, -1.0, 3601.0, float("nan"), True, "30"])
def test_a_grace_time_that_makes_no_sense(before: Before, grace_s: float) -> None:
    """Nothing is installed then."""
    with pytest.raises(UsageError, match="found sigterm_grace_s="):
        Sigterm(grace_s)


def test_only_the_main_thread_can_listen(before: Before) -> None:
    """Python allows no handlers elsewhere: the error says so."""
    caught: list[Exception] = []

    def make() -> None:
        try:
            Sigterm(5.0)
        except UsageError as error:
            caught.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert "make the Checkpointer there" in str(caught[0])
