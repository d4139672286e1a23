"""A rank's digest from what is seen of it: own times, waits, and what is said of a process."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ckptd.ckpt.beat import Seen
from ckptd.daemon.observe.digests import Life, digest, gone, groups_of, is_idle
from ckptd.daemon.observe.processes import State
from ckptd.daemon.observe.recorder import Entry, Status
from ckptd.daemon.watch.observations import NOWHERE, UNKNOWN, Phase, Process, RankDigest, pack

MS = 1_000_000
START = 10**18
RUNS, SLEEPS, LOCKED = State("R", ""), State("S", "hrtimer_nanosleep"), State("S", "futex_do_wait")
KNOWN, _ = groups_of({"groups": [{"name": "0", "backend": "gloo", "runs": [[0, 1, 4]]}]}, 4)
ON_GPU, _ = groups_of({"groups": [{"name": "0", "backend": "nccl", "runs": [[0, 1, 4]]}]}, 4)


def seen(step: int = 5) -> Seen:
    """Steps of 10 ms, whose update begins 1 ms before their end."""
    marks = tuple(
        (n, START + (n - 1) * 10 * MS, START + n * 10 * MS - MS, START + n * 10 * MS) for n in range(step, 0, -1)
    )
    return Seen(2, 77, 1, step, 0, closed=False, marks=marks)


def status(entered: int = 5, completed: int = 5, *, wait_ms: int = 4, described: str = "default_pg") -> Status:
    """One collective a step, begun so long before the update."""
    entries = tuple(
        Entry(0, "0", described, n, 99, START + n * 10 * MS - MS - wait_ms * MS) for n in range(1, entered + 1)
    )
    return Status({0: (entered, completed)}, entries)


def test_the_own_time_is_the_step_without_the_wait() -> None:
    """A rank whose last collective waited 4 of 10 ms worked for 6 of them; ckptd's own collectives are no part of it."""
    found = digest(Life(2), seen(), status(), RUNS, KNOWN)
    assert found.own_s[:5] == pytest.approx([0.006] * 5)
    assert math.isnan(found.own_s[5])
    assert found.step_s == pytest.approx(0.010)
    ours = digest(Life(2), seen(), status(described="ckptd"), RUNS, KNOWN)
    assert all(map(math.isnan, ours.own_s))


def test_what_the_recorder_has_forgotten_is_remembered() -> None:
    """The own times of earlier looks stay, and a later look does not change them."""
    life = Life(2)
    digest(life, seen(3), status(3), RUNS, KNOWN)
    later = digest(life, seen(5), Status({0: (5, 5)}, status(5).entries[-1:]), RUNS, KNOWN)
    assert later.own_s[0] == pytest.approx(0.006)
    assert math.isnan(later.own_s[1])
    assert later.own_s[2:5] == pytest.approx([0.006] * 3)


@pytest.mark.parametrize(
    ("state", "known", "expected"),
    [(RUNS, KNOWN, NOWHERE), (SLEEPS, KNOWN, NOWHERE), (LOCKED, KNOWN, UNKNOWN), (RUNS, ON_GPU, UNKNOWN)],
    ids=["computes", "sleeps", "in a lock", "with a GPU"],
)
def test_who_waits_nowhere(state: State, known: dict[str, object], expected: int) -> None:
    """Known of a rank that does not move and computes or sleeps; a lock may be a wait, and a GPU's wait looks like work."""
    life = Life(2)
    found = [digest(life, seen(), status(6, 5), state, known) for _ in range(4)]  # type: ignore[arg-type]
    assert found[0].waits == UNKNOWN
    assert found[-1].waits == expected


def test_who_waits_nowhere_has_nothing_under_way() -> None:
    """Gloo's counter of the completed ones stands still while the interpreter is held; it is not believed then."""
    life = Life(2)
    for _ in range(4):
        found = digest(life, seen(), status(6, 4), RUNS, KNOWN)
    assert [(group.entered, group.completed) for group in found.groups] == [(6, 6)]
    moved = digest(life, seen(6), status(7, 5), RUNS, KNOWN)
    assert [(group.entered, group.completed) for group in moved.groups] == [(7, 6)], "a counter never goes back"


def test_what_gloo_has_begun_before_the_step_s_end_is_over() -> None:
    """Collectives of one step end in any order, and the counter says which one was last."""
    found = digest(Life(2), seen(5), status(6, 4), RUNS, KNOWN)
    assert [(group.entered, group.completed) for group in found.groups] == [(6, 5)]
    on_gpu = digest(Life(2), seen(5), status(6, 4), RUNS, ON_GPU)
    assert [(group.entered, group.completed) for group in on_gpu.groups] == [(6, 4)]


