"""What the benchmarks make of what they measured: pure functions, with numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.kills import Tally, summed
from benchmarks.peers import BASELINE, LOSSES, SYSTEMS, UnknownSystemError, chosen
from benchmarks.runs import Outcome, Plan, last_word
from benchmarks.sizes import parse_size, size_name
from benchmarks.stall import added_ms, intervals, row
from benchmarks.usage import mapped_bytes
from benchmarks.venvs import name_of, reason_of

PLAN = Plan(state_bytes=500_000_000, matmuls=1, steps=4, every=2, threads=1)


def outcome(
    steps: list[float], *, blocked: float = 0.0, cpu: float = 1.0, other: float = 0.0, memory: int = 0
) -> Outcome:
    at = [0, 2]
    measured: dict[str, Any] = {
        "steps_s": steps, "at": at, "blocked_s": [blocked] * len(at), "cpu_s": cpu, "other_cpu_s": other,
        "first_s": 0.25, "setup_s": 0.5, "skipped": 0,
    }  # fmt: skip
    same = {"step": 7, "digest": "d"}
    return Outcome(measured, memory, same, same)


@pytest.mark.parametrize(
    ("text", "size"), [("1KiB", 1024), ("256MiB", 256 << 20), ("1.5GiB", 3 << 29), ("1GiB", 1 << 30)]
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    """And written out again it names as many bytes."""
    assert parse_size(text) == size
    assert parse_size(size_name(size)) == size


@pytest.mark.parametrize("text", ["256", "256MB", "0MiB", "-1MiB", "MiB", "xMiB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|float"):
        parse_size(text)


def test_an_interval_goes_from_one_snapshot_to_the_next() -> None:
    """The last step of a run belongs to no interval: it only closes the last fence."""
    assert intervals({"steps_s": [1.0, 2.0, 3.0, 4.0, 100.0], "at": [0, 2]}, 2) == [3.0, 7.0]


def test_what_a_snapshot_adds_is_the_difference_to_the_same_steps_without() -> None:
    quiet, slowed = outcome([0.1] * 5), outcome([0.15, 0.1, 0.15, 0.1, 0.1])
    assert added_ms(slowed, quiet, 2) == pytest.approx(50.0)
    assert added_ms(quiet, quiet, 2) == 0.0


def test_a_row_charges_a_system_with_what_the_training_alone_did_not_use() -> None:
    """CPU per GB and memory are beyond the baseline's; other processes are charged in full."""
    one = outcome([0.2] * 5, blocked=0.004, cpu=1.5, other=2.0, memory=700)
    found = row(SYSTEMS[-1], "1.2", [one], [outcome([0.1] * 5, memory=100)], PLAN)
    assert found["blocked_ms"] == pytest.approx(4.0)
    assert found["added_ms"] == pytest.approx(200.0)
    assert found["trainer_cpu_s_per_gb"] == pytest.approx(0.5)  # two snapshots of half a GB
    assert found["cpu_s_per_gb"] == pytest.approx(2.5)
    assert found["memory_bytes"] == 600
    assert (found["first_ms"], found["setup_ms"]) == (250.0, 500.0)
    assert found["restored_ok"]
    assert found["survives"] == list(LOSSES)


@pytest.mark.parametrize("restored", [{}, {"step": 6, "digest": "d"}, {"step": 7, "digest": "e"}])
def test_a_snapshot_of_another_step_or_with_other_bytes_is_not_restored(restored: dict[str, Any]) -> None:
    assert not Outcome({}, 0, {"step": 7, "digest": "d"}, restored).restored_ok


def test_the_baseline_is_always_compared_with_and_comes_first() -> None:
    assert [system.name for system in chosen("ckptd sealed, torch.save")] == [BASELINE, "ckptd sealed", "torch.save"]
    assert chosen("all")[0].name == BASELINE
    assert len(chosen("all")) == len(SYSTEMS)


def test_an_unknown_system_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(UnknownSystemError, match=r"'orbax'.*torch\.save"):
        chosen("orbax")


def test_every_peer_is_pinned_and_claims_only_what_there_is_to_survive() -> None:
    for system in SYSTEMS:
        assert not system.requirement or "==" in system.requirement
        assert system.survives == LOSSES[: len(system.survives)]


