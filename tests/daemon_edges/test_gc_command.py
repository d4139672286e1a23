"""`ckptd gc` and `ckptd list --storage`: what would go is shown first, and what must stay stays."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import typer
from tests.console import Run, console

from ckptd.ckpt import manifest
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.storage import Storage

DAY = 86400.0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line in this process, with job j below `root`: exit code, standard output, standard error."""
    return console(monkeypatch, capsys, tmp_path)


def persist(*steps: int, days: float = 0.0) -> None:
    """Steps of job j, written so long ago."""
    storage = Storage(Path("root"), "j")
    for step in steps:
        raw = bytes(1000)
        image = Image(0, 1000, digest_of(sums_of(raw), 1000))
        storage.write(Version(1, step), image, memoryview(raw))
        storage.publish(Version(1, step), [image])
        age(directory(step) / "manifest.json", days * DAY)


def directory(step: int, prefix: str = "") -> Path:
    return Path("root", "j", prefix + manifest.dir_name(Version(1, step)))


def age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def begun(step: int, seconds: float) -> Path:
    """A step whose writer wrote last so long ago."""
    path = directory(step, ".writing-")
    path.mkdir(parents=True)
    (path / "rank-00000.safetensors").write_bytes(bytes(100))
    age(path / "rank-00000.safetensors", seconds)
    age(path, seconds)
    return path


def standing() -> list[int]:
    return sorted(int(path.name[5:17]) for path in Path("root", "j").iterdir() if path.name.startswith("step-"))


def test_a_dry_run_shows_and_removes_nothing(run: Run) -> None:
    """Which steps would go, how much is freed, and what stays; `--json` has the same."""
    persist(10, 20, 30, 40)
    code, out, err = run("gc", "--storage", "root", "--job", "j", "--keep-last", 2, "--dry-run")
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines() if "would go" in line] == ["10", "20"]
    assert [line.split()[1] for line in out.splitlines() if "stays" in line] == ["40", "30"]
    assert "2 steps, 0 leftovers" in out
    assert "would be freed" in out
    found = json.loads(run("gc", "--storage", "root", "--job", "j", "--keep-last", 2, "--dry-run", "--json")[1])
    assert ([row["step"] for row in found["steps"]], found["removed"]) == ([10, 20], False)
    assert found["bytes"] == sum(row["bytes"] for row in found["steps"]) > 2000
    assert standing() == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ((), [10, 15, 20, 30, 40]),
        (("--keep-last", 1), [40]),
        (("--keep-last", 2, "--keep-every", 10), [10, 20, 30, 40]),
        (("--older-than", "7d"), [20, 30, 40]),
        (("--older-than", "1s"), [40]),
        (("--keep-last", 3, "--older-than", "7d"), [20, 30, 40]),
        (("--keep-every", 10, "--older-than", "1h"), [10, 20, 30, 40]),
    ],
)
def test_what_the_rule_does_not_keep_goes(run: Run, options: tuple[object, ...], left: list[int]) -> None:
    """The newest complete step stays whatever the rule says."""
    persist(10, 15, days=8)
    persist(20, 30, 40, days=3)
    code, out, _ = run("gc", "--storage", "root", "--job", "j", *options, "--yes")
    assert code == 0
    assert standing() == left
    assert f"{5 - len(left)} steps, 0 leftovers" in out
    assert not list(Path("root", "j").glob(".removing-*"))


def test_the_newest_complete_step_is_not_a_broken_one(run: Run) -> None:
    """A newer one that lost a file doesn't count, and is left for somebody to look at; an older broken one goes."""
    persist(10, 20, 30, 40)
    for step in (20, 40):
        (directory(step) / "rank-00000.safetensors").unlink()
    assert run("gc", "--storage", "root", "--job", "j", "--keep-last", 1, "--yes")[0] == 0
    assert standing() == [30, 40]
    shutil.rmtree(directory(30))
    assert run("gc", "--storage", "root", "--job", "j", "--keep-last", 1, "--yes")[0] == 0
    assert standing() == [40]


