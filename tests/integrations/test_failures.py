"""What goes wrong around a Checkpointer is counted and said, and does not stop the training."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import FakeChannel, bits
from tests.runs import Run
from torch import nn

from ckptd.ckpt.errors import (
    CkptdError,
    DaemonUnavailable,
    MemoryBudgetError,
    StaleStepError,
    StateError,
    Unrecoverable,
    UsageError,
)
from ckptd.ckpt.model import Version
from ckptd.integrations import window as module
from ckptd.integrations.checkpointer import Checkpointer


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


def after(channel: FakeChannel) -> FakeChannel:
    """The channel of a process that is started later."""
    return FakeChannel(channel.directory)


@pytest.mark.parametrize("method", ["reserve", "begin", "commit"])
@pytest.mark.parametrize("error", [DaemonUnavailable("gone"), MemoryBudgetError("full")])
def test_failures_are_counted_and_said_once(
    channel: FakeChannel, caplog: pytest.LogCaptureFixture, method: str, error: CkptdError
) -> None:
    """Training goes on; each cause is logged once, counted, and shown by `stats`; then it works again."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.restore()
        caplog.clear()
        channel.fail[method] = error
        for step in (1, 2, 3):
            run.update()
            ck.step(step)
        assert ck.wait() == "none"
        assert ck.stats.failed == 3
        assert str(error) in str(ck.stats.last_error)
        assert len(caplog.records) == 1
        channel.fail.clear()
        run.update()
        ck.step(4)
        assert ck.wait() == "sealed"
        assert ck.stats.captured == 1


def test_a_rank_that_fails_counts_on(channel: FakeChannel) -> None:
    """A call whose window failed is a call all the same: else this rank would agree about other calls than the others."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, every="1h", **run.objects) as ck:
        ck.restore()
        channel.fail["begin"] = DaemonUnavailable("gone")
        for step in (1, 2, 3):
            ck.step(step)
        ck.step("4")  # type: ignore[arg-type]
        assert (ck._rounds._calls, ck.stats.failed) == (3, 2)


def test_on_error_raise_raises_at_the_next_step(channel: FakeChannel) -> None:
    """What failed in the background is raised once by the next `step`, `wait` or `close`; never by the hook."""
    run = Run.new()
    ck = Checkpointer(job="job", channel=channel, on_error="raise", **run.objects)
    ck.restore()
    run.update()
    channel.fail["begin"] = DaemonUnavailable("gone")
    ck.step(1)
    run.update()  # the fence finds the failure and keeps it
    with pytest.raises(DaemonUnavailable, match="gone"):
        ck.step(2)
    channel.fail["commit"] = channel.fail.pop("begin")
    with pytest.raises(DaemonUnavailable, match="gone"):
        ck.wait()  # commits step 2
    channel.fail.clear()
    with channel.held_up():
        ck.step(3)
        run.model.get_parameter("0.weight").data.add_(1.0)
    with pytest.raises(StateError, match=r"model\.0\.weight; they are copied at once from now on"):
        ck.close()


def test_full_slots_skip_a_snapshot(channel: FakeChannel, caplog: pytest.LogCaptureFixture) -> None:
    """No free slot is no error: the snapshot is skipped and counted, also with on_error="raise"."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, on_error="raise", **run.objects) as ck:
        channel.full = True
        for step in (1, 2):
            run.update()
            ck.step(step)
        ck.wait()
        assert (ck.stats.skipped, ck.stats.failed, ck.stats.last_error) == (2, 0, None)
    assert len([record for record in caplog.records if "every slot is in use" in record.getMessage()]) == 1


def test_full_slots_are_waited_for(channel: FakeChannel, caplog: pytest.LogCaptureFixture) -> None:
    """With when_full="wait" a snapshot waits so long at most; waits are counted, and said once."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, when_full="wait", full_wait_s=3.0, **run.objects) as ck:
        for step, full_s in enumerate((0.0, 2.0, 2.5, 4.0), 1):
            run.update()  # the snapshot before has its slot then, or has none
            channel.full_s = full_s
            ck.step(step)
        ck.wait()
        assert (ck.stats.captured, ck.stats.waited, ck.stats.waited_s, ck.stats.skipped) == (3, 2, 4.5, 1)
    assert (
        len([record for record in caplog.records if "a snapshot waited 2.000 s for a slot" in record.getMessage()]) == 1
    )


def test_a_daemon_that_hangs_does_not_stop_training(channel: FakeChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update waits for copies, not for an answer: it gives up soon, and nothing of the later state is copied."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.restore()
        channel.hang = threading.Event()
        for step in (1, 2, 3):
            run.update()
            ck.step(step)
        assert ck.stats.skipped == 3
        hang, channel.hang = channel.hang, None
        hang.set()
        assert ck._window._late is not None
        assert ck._window._late.result() is None
        monkeypatch.setattr(module, "_PATIENCE_S", 10.0)
        run.update()
        ck.step(4)
        ck.wait()
    assert channel.recorded() == [Version(1, 4)]
    assert "after the next update" in channel.aborts[0]


def test_an_update_does_not_wait_for_pages(channel: FakeChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the daemon makes the first slot of a large state, the update goes on without that snapshot."""
    monkeypatch.setattr(module, "_PATIENCE_S", 60.0)
    monkeypatch.setattr(module, "_MAKING_S", 0.01)
    monkeypatch.setattr(module, "_MAKING_BYTES", 1)
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.restore()
        channel.hang = threading.Event()
        run.update()
        ck.step(1)
        run.update()
        assert (ck.stats.skipped, ck._window.is_late) == (1, True)
        hang, channel.hang = channel.hang, None
        hang.set()
        assert ck._window._late is not None
        ck._window._late.result()
        ck.step(2)
        ck.wait()
        assert ck.stats.captured == 1
    assert channel.recorded() == [Version(1, 2)]


