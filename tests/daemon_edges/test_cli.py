"""The command line: tables for people, JSON for programs, errors in one line, and the promised exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import daemon_here, fill, shm_dir, until
from tests.console import Run, clean, console
from tests.payload import JOB, bytes_of, flip

from ckptd import __version__
from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.model import Version
from ckptd.daemon import export_command

SIZE = 300_000
COMMANDS = (
    "serve",
    "status",
    "list",
    "verify",
    "recover",
    "export",
    "doctor",
    "demo",
    "plan",
    "restart",
    "import",
    "gc",
)


@pytest.fixture(autouse=True)
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of whoever runs the tests is found."""
    clean(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line in this process."""
    return console(monkeypatch, capsys, tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    with shm_dir() as folder:
        made = Config(
            job=JOB, run_dir=tmp_path / "run", segment_dir=folder / "s", storage=tmp_path / "p", persist_every=10
        )
        yield made.validate()


@pytest.fixture
def daemon(config: Config) -> Iterator[tuple[str, ...]]:
    """A daemon with step 10 persisted and step 11 sealed; the options that name it."""
    with daemon_here(config):
        client = Client(config.run_dir, JOB)
        client.attach(rank=0, world=1, local_world=1)
        epoch = client.decide(world=1).epoch
        client.join(epoch)
        for step, level in ((10, "persisted"), (11, "sealed")):
            version = Version(epoch, step)
            slot = client.begin(version, SIZE)
            assert slot is not None
            fill(slot, bytes_of(version, 0, SIZE))
            client.commit(slot, version)
            assert client.wait(version, level, 20.0) in (level, "persisted")
        yield "--run-dir", str(config.run_dir), "--job", JOB
        client.close()


def slot_file(config: Config, step: int) -> Path:
    for path in config.segment_dir.glob("rank-*.slot-*.json"):
        record = json.loads(path.read_text())
        if record["step"] == step:
            return config.segment_dir / str(record["file"])
    raise AssertionError(step)


# ---- help and usage ---------------------------------------------------------------------------------------


def test_help_teaches(run: Run) -> None:
    """`ckptd` alone and `--help` list every command with what it does; each command's help names its options."""
    for arguments in ((), ("--help",)):
        code, out, err = run(*arguments)
        assert code in (0, 2)
        assert all(command in out + err for command in (*COMMANDS, "run"))
        assert "fault tolerance" in out + err
    for command in COMMANDS:
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "Usage" in out
        if command not in ("serve", "demo"):
            assert "--json" in out
    assert "--secret-file" in run("serve", "--help")[1]


def test_version(run: Run) -> None:
    """`--version` prints it and ends well."""
    assert run("--version") == (0, f"ckptd {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("status", "--nothing"),
        ("export",),
        ("doctor", "--job", "../x"),
        ("serve", "--node", "one"),
        ("serve", "--node", "3"),
        ("serve", "--slots", "1"),
        ("serve", "--group-size", "0"),
        ("serve", "--domain", "rack 7"),
        ("plan", "--nodes", "0"),
        ("plan", "--nodes", "100001"),
        ("plan", "--nodes", "4", "--domains", "a,b"),
        ("plan", "--domains", "a b"),
        ("plan", "--nodes", "4", "--parity", "-1"),
        ("plan", "--nodes", "4", "--parity", "8"),
        ("plan", "--group-size", "257"),
        ("plan", "--slots", "1"),
        ("plan", "--payload", "much"),
        ("plan", "--payload", "0"),
        ("plan", "--payload", "100TiB"),
        ("serve", "--job", "../x"),
        ("serve", "--persist-every", "5"),
        ("serve", "--nodes", "a:1,b:1"),
        ("serve", "--nodes", "a,b"),
        ("export", "latest", "out", "--format", "pickle"),
        ("export", "latest", "."),
        ("demo", "--lose-nodes", "x"),
    ],
)
def test_wrong_usage_is_code_2_and_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    """What can't be meant ends with code 2 and one line that says what was expected."""
    Path("something").touch()
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("ckptd: ")
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize("command", [("status",), ("list",), ("verify",), ("recover",), ("export", "latest", "out")])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_no_daemon_is_code_1_and_one_line(run: Run, command: tuple[str, ...], options: tuple[str, ...]) -> None:
    """Without a daemon every command says where it looked and what to do, in one line."""
    code, out, err = run(*command, *options)
    assert code == 1
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert f"ckptd: {Path.cwd()}/xdg/ckptd/default/ckptd.sock: No such file or directory; start `ckptd serve`" in err


def test_problems_of_a_start_are_one_line(run: Run, config: Config, tmp_path: Path) -> None:
    """A directory that can't be had, a secret that others may read, a run directory in use: code 1, one line."""
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    secret.chmod(0o644)
    cases = {
        "cannot make /proc/nowhere": ("--run-dir", "/proc/nowhere"),
        "others may read it": ("--secret-file", secret),
    }
    for message, options in cases.items():
        code, _, err = run("serve", *options)
        assert (code, len(err.splitlines())) == (1, 1), err
        assert message in err


