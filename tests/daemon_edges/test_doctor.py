"""The doctor: what is found is judged as promised, a check that can't be made is a row, and nothing is left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ckptd.ckpt.bucket import Bucket
from ckptd.ckpt.config import Config, Tls
from ckptd.ckpt.errors import StorageError
from ckptd.daemon import doctor, probes
from ckptd.daemon.doctor import CHECKS, Row, examine, judge_answer, judge_encryption
from ckptd.daemon.probes import Answer, Codec, Place, Writing
from ckptd.erasure import serving
from ckptd.erasure.isal import Missing

USER = 1000
GB = 10**9
FAST = Codec(k=4, m=2, backend="isal", origin="ISA-L, /lib/libisal.so.2", gb_per_s=15.26, isal_missing="")
SLOW = replace(FAST, backend="zfec", origin="zfec 1.6", gb_per_s=1.0, isal_missing="libisal.so.2: cannot open")
MEMORY = Place(Path("/dev/shm/a"), True, "tmpfs", 8 * GB, 7 * GB, USER, 0o700, True)
NEW = replace(MEMORY, exists=False, owner=0, mode=0o1777)
DISK = replace(MEMORY, path=Path("/p"), filesystem="ext4")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the code's speed once."""
    monkeypatch.setattr(probes, "_MEASURE_S", 0.0)


def made(tmp_path: Path, **settings: Any) -> Config:
    return Config(run_dir=tmp_path / "run", segment_dir=tmp_path / "s", **settings).validate()


def test_the_fast_code_is_well() -> None:
    """Which code, which library, how fast."""
    what = "RS(4,2) with ISA-L, /lib/libisal.so.2: 15.3 GB/s of data on one core"
    assert doctor.judge_codec(FAST) == [Row("erasure code", "ok", what)]


@pytest.mark.parametrize(("found", "verdict"), [(SLOW, "warn"), (replace(SLOW, m=1, backend="xor"), "ok")])
def test_the_slow_code_says_how_to_get_the_fast_one(found: Codec, verdict: str) -> None:
    """Without ISA-L: both ways to get it, and what was looked for. XOR is fast enough without."""
    (row,) = doctor.judge_codec(found)
    assert row.verdict == verdict
    for word in ("pyeclib>=1.8", "libisal2", "libisal.so.2: cannot open"):
        assert word in row.advice


@pytest.mark.parametrize(
    ("place", "memory_bytes", "verdict", "words"),
    [
        (MEMORY, 0, "ok", "/dev/shm/a on tmpfs, 7.0 GB free of 8.0 GB"),
        (NEW, 0, "ok", "8.0 GB"),
        (MEMORY, 8 * GB, "ok", "8.0 GB"),
        (MEMORY, 8 * GB + 1, "fail", "memory_bytes"),
        (replace(MEMORY, total=64 << 20, free=64 << 20), 0, "fail", "67.1 MB: the default of containers, too small"),
        (replace(MEMORY, filesystem="ext4"), 0, "warn", "on ext4"),
        (replace(MEMORY, filesystem="unknown"), 0, "ok", "on unknown"),
    ],
)
def test_shared_memory(place: Place, memory_bytes: int, verdict: str, words: str) -> None:
    """A tmpfs of more than a container's default that holds what the settings allow."""
    (row,) = doctor.judge_memory(place, memory_bytes, USER)
    assert row.verdict == verdict
    assert words in row.found
    assert bool(row.advice) == (verdict != "ok")


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({"writable": False}, "fail", "can't be written to"),
        ({"writable": False, "exists": False}, "fail", "is not there and can't be made"),
        ({"owner": 7}, "fail", "belongs to user 7, you are 1000"),
        ({"owner": 7, "exists": False}, None, ""),
        ({"mode": 0o755}, "warn", "mode 0755"),
        ({"mode": 0o1777, "exists": False}, None, ""),
    ],
)
def test_directories_that_are_somebody_elses(change: dict[str, Any], verdict: str | None, words: str) -> None:
    """The segment and run directories must be this user's own; of one above them only that it can be written to."""
    place = replace(MEMORY, **change)
    rows = doctor.judge_memory(place, 0, USER)[1:]
    assert [row.verdict for row in rows] == ([verdict] if verdict else [])
    (row,) = doctor.judge_run_dir(place, USER)
    assert row.verdict == (verdict or "ok")
    assert words in row.found


