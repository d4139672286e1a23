"""`ckptd import` and `ckptd export` as commands: real conversions, from and to a storage without daemons, and beside one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cluster import daemon_here, shm_dir
from tests.console import Run, console
from tests.exchange.contents import told
from tests.payload import JOB, flip

import ckptd.dcp
from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, UsageError
from ckptd.daemon import bars, converting
from ckptd.dcp import StorageReader
from ckptd.integrations.importing import import_step

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
STATE = {"model.w": torch.randn(40, 30), "model.b": torch.randn(30).bfloat16(), "optim.lr": torch.tensor(0.5)}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line in this process, in an empty directory: exit code, standard output, standard error."""
    return console(monkeypatch, capfd, tmp_path)


def bring(**asked: Any) -> dict[str, Any]:
    """Import in this process into storage "root", job "t"."""
    defaults = {"storage": str(Path("root").absolute()), "job": JOB, "step": 7, "memory": None, "time_s": None}
    return import_step(defaults | asked)


@pytest.mark.slow
def test_in_and_out_without_a_daemon(run: Run) -> None:
    """A file comes in as a step that `list` shows, and its model part goes out for others, in real processes."""
    save_file(STATE, "m.safetensors")
    code, out, err = run("import", "m.safetensors", "--storage", "root", "--job", "base", "--step", 7)
    assert (code, err) == (0, "")
    assert 'ckptd.dcp.load(state, checkpoint_id="ckptd://base/step-7")' in out
    assert [row["step"] for row in json.loads(run("list", "--storage", "root", "--json")[1])["jobs"][0]["steps"]] == [7]
    where = ("--storage", "root", "--job", "base")
    code, out, err = run("export", "latest", "out", "--part", "model", "--max-shard-size", "3kB", *where)
    assert (code, err) == (0, "")
    assert "model-00001-of-00002.safetensors" in out
    found = [load_file(path) for path in Path("out").glob("*.safetensors")]
    assert told(found[0] | found[1]) == told({"w": STATE["model.w"], "b": STATE["model.b"]})
    code, out, err = run("export", "7", "out", *where)
    assert (code, out) == (2, "")
    assert "--force" in err


def test_damage_on_storage_is_found_before_anything_is_written(run: Run) -> None:
    """The step's bytes are held against its manifest first."""
    save_file(STATE, "m.safetensors")
    made = bring(source="m.safetensors")
    flip(Path(made["directory"], "rank-00000.safetensors"), 5000)
    code, out, err = run("export", "latest", "out", "--storage", "root", "--job", JOB)
    assert (code, out) == (1, "")
    assert "does not match its manifest" in err
    assert not Path("out").exists()


def test_steps_and_jobs_that_are_not_there(run: Run) -> None:
    """Those that are are named."""
    save_file(STATE, "m.safetensors")
    bring(source="m.safetensors")
    for step, job, message in (("8", JOB, "recoverable steps: 7"), ("latest", "nobody", "recoverable steps: none")):
        code, _, err = run("export", step, "out", "--storage", "root", "--job", job)
        assert (code, message in err) == (1, True), err


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "latest", "out", "--max-shard-size", "much"),
        ("export", "latest", "out", "--format", "dcp", "--max-shard-size", "5GB"),
        ("import", "file"),
        ("import", "file", "--storage", "root", "--job", "../j"),
        ("import", "file", "--storage", "root", "--memory-limit", "lots"),
    ],
)
def test_wrong_usage_is_code_2_and_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    """Before a process is started."""
    code, out, err = run(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err


def test_an_imported_model_is_what_a_job_starts_from(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon on that storage offers it, `ckptd.dcp.load` reads it, and the next life of the job is a newer one."""
    monkeypatch.setenv("CKPTD_JOB", JOB)
    save_file(STATE, "m.safetensors")
    bring(source="m.safetensors")
    with shm_dir() as folder:
        config = Config(
            job=JOB, run_dir=tmp_path / "run", segment_dir=folder / "s", storage=tmp_path / "root"
        ).validate()
        with daemon_here(config):
            client = Client(config.run_dir, JOB)
            state = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
            ckptd.dcp.load(state, storage_reader=StorageReader(channel=client), no_dist=True)
            assert told(state) == told(STATE)
            client.attach(rank=0, world=1, local_world=1)
            decision = client.decide(world=1)
            assert (decision.version and decision.version.step, decision.epoch) == (7, 2)
            client.close()


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ('import json; print(json.dumps({"error": "found x", "code": 2}))', UsageError, "found x"),
        ('import json; print(json.dumps({"error": "found y", "code": 1}))', CkptdError, "found y"),
        ("raise SystemExit(3)", CkptdError, "ended with code 3"),
        ('print("{}")', CkptdError, "ended with code 0"),
        ('print("a library says hello")', CkptdError, "ended with code 0"),
    ],
)
def test_a_conversion_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, error: type[CkptdError], message: str
) -> None:
    """Its own words where it has some, else how it ended."""
    (tmp_path / "conversion.py").write_text(f"import sys; sys.stdin.readline(); {script}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(error, match=message):
        converting.convert("conversion", {}, "converting", quiet=True)


def test_a_conversion_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bar is fed by its lines, the last of them is the result."""
    lines = [{"done": 5, "total": 10}, {"result": {"files": []}}]
    body = "; ".join(f"print({json.dumps(line)!r})" for line in lines)
    (tmp_path / "conversion.py").write_text(f"import sys; sys.stdin.readline(); {body}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen: list[Any] = []

    def bar(_: str, name: str, ask: Callable[[], bars.Work], **__: Any) -> AbstractContextManager[None]:
        seen.append((name, ask))
        return nullcontext()

    monkeypatch.setattr(bars, "bar", bar)
    assert converting.convert("conversion", {}, "converting", quiet=False) == {"files": []}
    (name, ask) = seen[0]
    assert ask() == {name: lines[0]}
