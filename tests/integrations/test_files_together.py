"""The call that has all ranks commit their files, between threads that share a store."""

from __future__ import annotations

import threading

import pytest

from ckptd.ckpt.errors import MemoryBudgetError, Unrecoverable, UsageError
from ckptd.integrations.files import together
from ckptd.integrations.torch_private import store_of_the_job, torch_c10d


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> together.Calls:
    store = torch_c10d().HashStore()
    monkeypatch.setattr(together, "store_of_the_job", lambda: store)
    return together.Calls("job", 5)


def listening(calls: together.Calls, fails: bool = False) -> tuple[list[int], threading.Event, threading.Thread]:
    """Another rank, from now on: the epochs that it commits for, and what ends it."""
    epochs: list[int] = []
    ended = threading.Event()

    def commit(epoch: int) -> None:
        if fails:
            raise MemoryBudgetError("no room")
        epochs.append(epoch)

    thread = threading.Thread(target=calls.answer, args=(calls.made + 1, commit, ended, "rank 1"), daemon=True)
    thread.start()
    return epochs, ended, thread


def test_all_ranks_commit_for_the_epoch_that_is_called(calls: together.Calls) -> None:
    """Rank 0 goes on when all have; a step that is saved again is another call."""
    for epoch in (3, 4):
        others = [listening(calls), listening(calls)]
        calls.call(epoch, 2, 30.0)
        assert [epochs for epochs, _, _ in others] == [[epoch], [epoch]]
        for _, _, thread in others:
            thread.join(30.0)


def test_a_rank_that_fails_fails_the_save(calls: together.Calls) -> None:
    """By name, as soon as all have answered; the next save is not touched by it."""
    _, _, thread = listening(calls, fails=True)
    with pytest.raises(Unrecoverable, match="nothing was saved: rank 1: MemoryBudgetError: no room"):
        calls.call(1, 1, 30.0)
    thread.join(30.0)
    epochs, _, _ = listening(calls)
    calls.call(2, 1, 30.0)
    assert epochs == [2]


def test_a_rank_that_takes_no_part_is_counted(calls: together.Calls) -> None:
    """Rank 0 does not wait for ever, and a rank that another save has overtaken does not answer."""
    epochs, ended, thread = listening(calls)
    ended.set()
    thread.join(30.0)
    with pytest.raises(Unrecoverable, match="1 of the 1 other ranks did not commit"):
        calls.call(1, 1, 0.05)
    assert epochs == []


def test_without_a_process_group_there_is_no_store() -> None:
    """Said by what to use."""
    with pytest.raises(UsageError, match=r"save by ckptd\.dcp\.save"):
        store_of_the_job()