def test_the_run_directory_says_its_mode_and_the_length_of_its_socket() -> None:
    """A socket's path holds 107 bytes."""
    (row,) = doctor.judge_run_dir(MEMORY, USER)
    assert (row.verdict, row.found) == ("ok", "/dev/shm/a, mode 0700; socket path of 21 of 107 bytes")
    assert "will be made" in doctor.judge_run_dir(NEW, USER)[0].found


@pytest.mark.parametrize(
    ("place", "written", "verdict", "words"),
    [
        (DISK, Writing(direct=True, problem=""), "ok", "/p on ext4, 7.0 GB free; O_DIRECT"),
        (DISK, Writing(direct=False, problem=""), "warn", "no O_DIRECT"),
        (DISK, Writing(direct=False, problem="No space left"), "fail", "cannot write (No space left)"),
        (replace(DISK, exists=False), None, "ok", "will be made"),
        (replace(DISK, exists=False, writable=False), None, "fail", "can't be made"),
    ],
)
def test_storage(place: Place, written: Writing | None, verdict: str, words: str) -> None:
    """A root that can be written to, best past the page cache."""
    (row,) = doctor.judge_storage(place, written)
    assert row.verdict == verdict
    assert words in row.found


@pytest.mark.usefixtures("without_stores")
def test_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is written, read and removed again; what goes wrong is what the store says."""
    (row,) = doctor.storage(made(tmp_path, storage=f"memory://bucket{tmp_path}"))
    assert (row.verdict, row.found) == ("ok", f"memory://bucket{tmp_path}: an object was written, read and removed")
    assert not fsspec.filesystem("memory").find(f"/bucket{tmp_path}")
    (row,) = doctor.storage(made(tmp_path, storage="s3://bucket"))
    assert row.verdict == "fail"
    assert "ckptd[s3]" in row.found
    monkeypatch.setattr(Bucket, "small", lambda *_: b"other")
    (row,) = doctor.storage(made(tmp_path, storage=f"memory://bucket{tmp_path}"))
    assert "is not what was written" in row.found


@pytest.mark.parametrize(
    ("state", "verdict"), [("well", "ok"), ("silent", "warn"), ("unwell", "fail"), ("refused", "fail")]
)
def test_the_daemon(state: Any, verdict: str) -> None:
    """One that is not there yet is a warning; one that says that something is wrong, or is somebody else's, a failure."""
    (row,) = doctor.judge_answer(Answer(state, "what it said"))
    assert row.verdict == verdict
    assert "what it said" in row.found


def test_a_check_of_ones_own(tmp_path: Path) -> None:
    """A check is a function that returns rows; one failed row makes the whole not ok, a warning does not."""
    config = made(tmp_path)

    def two_rows(_: Config) -> Sequence[Row]:
        return [Row("a", "ok", "fine"), Row("b", "warn", "so so", "do this")]

    def that_fails(_: Config) -> Sequence[Row]:
        return [Row("c", "fail", "broken")]

    document = examine(config, [two_rows])
    assert (document["ok"], document["job"], document["node"]) == (True, "default", 0)
    assert document["checks"][1] == {"name": "b", "verdict": "warn", "found": "so so", "advice": "do this"}
    assert [row["name"] for row in examine(config, [that_fails, two_rows])["checks"]] == ["c", "a", "b"]
    assert not examine(config, [that_fails, two_rows])["ok"]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), StorageError("gone")])
def test_a_check_that_cannot_be_made_is_a_row(tmp_path: Path, error: Exception) -> None:
    """The others still say what they found."""

    def cannot_look(_: Config) -> Sequence[Row]:
        raise error

    def looks(_: Config) -> Sequence[Row]:
        return [Row("a", "ok", "fine")]

    document = examine(made(tmp_path), [cannot_look, looks])
    assert document["checks"][0]["name"] == "cannot look"
    assert str(error) in document["checks"][0]["found"]
    assert [row["verdict"] for row in document["checks"]] == ["fail", "ok"]


