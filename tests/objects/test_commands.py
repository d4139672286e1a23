"""`list`, `verify`, `gc`, `export` and `import` on a real S3 server, without daemons; and a restore by one."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cluster import daemon_here, shm_dir
from tests.console import Run, console
from tests.exchange.contents import told
from tests.objects.s3 import Fault, Gate
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load

from ckptd import Checkpointer
from ckptd.ckpt.bucket import Bucket
from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, StorageError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.objects import Objects
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.retention import Rule
from ckptd.ckpt.shelf_objects import ObjectShelf
from ckptd.ckpt.storage import Storage
from ckptd.daemon import export_command, import_command
from ckptd.daemon.gc_command import outlook
from ckptd.integrations.export import export
from ckptd.integrations.importing import import_step

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
STATE = {"w": torch.randn(300, 500), "b": torch.randn(30).bfloat16()}
"""Its image goes up in two parts and comes down in two ranges."""
READ = r"^GET [^?]*rank-00000\.safetensors"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objects.__init__, "__defaults__", (2 * PIECE,))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, gate: Gate) -> Run:
    """The command line in this process, conversions included, in an empty directory."""
    del gate  # the environment leads to it
    conversions = {"ckptd.integrations.export": export, "ckptd.integrations.importing": import_step}

    def convert(module: str, asked: dict[str, Any], _: str, *, quiet: bool) -> dict[str, Any]:
        del quiet
        return conversions[module](asked)

    for command in (export_command, import_command):
        monkeypatch.setattr(command, "convert", convert)
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return console(monkeypatch, capfd, tmp_path / "here")


@pytest.fixture
def bucket(gate: Gate, url: str) -> Iterator[Bucket]:
    del gate
    with contextlib.closing(Bucket(url)) as made:
        yield made


def persist(url: str, *steps: int, size: int = 1000) -> None:
    """Steps of job j, of one rank."""
    raw = bytes(range(256)) * (size // 256 + 1)
    image = Image(0, len(raw), digest_of(sums_of(raw), len(raw)))
    with contextlib.closing(Storage(url, "j")) as storage:
        for step in steps:
            storage.write(Version(1, step), image, memoryview(raw))
            storage.publish(Version(1, step), [image])


def listed(run: Run, url: str, job: str) -> dict[int, bool]:
    """Which steps there are, and whether each is whole."""
    found = json.loads(run("list", "--storage", url, "--job", job, "--json")[1])
    return {row["step"]: row["complete"] for row in found["jobs"][0]["steps"]}


def here() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def bring(run: Run, url: str, job: str = "j") -> tuple[int, str, str]:
    save_file(STATE, "m.safetensors")
    return run("import", "m.safetensors", "--storage", url, "--job", job, "--step", 7)


def dcp_of(directory: Path) -> dict[str, Any]:
    found = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    load(found, checkpoint_id=directory, no_dist=True)
    return found


OPENED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "safetensors": lambda path: load_file(path / "model.safetensors"),
    "dcp": dcp_of,
    "torch": lambda path: torch.load(path / "checkpoint.pt", weights_only=True),
}


def test_into_a_bucket_and_out_again(run: Run, url: str, gate: Gate, tmp_path: Path) -> None:
    """A file becomes a step of a bucket, is listed and checked, and goes out in every format; nothing else stays."""
    code, out, err = bring(run, url)
    assert (code, err) == (0, "")
    assert f"{url}/j/step-000000000007.e0001" in out
    assert gate.count("^PUT .*partNumber=") == 2
    assert listed(run, url, "j") == {7: True}
    found = json.loads(run("verify", "--storage", url, "--json")[1])
    assert [(row["job"], row["step"], row["ok"]) for row in found["checked"]] == [("j", 7, True)]
    for fmt, opened in OPENED.items():
        code, _, err = run("export", "latest", fmt, "--format", fmt, "--storage", url, "--job", "j")
        assert (code, err) == (0, "")
        assert told(opened(Path(fmt))) == told(STATE)
    assert here() == sorted(["m.safetensors", *OPENED])
    assert list((tmp_path / "tmp").iterdir()) == []
    code, _, err = bring(run, url)
    assert (code, "has 1 steps on" in err) == (2, True)


def test_what_may_go_from_a_bucket(run: Run, url: str) -> None:
    """Shown first, then removed, by number and by age; what is not ours stays."""
    persist(url, 10, 20, 30, 40)
    with contextlib.closing(Bucket(url)) as bucket:
        note = bucket.key("j", "step-000000000010.e0001", "notes.txt")
        bucket.put(note, b"theirs")
        where = ("gc", "--storage", url, "--job", "j", "--keep-last", 2)
        code, out, err = run(*where, "--dry-run")
        assert (code, err) == (0, "")
        assert [line.split()[1] for line in out.splitlines() if "would go" in line] == ["10", "20"]
        assert listed(run, url, "j") == {10: True, 20: True, 30: True, 40: True}
        assert "0 steps, 0 leftovers" in run(*where, "--older-than", "1h", "--yes")[1]
        found = json.loads(run(*where, "--yes", "--json")[1])
        assert ([row["step"] for row in found["steps"]], found["removed"]) == ([10, 20], True)
        assert listed(run, url, "j") == {30: True, 40: True}
        assert bucket.get(note, 0, 6) == b"theirs"


def test_what_writers_have_left_in_a_bucket(run: Run, url: str, gate: Gate, bucket: Bucket) -> None:
    """Images without a manifest and uploads that nobody completed: left alone while they are young, then removed."""
    persist(url, 10)
    raw = bytes(7 * PIECE)
    image = Image(0, len(raw), digest_of(sums_of(raw), len(raw)))
    with contextlib.closing(Storage(Objects(bucket, "j"), "j")) as storage:
        gate.spoil(Fault("^PUT .*rank-00000.*partNumber=3", 403))
        with pytest.raises(StorageError):
            storage.write(Version(1, 20), image, memoryview(raw))
        gate.heal()
        small = Image(1, 1000, digest_of(sums_of(raw[:1000]), 1000))
        storage.write(Version(1, 20), small, memoryview(raw[:1000]))
        code, out, _ = run("gc", "--storage", url, "--job", "j", "--yes")
        assert (code, "is written now" in out) == (0, True)
        shelf = ObjectShelf(Bucket(url))
        (left,) = outlook(shelf, "j", Rule(), time.time() + 7200.0).leftovers
        assert left.nbytes > 2 * PIECE
        storage.write(Version(1, 20), Image(2, 1000, small.digest), memoryview(raw[:1000]))
        with pytest.raises(StorageError, match="was written to a moment ago; it stays"):
            shelf.discard(left)
        (left,) = shelf.leftovers("j")
        for _ in range(2):
            shelf.discard(left)
        assert shelf.leftovers("j") == []
        assert [step.version.step for step in shelf.published("j")] == [10]
        name = bucket.root.partition("/")[0]
        assert not bucket.ask("look", "call_s3", "list_multipart_uploads", Bucket=name).get("Uploads")


@pytest.mark.parametrize(
    "command",
    [("list",), ("verify",), ("gc", "--yes"), ("export", "latest", "out"), ("import", "m.safetensors")],
    ids=lambda command: command[0],
)
def test_a_bucket_or_job_that_is_not_there(run: Run, url: str, command: tuple[str, ...]) -> None:
    """One line that says what to check, and nothing is written; an import needs the bucket alone."""
    save_file({"w": torch.zeros(2)}, "m.safetensors")
    code, out, err = run(*command, "--storage", "s3://nowhere/prefix", "--job", "j")
    if command[0] == "verify":
        assert (code, "check the name of the bucket" in " ".join(out.split())) == (1, True)
    else:
        assert (code, len(err.splitlines())) == (1, 1)
        assert re.search("check the name of the bucket|check that the bucket exists", err)
    assert here() == ["m.safetensors"]
    if command[0] in ("gc", "export"):
        code, _, err = run(*command, "--storage", url, "--job", "gtp")
        assert (code, len(err.splitlines())) == (1, 1)
        assert "recoverable steps: none" in err or "are the URL and the job's name right?" in err


def test_credentials_that_expire_in_the_middle_of_a_command(run: Run, url: str, gate: Gate, tmp_path: Path) -> None:
    """It ends at once and says so; nothing is half there, and the same command works when they are good again."""
    gate.spoil(Fault("^PUT .*partNumber=2", 403))
    code, _, err = bring(run, url)
    assert (code, "check the storage's credentials" in err) == (1, True)
    gate.heal()
    assert ObjectShelf(Bucket(url)).jobs() == []
    assert bring(run, url)[0] == 0
    gate.spoil(Fault(READ, 403, skip=1))
    code, _, err = run("export", "latest", "out", "--storage", url, "--job", "j")
    assert (code, "check the storage's credentials" in err) == (1, True)
    assert here() == ["m.safetensors"]
    assert list((tmp_path / "tmp").iterdir()) == []
    gate.heal()
    persist(url, 8, 9)
    gate.spoil(Fault(r"^GET .*step-000000000008.*manifest\.json", 403))
    code, _, err = run("gc", "--storage", url, "--job", "j", "--keep-last", 1, "--yes")
    assert (code, "check the storage's credentials" in err) == (1, True)
    gate.heal()
    assert listed(run, url, "j") == {7: True, 8: True, 9: True}


def test_a_step_that_is_removed_in_part(run: Run, url: str, bucket: Bucket) -> None:
    """It is shown as broken, and nobody takes it for the newest."""
    assert bring(run, url)[0] == 0
    persist(url, 8)
    bucket.delete([bucket.key("j", "step-000000000008.e0001", "rank-00000.safetensors")])
    assert listed(run, url, "j") == {7: True, 8: False}
    code, out, _ = run("verify", "--storage", url)
    assert (code, "is missing" in " ".join(out.split())) == (1, True)
    assert "step 7" in run("export", "latest", "out", "--storage", url, "--job", "j")[1]
    code, _, err = run("export", "8", "other", "--storage", url, "--job", "j")
    assert (code, "is missing; it was removed in part" in err) == (1, True)


def test_names_that_lead_elsewhere(run: Run, url: str, bucket: Bucket) -> None:
    """Keys of a bucket may hold anything: `..` and the like are no jobs, steps or files of ours, and are left alone."""
    persist(url, 7, 8)
    strange = [f"{name}/step-000000000009.e0001/manifest.json" for name in ("..", "j/..", "j/../j", "../../etc", ".j")]
    strange += ["j/step-000000000007.e0001/../rank-00000.safetensors", "j/step-000000000007.e0001/a/rank-00000.sums"]
    name, _, prefix = bucket.root.partition("/")
    for key in strange:
        bucket.ask("put", "call_s3", "put_object", Bucket=name, Key=f"{prefix}/{key}", Body=b"{}")
    found = json.loads(run("list", "--storage", url, "--json")[1])
    assert [(item["job"], [row["step"] for row in item["steps"]]) for item in found["jobs"]] == [("j", [8, 7])]
    assert run("gc", "--storage", url, "--job", "j", "--keep-last", 1, "--yes")[0] == 0
    assert listed(run, url, "j") == {8: True}
    listing = bucket.ask("look", "call_s3", "list_objects_v2", Bucket=name)["Contents"]
    assert {f"{prefix}/{key}" for key in strange} <= {item["Key"] for item in listing}


def test_the_doctor_looks_at_a_bucket(run: Run, url: str, gate: Gate, tmp_path: Path) -> None:
    """At that of the URL: an object comes and goes."""
    where = ("--run-dir", tmp_path / "run", "--segment-dir", tmp_path / "s")
    rows = json.loads(run("doctor", "--storage", url, *where, "--json")[1])["checks"]
    assert f"{url}: an object was written, read and removed" in [row["found"] for row in rows]
    assert gate.count(r"^PUT .*\.doctor-") == 1


class Training:
    """A model whose image comes down in several ranges."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Linear(400, 400)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def step(self) -> None:
        self.model(torch.ones(1, 400)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def weights(self) -> torch.Tensor:
        return self.model.weight.detach().clone()


@contextlib.contextmanager
def checkpointing(url: str, folder: Path, training: Training) -> Iterator[Checkpointer]:
    """A Checkpointer with a daemon that has nothing in memory."""
    with shm_dir() as segments:
        config = Config(job="j", run_dir=folder, segment_dir=segments / "s", storage=url, persist_every=1).validate()
        with daemon_here(config):
            client = Client(config.run_dir, "j")
            with Checkpointer(
                job="j", channel=client, on_error="raise", model=training.model, optimizer=training.optimizer
            ) as made:
                yield made


def test_a_restore_whose_credentials_expire_in_the_middle(url: str, gate: Gate, tmp_path: Path) -> None:
    """The model is as it was before; with good ones it is the one that was persisted, bit by bit."""
    first = Training(1)
    with checkpointing(url, tmp_path / "a", first) as ck:
        ck.restore()
        first.step()
        ck.step(1)
        assert ck.wait("persisted", 30.0) == "persisted"
    second = Training(2)
    before = second.weights
    with checkpointing(url, tmp_path / "b", second) as ck:
        gate.spoil(Fault(READ, 403, skip=1))
        with pytest.raises(CkptdError, match="check the storage's credentials"):
            ck.restore()
        assert torch.equal(second.weights, before)
        assert not second.optimizer.state
        gate.heal()
        assert ck.restore() == 1
        assert torch.equal(second.weights, first.weights)