def test_plan(run: Run) -> None:
    """Without a daemon: the groups with their cost; 0 where the rule is kept, 1 where a domain breaks it, by name."""
    code, out, err = run("plan", "--domains", "a,a,b,b,leaf[1,4-6],", "--payload", "20GB")
    assert (code, err) == (0, "")
    for word in (
        "6 nodes, parity 1",
        "2+1",
        "leaf[1,4-6]: 1",
        "80.0 GB",
        "20.0 GB each",
        "proved: no domain holds more",
    ):
        assert word in out
    code, out, _ = run("plan", "--domains", "a,a,a,b")
    assert code == 1
    assert "BROKEN: group 0: nodes 0, 1 and 2 stand in a and only 1 loss is tolerated; move 2 of them" in out
    code, out, _ = run("plan", "--domains", "a,a,a,b", "--json")
    plan = json.loads(out)
    assert (code, plan["ok"], plan["breaches"][0]["nodes"]) == (1, False, [0, 1, 2])


def test_plan_of_the_configured_nodes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't said comes from the settings; one node alone is shown loudly, and is no error."""
    code, out, _ = run("plan")
    assert (code, "NO PARITY: a single node's snapshots survive" in out) == (0, True)
    monkeypatch.setenv("CKPTD_NODES", "a:1, b:1")
    monkeypatch.setenv("CKPTD_SLOTS", "2")
    code, out, _ = run("plan")
    assert (code, "2 nodes, parity 1" in out, "1+1 mirror" in out, "4.00 x payload" in out) == (0, True, True, True)


# ---- what it shows ------------------------------------------------------------------------------------------


def test_status(run: Run, daemon: tuple[str, ...]) -> None:
    """The status names node, rank, steps and memory; `--json` has the same; a healthy job is code 0."""
    code, out, err = run("status", *daemon)
    assert (code, err) == (0, "")
    for word in ("job t, seen from node 0", "127.0.0.1:0", "live", "11 (epoch 1)", "10 (epoch 1)", "snapshots skipped"):
        assert word in out
    code, out, err = run("status", *daemon, "--json")
    status = json.loads(out)
    assert (code, err) == (0, "")
    assert (status["sealed"]["step"], status["persisted"]["step"], status["ok"]) == (11, 10, True)


def test_list(run: Run, daemon: tuple[str, ...]) -> None:
    """Every step that could be restored, where it is, and what a restart would take."""
    code, out, _ = run("list", *daemon)
    assert code == 0
    assert "memory, storage" in out
    assert "a restart would take step 11 (epoch 1): from memory (own)" in out
    code, out, _ = run("list", *daemon, "--json")
    listing = json.loads(out)
    assert [(row["step"], row["where"]) for row in listing["steps"]] == [(11, ["memory"]), (10, ["memory", "storage"])]


def test_verify(run: Run, daemon: tuple[str, ...], config: Config) -> None:
    """All well is code 0; a flipped bit is a row that says so, and code 1."""
    code, out, _ = run("verify", *daemon)
    assert (code, "all is well" in out) == (0, True)
    flip(slot_file(config, 11))
    code, out, _ = run("verify", *daemon, "--json")
    bad = [row for row in json.loads(out)["checked"] if not row["ok"]]
    assert code == 1
    assert [(row["kind"], row["step"]) for row in bad] == [("slot", 11)]
    flip(slot_file(config, 10))
    code, out, _ = run("verify", *daemon)
    assert code == 1
    assert "1 damaged; they count as lost from now on" in out
    assert "pieces fail their checksum" in out
    until(lambda: run("list", *daemon, "--json")[1].count('"memory"') == 0, "both are lost")
    code, out, _ = run("list", *daemon)
    assert code == 0
    assert "a restart would take step 10 (epoch 1): from storage" in out