def test_what_is_being_written_stays_and_leftovers_go(run: Run) -> None:
    """An hour without a byte tells them apart; no retention is needed for that."""
    persist(10)
    young, old = begun(20, 60.0), begun(5, 2 * 3600.0)
    (directory(10) / "rank-00000.safetensors.aa.tmp").write_bytes(bytes(9))
    age(directory(10) / "rank-00000.safetensors.aa.tmp", 5000.0)
    code, out, _ = run("gc", "--storage", "root", "--job", "j", "--yes")
    assert code == 0
    assert "is written now" in out
    assert "0 steps, 2 leftovers" in out
    assert (young.exists(), old.exists()) == (True, False)
    left = sorted(path.name for path in directory(10).iterdir())
    assert left == ["manifest.json", "rank-00000.safetensors", "rank-00000.sums"]


def test_it_asks_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No is code 1 and changes nothing; what has changed while nobody answered is looked at again."""
    persist(10, 20)
    old = begun(5, 2 * 3600.0)
    monkeypatch.setattr(typer, "confirm", lambda _: False)
    code, out, _ = run("gc", "--storage", "root", "--job", "j", "--keep-last", 1)
    assert (code, "would go" in out) == (1, True)
    assert standing() == [10, 20]

    def late(_: str) -> bool:
        (old / "rank-00001.safetensors").touch()  # its writer lives
        return True

    monkeypatch.setattr(typer, "confirm", late)
    assert run("gc", "--storage", "root", "--job", "j", "--keep-last", 1)[0] == 0
    assert standing() == [20]
    assert old.exists()


def test_links_stay(run: Run) -> None:
    """A step's name that is a link is somebody's arrangement: neither the link nor what it names is touched."""
    persist(10, 20, 30)
    directory(10).rename("elsewhere")
    directory(10).symlink_to(Path("elsewhere").absolute())
    assert run("gc", "--storage", "root", "--job", "j", "--keep-last", 1, "--yes")[0] == 0
    assert standing() == [10, 30]
    assert Path("elsewhere", "manifest.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("gc",),
        ("gc", "--storage", "root", "--keep-every", "5"),
        ("gc", "--storage", "root", "--keep-last", "-1"),
        ("gc", "--storage", "root", "--older-than", "week"),
        ("gc", "--storage", "root", "--older-than", "7"),
        ("gc", "--storage", "root", "--json"),
        ("gc", "--storage", "root", "--job", "../j"),
        ("list", "--storage", "root", "--job", "../j"),
    ],
)
def test_wrong_usage_is_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    """In one line, and nothing is removed."""
    persist(10, 20)
    code, out, err = run(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert standing() == [10, 20]


@pytest.mark.parametrize("command", ["gc", "list"])
def test_a_root_that_is_not_there_is_code_1(run: Run, command: str) -> None:
    """Not an empty list: it may not be mounted."""
    code, out, err = run(command, "--storage", "nowhere", "--job", "j")
    assert (code, out) == (1, "")
    assert "does not exist; is the storage mounted" in err


def test_list_of_a_storage(run: Run) -> None:
    """All jobs, with steps, sizes, ages, and what is broken, which is code 1; `--json` has the same."""
    persist(10, 20, days=3)
    begun(30, 0.0)
    code, out, err = run("list", "--storage", "root")
    assert (code, err) == (0, "")
    assert "job j on" in out
    assert out.count("complete") == 2
    assert out.count("3 d") == 2
    assert "being written" in out
    (directory(20) / "rank-00000.safetensors").unlink()
    code, out, _ = run("list", "--storage", "root", "--json")
    found = json.loads(out)
    assert (code, found["ok"], [item["job"] for item in found["jobs"]]) == (1, False, ["j"])
    assert [(row["step"], row["complete"]) for row in found["jobs"][0]["steps"]] == [(20, False), (10, True)]
    assert "is missing" in found["jobs"][0]["steps"][0]["reason"]
    assert len(found["jobs"][0]["leftovers"]) == 1