def test_steps_only_grow(channel: FakeChannel) -> None:
    """A step that went backwards is a StaleStepError by policy, after a restore too."""
    run = Run.new()
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.step(5)
        ck.step(5)
        ck.step(4)
        assert ck.stats.failed == 2
    with Checkpointer(job="job", channel=after(channel), on_error="raise", **run.objects) as ck:
        assert ck.restore() == 5
        with pytest.raises(StaleStepError, match="found step 5 after step 5; expected a greater one"):
            ck.step(5)
        with pytest.raises(UsageError, match="found step '6'"):
            ck.step("6")  # type: ignore[arg-type]


def test_a_state_that_needs_pickle_does_not_stop_training(channel: FakeChannel) -> None:
    """A value that cannot be encoded costs the snapshot and is named by its path."""
    run = Run.new()
    run.data.position = object()  # type: ignore[assignment]
    with Checkpointer(job="job", channel=channel, **run.objects) as ck:
        ck.step(1)
        assert ck.stats.failed == 1
        assert "data.position: found a builtins.object" in str(ck.stats.last_error)
        run.data.position = 3
        ck.step(2)
        ck.wait()
        assert ck.stats.captured == 1


def test_a_fresh_start_is_said_loudly(channel: FakeChannel, caplog: pytest.LogCaptureFixture) -> None:
    """`restore` returns 0 and logs the daemons' reason as a warning."""
    with Checkpointer(job="job", channel=channel, model=nn.Linear(1, 1)) as ck:
        assert ck.restore() == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "job job starts fresh, from step 0: nothing was captured" in caplog.text


def test_step_without_restore_begins_a_new_life(channel: FakeChannel) -> None:
    """Who never calls `restore` gets a new epoch at the first step, and never an old snapshot."""
    for epoch in (1, 2):
        with Checkpointer(job="job", channel=channel, model=nn.Linear(1, 1)) as ck:
            ck.step(1)
            ck.wait()
        assert channel.recorded()[-1] == Version(epoch, 1)
        channel._begun = Version(-1, -1)


def test_a_daemon_that_comes_later_is_found(channel: FakeChannel) -> None:
    """A life that could not begin is tried again at the 2nd, 4th, 8th step, without disturbing the training."""
    channel.fail["attach"] = DaemonUnavailable("no socket")
    with Checkpointer(job="job", channel=channel, model=nn.Linear(1, 1)) as ck:
        for step in range(1, 5):
            ck.step(step)
            if step == 3:
                channel.fail.clear()
        ck.wait()
        assert (ck.stats.failed, ck.stats.captured) == (2, 1)


@pytest.mark.parametrize("method", ["attach", "decide", "join", "open"])
def test_restore_raises(channel: FakeChannel, method: str) -> None:
    """`restore` cannot answer honestly when the daemon fails, so it raises, whatever `on_error` says."""
    model = nn.Linear(1, 1)
    with Checkpointer(job="job", channel=channel, model=model) as ck:
        ck.step(1)
    second = after(channel)
    second.world = 1
    second.fail[method] = Unrecoverable("lost")
    before = bits(model.weight)
    with Checkpointer(job="job", channel=second, model=model) as ck, pytest.raises(Unrecoverable, match="lost"):
        ck.restore()
    assert bits(model.weight) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "found every=0"),
        ({"persist_every": -1}, "found persist_every=-1"),
        ({"on_error": "ignore"}, "found on_error='ignore'"),
        ({"every": "often"}, "found every='often', expected a number of steps"),
        ({"persist_every": "1 fortnight"}, "found persist_every='1 fortnight'"),
        ({"when_full": "evict"}, "found when_full='evict', expected 'skip' or 'wait'"),
        ({"full_wait_s": 0.0}, "found full_wait_s=0.0"),
        ({"sigterm_grace_s": -1.0}, "found sigterm_grace_s=-1.0"),
        ({"job": "../up"}, "job name"),
        ({"data": object()}, "data: found a object, expected a module"),
    ],
)
def test_wrong_arguments(channel: FakeChannel, arguments: dict[str, Any], message: str) -> None:
    """The constructor refuses what cannot work, and leaves no hook and no thread behind."""
    threads = threading.active_count()
    with pytest.raises(UsageError, match=message):
        Checkpointer(channel=channel, **arguments)
    assert threading.active_count() == threads


def test_a_launcher_without_process_group(channel: FakeChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun the process group must be there first."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=r"call torch\.distributed\.init_process_group"):
        Checkpointer(channel=channel)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UsageError, match="found WORLD_SIZE='many'"):
        Checkpointer(channel=channel)


def test_closing_twice_and_waiting_wrongly(channel: FakeChannel) -> None:
    """`close` is idempotent; an unknown level is refused; a closed Checkpointer says so."""
    ck = Checkpointer(job="job", channel=channel, model=nn.Linear(1, 1))
    with pytest.raises(UsageError, match="found level 'safe'"):
        ck.wait("safe")
    ck.close()
    ck.close()
    ck.step(1)
    assert "was closed" in str(ck.stats.last_error)