def test_recover(run: Run, daemon: tuple[str, ...]) -> None:
    """A node that has all it should have says so."""
    code, out, _ = run("recover", *daemon)
    assert (code, out) == (0, "node 0 holds its whole payload of step 11 (epoch 1)\n")
    code, out, _ = run("recover", *daemon, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_doctor(run: Run, daemon: tuple[str, ...], config: Config, tmp_path: Path) -> None:
    """A fit node with a daemon is code 0, with the code's speed measured; what no job could work with is code 1."""
    places = ("--segment-dir", config.segment_dir, "--storage", config.storage)
    code, out, err = run("doctor", *daemon, *places)
    assert (code, err) == (0, "")
    for word in ("erasure code", "GB/s of data", "on tmpfs", "run directory", f"node 0 of job {JOB} answers"):
        assert word in out
    code, out, _ = run("doctor", *daemon, *places, "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (0, True)
    names = ["erasure code", "shared memory", "storage", "run directory", "encryption", "daemon", "groups", "groups"]
    limits = [row["found"] for row in found["checks"] if row["name"] == "memory"]  # and as many cgroups as there are
    assert limits[-1].startswith("the machine has ")
    assert [row["name"] for row in found["checks"] if row["name"] != "memory"] == names
    assert list(config.segment_dir.glob("*doctor*")) + list((tmp_path / "p").rglob("*doctor*")) == []
    (tmp_path / "file").touch()
    code, out, err = run(
        "doctor", *daemon, "--segment-dir", config.segment_dir, "--storage", tmp_path / "file", "--json"
    )
    assert (code, err) == (1, "")
    assert [row["name"] for row in json.loads(out)["checks"] if row["verdict"] == "fail"] == ["storage"]


def test_problems_are_code_1(run: Run, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that is not ok is shown, and the exit code says that something is wrong."""
    config.run_dir.mkdir()
    with daemon_here(config):
        for command in ("status", "list"):
            code, out, _ = run(command, "--run-dir", config.run_dir, "--json")
            assert code == (0 if json.loads(out)["ok"] else 1)
        assert run("list", "--run-dir", config.run_dir)[0] == 1  # nothing could be restored


def test_export(run: Run, daemon: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of the chosen step are handed to the conversion; its failure is code 1, its result is shown."""
    asked: list[dict[str, Any]] = []

    def pretend(module: str, what: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        asked.append(what)
        assert [Path(image).read_bytes() for image in what["images"]] == [bytes_of(Version(1, 11), 0, SIZE)]
        if len(asked) > 1:
            raise CkptdError("no")
        return {"files": ["checkpoint.pt"], "tensors": 3, "bytes": 5000, "left_out": []}

    monkeypatch.setattr(export_command, "convert", pretend)
    code, out, err = run("export", "latest", "out", "--format", "torch", "--part", "model", *daemon)
    assert (code, out, err) == (0, "step 11 as torch: checkpoint.pt in out (3 tensors, 5.0 kB)\n", "")
    assert (asked[0]["format"], asked[0]["directory"], asked[0]["part"]) == (
        "torch",
        str(Path("out").absolute()),
        "model",
    )
    assert run("export", "11", "out", "--json", *daemon) == (1, "", "ckptd: no\n")


@pytest.mark.parametrize(("step", "code"), [("12", 1), ("x", 2), ("-1", 2), ("²", 2), ("", 2), ("9" * 30, 1)])
def test_export_of_a_step_that_is_none(run: Run, daemon: tuple[str, ...], step: str, code: int) -> None:
    """A step that can't be recovered names those that can; what is no step is wrong usage."""
    found, _, err = run("export", *daemon, "--", step, "out")
    assert found == code
    assert len(err.splitlines()) == 1, err
    if code == 1:
        assert "recoverable steps: 11, 10" in err


def test_the_wrong_job(run: Run, daemon: tuple[str, ...]) -> None:
    """Status by another job's name shows whose daemon it is: the socket decides."""
    code, out, _ = run("status", daemon[0], daemon[1], "--job", "other")
    assert code == 0
    assert f"job {JOB}" in out


# ---- a real process -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_serve_until_told_to_stop(tmp_path: Path) -> None:
    """`ckptd serve` says where it is, refuses a second one, ends with 0 at SIGTERM, and `--clean-exit` tidies up."""
    with shm_dir() as shm:
        command = [sys.executable, "-m", "ckptd.daemon.cli", "serve", "--run-dir", str(tmp_path / "r")]
        command += ["--segment-dir", str(shm / "s"), "--clean-exit"]
        environment = os.environ | {"CKPTD_NICE": "0"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as first:
            try:
                assert first.stderr is not None
                socket = tmp_path / "r" / "ckptd.sock"
                until(socket.exists, "the socket")
                second = subprocess.run(
                    command, check=False, capture_output=True, text=True, timeout=60.0, env=environment
                )
                assert second.returncode == 1
                assert (
                    f"ckptd: {tmp_path / 'r'} is in use by another daemon; stop it or choose another --run-dir"
                    in second.stderr
                )
                beside = [*command[:5], str(tmp_path / "other"), *command[6:]]
                third = subprocess.run(
                    beside, check=False, capture_output=True, text=True, timeout=60.0, env=environment
                )
                assert third.returncode == 1
                assert "is in use by another daemon; stop it or choose another segment directory" in third.stderr
                for _ in range(3000):  # a scheduler tells the process and its group, and people are impatient
                    first.send_signal(signal.SIGTERM)
                _, said = first.communicate(timeout=60.0)
            finally:
                first.kill()
        assert first.returncode == 0
        assert f"socket {socket}" in said
        assert "a single node has no parity" in said
        assert "Traceback" not in said
        assert not socket.exists()
        assert not (shm / "s").exists()


@pytest.mark.slow
def test_addresses_that_cannot_be_had(tmp_path: Path) -> None:
    """A node address that is not this machine's is refused in one line, and nothing stays behind."""
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    secret.chmod(0o600)
    with shm_dir() as shm:
        command = [sys.executable, "-m", "ckptd.daemon.cli", "serve", "--run-dir", str(tmp_path / "r"), "--segment-dir"]
        command += [str(shm / "s"), "--nodes", "192.0.2.1:7700,192.0.2.2:7700", "--secret-file", str(secret)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60.0)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("ckptd: cannot listen on 192.0.2.1")