def test_a_rank_that_has_closed_is_excused() -> None:
    """It has said that it ends: what it still does, alone, is no hang."""
    closed = replace(seen(), closed=True)
    assert digest(Life(2), closed, None, RUNS, KNOWN).phase is Phase.CHECKPOINT


def test_a_group_that_was_destroyed_does_not_count() -> None:
    """Its counters dangle in torch's recorder; of two groups of one name the later one is meant."""
    old = [Entry(0, "0", "default_pg", 9, 99, 5), Entry(3, "0", "default_pg", 2, 99, 6)]
    found = digest(Life(2), seen(), Status({3: (2, 2), 0: (9, 8)}, tuple(old)), RUNS, KNOWN)
    assert [(group.entered, group.completed) for group in found.groups] == [(2, 2)]


def test_what_does_not_answer_keeps_its_counters() -> None:
    """A stopped process has not moved, though nothing comes from it any more."""
    life = Life(2)
    before = digest(life, seen(), status(), RUNS, KNOWN)
    stopped = digest(life, seen(), None, State("T", ""), KNOWN)
    assert stopped.groups == before.groups
    assert stopped.process is Process.STOPPED


def test_a_rank_that_is_deaf_or_held() -> None:
    """Its handlers have not answered three times, or they have and its interpreter has not."""
    life = Life(2, deaf=3)
    assert digest(life, seen(), None, RUNS, KNOWN).process is Process.DEAF
    life = Life(2)
    digest(life, seen(), status(), LOCKED, KNOWN)
    life.held = True
    assert digest(life, seen(), status(), LOCKED, KNOWN).process is Process.HELD
    assert digest(life, seen(6), status(6), LOCKED, KNOWN).process is Process.ALIVE, "it has moved"


def test_the_last_digest_says_how_the_process_ended() -> None:
    """Whatever the end was, it has a place in the record."""
    last = gone(RankDigest(2, step=9), -9, 0.25)
    assert (last.process, last.exit, last.gone_s, last.step) == (Process.GONE, -9, 0.25, 9)
    assert pack([gone(RankDigest(2), 1 << 40, -1.0)])["exit"][0] == 32767


def test_groups_have_the_same_number_on_all_their_ranks() -> None:
    """The number follows from name and members, so that two meshes of one name are two groups."""
    rows, _ = groups_of({"groups": [{"name": "1", "backend": "gloo", "runs": [[0, 1, 2]]}]}, 4)
    columns, _ = groups_of({"groups": [{"name": "1", "backend": "gloo", "runs": [[2, 1, 2]]}]}, 4)
    assert rows["1"].number != columns["1"].number
    assert rows["1"].group.members == [0, 1]


@pytest.mark.parametrize(
    "item",
    [
        7, {}, {"name": "0", "backend": "gloo", "runs": [[0, 1, 5]]}, {"name": "0", "backend": "gloo", "runs": [[0, 0, 2]]},
        {"name": "0", "backend": "gloo", "runs": [[-1, 1, 2]]}, {"name": "0", "backend": "gloo", "runs": [[0, 1]]},
        {"name": "0", "backend": "gloo", "runs": [["0", 1, 2]]}, {"name": "0", "backend": "gloo", "runs": [[0, 1, 1]] * 999},
    ],
    ids=range(8),
)  # fmt: skip
def test_groups_that_make_no_sense_are_left_out(item: object) -> None:
    """What a trainer has written down is checked like everything else."""
    assert groups_of({"groups": [item]}, 4) == ({}, [])


def test_a_stack_tells_who_is_in_the_training_s_own_code() -> None:
    """The main thread is the last one; inside torch it may wait, and without frames nobody knows."""
    head = (
        "Current thread 0x01 (most recent call first):\n  <no Python frame>\n\nThread 0x02 (most recent call first):\n"
    )
    assert is_idle(head + '  File "/home/u/train.py", line 7 in main\n') is True
    inside = '  File "/x/site-packages/torch/distributed/distributed_c10d.py", line 3 in all_reduce\n'
    assert is_idle(head + inside + '  File "/home/u/train.py", line 7 in main\n') is False
    ours = '  File "/x/src/ckptd/integrations/capture.py", line 3 in fence\n'
    assert is_idle(head + ours + '  File "/home/u/train.py", line 7 in main\n') is False
    assert is_idle(head + '  File "/x/ckptd/examples/train_gpt.py", line 7 in main\n') is True
    assert is_idle("nonsense") is None