# ---- what it looks at ---------------------------------------------------------------------------------------


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """All checks on a fresh node: no directory is made, and the storage is as it was."""
    (tmp_path / "p").mkdir()
    document = examine(made(tmp_path, storage=tmp_path / "p"))
    assert len(document["checks"]) >= len(CHECKS)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "p"]


def test_the_codes_speed_is_that_of_this_nodes_group(tmp_path: Path) -> None:
    """The group's own code is measured; where there is no parity, RS(4,2)."""
    assert (probes.codec(made(tmp_path)).k, probes.codec(made(tmp_path)).m) == (4, 2)
    nodes = tuple(f"127.0.0.1:{port}" for port in range(1, 4))
    found = probes.codec(made(tmp_path, nodes=nodes, secret=b"s" * 16))
    assert (found.k, found.m, found.backend) == (2, 1, serving(2, 1)[0].name)
    assert found.gb_per_s > 0.0


def test_why_there_is_no_isal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason goes with the finding."""
    monkeypatch.setattr(probes, "isal_here", lambda: Missing("looked and looked"))
    assert probes.codec(made(tmp_path)).isal_missing == "looked and looked"


def test_a_place_that_is_not_there_yet(tmp_path: Path) -> None:
    """The nearest directory above says what file system, how much room and whose."""
    found = probes.place(tmp_path / "a" / "b")
    assert (found.exists, found.owner, found.writable) == (False, os.getuid(), True)
    assert 0 <= found.free <= found.total
    assert probes.place(tmp_path).exists
    assert probes.place(Path("/proc")).filesystem == "proc"
    (tmp_path / "file").touch()
    assert not probes.place(tmp_path / "file").writable


def test_writing_without_o_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses O_DIRECT is written to all the same; any other error is the finding."""
    real = os.open

    def refuse(path: Any, flags: int, *arguments: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    assert probes.writing(tmp_path) == Writing(direct=False, problem="")
    assert probes.writing(tmp_path / "nowhere") == Writing(direct=False, problem="No such file or directory")
    assert list(tmp_path.iterdir()) == []


def test_a_silent_daemon(tmp_path: Path) -> None:
    """No socket: silence, with where it was looked for."""
    found = probes.answer(made(tmp_path))
    assert found.state == "silent"
    assert str(tmp_path / "run" / "ckptd.sock") in found.said


def test_encryption_is_said() -> None:
    """Off, on, and about to expire: each is a row with what was found and what to do."""
    now = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
    (alone,) = judge_encryption(None, 1, now)
    (off,) = judge_encryption(None, 2, now)
    assert (alone.verdict, alone.advice, off.verdict) == ("ok", "", "ok")
    assert "can be read on the way" in off.found
    assert "ckptd certs" in off.advice
    tls = Tls(directory=Path("/certs"), node=1, ca=b"", certificate=b"", key=b"", until=now + timedelta(days=100))
    (good,) = judge_encryption(tls, 2, now)
    assert (good.verdict, good.found) == ("ok", "node 1: certificate good until 2027-03-04 (100 days)")
    (soon,) = judge_encryption(tls, 2, now + timedelta(days=71))
    assert (soon.verdict, "(29 days)" in soon.found, "ckptd certs" in soon.advice) == ("warn", True, True)


def test_the_groups_of_a_running_job_are_shown() -> None:
    """Each line of the daemon's is a row; a broken rule is a warning."""
    kept = judge_answer(Answer("well", "node 0 of job j", ("group 0: ...", "proved: ..."), rule_kept=True))
    assert [(row.name, row.verdict) for row in kept] == [("daemon", "ok"), ("groups", "ok"), ("groups", "ok")]
    broken = judge_answer(Answer("well", "node 0 of job j", ("BROKEN: group 0: ...",), rule_kept=False))
    assert [row.verdict for row in broken] == ["ok", "warn"]
