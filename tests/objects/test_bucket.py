"""How calls to a store are made: again when that may help, at once an error when it can't, and never for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from tests.cluster import until

from ckptd.ckpt.bucket import Bucket, Missing, Patience
from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.objects import PARALLEL, Objects

QUICK = Patience(tries=4, first_pause_s=0.001)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket("memory://bucket/prefix", QUICK)


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[int]]:
    """Something that fails so often, and its calls."""
    calls: list[int] = []

    def act() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return act, calls


@pytest.mark.parametrize("error", [OSError("busy"), TimeoutError(), RuntimeError("anything"), ConnectionError("reset")])
def test_what_may_pass_is_tried_again(bucket: Bucket, error: Exception) -> None:
    """Up to a number of times; then the last reason comes back, with how often and for how long it was tried."""
    act, calls = failing(QUICK.tries - 1, error)
    assert bucket.insist("do it", act) == "done"
    assert len(calls) == QUICK.tries
    act, calls = failing(QUICK.tries, error)
    with pytest.raises(StorageError, match=r"cannot do it: .+; tried 4 times in 0 s"):
        bucket.insist("do it", act)
    assert len(calls) == QUICK.tries


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("no"), Missing),
        (PermissionError("expired"), StorageError),
        (StorageError("no"), StorageError),
    ],
)
def test_an_answer_is_not_asked_for_again(bucket: Bucket, error: Exception, kind: type[Exception]) -> None:
    """That there is nothing, or that one may not, is so the next time, too."""
    act, calls = failing(1, error)
    with pytest.raises(kind):
        bucket.insist("do it", act)
    assert len(calls) == 1


def test_nothing_is_tried_for_ever() -> None:
    """Tries that take long are fewer: whoever starts a job waits for what storage has."""
    act, calls = failing(9, OSError("slow"))
    with pytest.raises(StorageError, match="tried 1 times"):
        Bucket("memory://b", Patience(enough_s=0.0)).insist("do it", act)
    assert len(calls) == 1


def test_a_closed_bucket_tries_nothing(bucket: Bucket) -> None:
    """Not even once."""
    bucket.close()
    with pytest.raises(StorageError, match="the daemon is stopping"):
        bucket.put(bucket.key("a"), b"x")


def test_a_place_that_is_closed_in_the_middle() -> None:
    """What has not begun is given up, what runs is waited for, and what comes later is refused: each an error of ours."""
    place, begun, go = Objects(Bucket("memory://b", QUICK), "job"), threading.Barrier(PARALLEL + 1), threading.Event()

    def wait() -> bool:
        begun.wait(10.0)
        return go.wait(10.0)

    def close() -> None:
        begun.wait(10.0)
        place.close()
        go.set()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(StorageError, match="cannot go on with memory://b/job: the daemon is stopping"):
        list(place._in_order(place._senders, [wait] * (PARALLEL + 1)))
    closer.join(10.0)
    with pytest.raises(StorageError, match="the daemon is stopping"):
        list(place._in_order(place._readers, [wait]))


def test_a_call_that_hangs_is_taken_back(bucket: Bucket) -> None:
    """An asynchronous file system's call ends after its time, and what ran of it is cancelled."""
    cancelled: list[int] = []

    class Hanging:
        async_impl = True

        def __init__(self) -> None:
            from fsspec.asyn import get_loop

            self.loop = get_loop()

        async def _look(self) -> None:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                cancelled.append(1)
                raise

    hanging = Bucket("memory://b", Patience(tries=2, first_pause_s=0.001, call_s=0.1))
    hanging.fs = Hanging()
    with pytest.raises(StorageError, match="cannot look: TimeoutError; tried 2 times"):
        hanging.ask("look", "look")
    until(lambda: len(cancelled) == 2, "both calls cancelled")


def test_a_large_object_that_fails_is_no_object(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no parts, all of it is sent again; the progress goes back by what was lost."""
    data, moved, real = memoryview(bytes(range(256)) * 4), list[int](), bucket.fs.open
    calls = failing(2, OSError("no"))[0]

    def opened(*arguments: object, **options: object) -> object:
        file = real(*arguments, **options)
        write = file.write

        def spoilt(block: memoryview) -> int:
            if len(moved) % 3 == 2:
                calls()
            return int(write(block))

        file.write = spoilt
        return file

    monkeypatch.setattr(bucket.fs, "open", opened)
    bucket.put_large(bucket.key("large"), data, 256, moved.append)
    assert sum(moved) == len(data)
    assert min(moved) == -512
    assert bucket.get(bucket.key("large"), 0, len(data)) == data
    with pytest.raises(StorageError, match=r"cannot read .*large: 0 bytes came, expected 5; tried 4 times"):
        bucket.get(bucket.key("large"), 5000, 5)
    with pytest.raises(StorageError, match="longer than 9 bytes; it is not ours"):
        bucket.small(bucket.key("large"), 9)