SMAPS = """\
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Size:               1024 kB
Pss:                 100 kB
7f0000200000-7f0000300000 rw-s 00000000 00:17 12                         /dev/shm/torch_1
Pss:                  50 kB
7f0000400000-7f0000500000 rw-s 00000000 00:17 13                         /dev/shm/mine/slot 1
Pss:                4000 kB
7f0000600000-7f0000700000 r-xp 00000000 08:01 99                         /usr/lib/libtorch.so
Pss:                9000 kB
55d000000000-55d000100000 rw-p 00000000 00:00 0                          [heap]
Pss:                   7 kB
VmFlags: rd wr mr mw
"""


def test_memory_is_what_is_anonymous_or_shared_and_not_counted_as_a_file() -> None:
    """Libraries are not counted, nor files in the system's own folder, which are counted once as files."""
    assert mapped_bytes(SMAPS, "/dev/shm/mine") == (100 + 50 + 7) << 10
    assert mapped_bytes(SMAPS, "/dev/shm/other") == (100 + 50 + 4000 + 7) << 10


def test_pips_own_words_say_why_a_peer_cannot_be_had() -> None:
    said = "WARNING: old\nERROR: Could not find a version\nERROR: No matching distribution found for x==9\n[notice] update\n"
    assert reason_of(said) == "No matching distribution found for x==9"
    assert reason_of("") == "it said nothing"


def test_another_pin_or_torch_is_another_environment() -> None:
    names = {name_of("a==1", "2.13"), name_of("a==2", "2.13"), name_of("a==1", "2.14"), name_of("a[x]==1", "2.13")}
    assert len(names) == 4
    assert all(name.startswith("a-") for name in names)


def test_the_last_word_of_a_log_is_its_error() -> None:
    log = "Traceback (most recent call last):\n  File x\nOSError: [Errno 22] Invalid argument\nException ignored in: y\nbye"
    assert last_word(log) == "OSError: [Errno 22] Invalid argument"
    assert last_word("\n") == "it ended without a word"


class TestTally:
    """Step 5 was complete and step 6 was being saved when the trainer was killed."""

    @staticmethod
    def judged(step: int | None, digest: str) -> dict[str, Any]:
        tally = Tally(digests={4: "four", 5: "five", 6: "six"})
        tally.judge(step, digest, complete=5, begun=6)
        return tally.report()

    @pytest.mark.parametrize(("step", "digest", "lost"), [(5, "five", 1), (6, "six", 0)])
    def test_the_newest_complete_step_or_the_one_being_saved_is_a_load(self, step: int, digest: str, lost: int) -> None:
        found = self.judged(step, digest)
        assert (found["kills"], found["loads"], found["lost"]) == (1, 1, [lost])

    @pytest.mark.parametrize(("step", "digest"), [(None, "an error"), (4, "four")])
    def test_nothing_or_an_older_step_is_a_refusal(self, step: int | None, digest: str) -> None:
        found = self.judged(step, digest)
        assert (found["loads"], found["refused"], found["torn"]) == (0, 1, 0)

    @pytest.mark.parametrize(("step", "digest"), [(6, "five"), (5, "x"), (9, "nine")])
    def test_other_bytes_than_were_saved_are_torn(self, step: int, digest: str) -> None:
        found = self.judged(step, digest)
        assert (found["loads"], found["refused"], found["torn"]) == (0, 0, 1)

    def test_campaigns_are_summed_and_each_way_to_get_stuck_is_kept(self) -> None:
        one = {"kills": 3, "loads": 2, "refused": 1, "torn": 0, "lost": [1, 0], "stuck": "no word"}
        other = {"kills": 1, "loads": 1, "refused": 0, "torn": 0, "lost": [2], "stuck": ""}
        found = summed([one, other])
        assert (found["kills"], found["loads"], found["refused"]) == (4, 3, 1)
        assert (found["lost_steps_mean"], found["lost_steps_max"], found["stuck"]) == (1.0, 2, ["no word"])
        assert summed([])["lost_steps_mean"] == 0.0
