"""What a rank shows of itself, with the torch in use: its private names are there; without them it says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from ckptd.ckpt.beat import PHASES, BeatReader
from ckptd.ckpt.errors import UsageError
from ckptd.daemon.observe.handlers import STATUS, ask
from ckptd.daemon.observe.recorder import read_status
from ckptd.integrations import torch_private
from ckptd.integrations.signals import Signals


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def signals() -> Iterator[Signals]:
    made = Signals()
    yield made
    made.close()


@pytest.mark.usefixtures("alone")
def test_torch_has_every_private_name(tmp_path: Path, signals: Signals) -> None:
    """With the torch in use nothing is missing: groups are listed, and the recorder's status is what is read."""
    assert torch_private.missing({}) == []
    assert [group.ranks for group in torch_private.groups()] == [(0,)]
    signals.begin(tmp_path / "watch", 0, 1, 0)
    dist.barrier()
    newest = read_status(ask(tmp_path / "watch" / "0.fr", STATUS, 5.0))
    assert newest.progress[max(newest.progress)][0] >= 1
    assert newest.entries[-1].name == torch_private.groups()[0].name
    assert (tmp_path / "watch").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_the_end_of_a_rank_waits_for_nothing(tmp_path: Path) -> None:
    """Neither closing at once nor the end of the process waits for torch's server, which would wait for its own thread.

    And it can't be asked any more once the interpreter is torn down: a handler that wants its lock then aborts the process.
    """
    lines = (
        "from pathlib import Path; from ckptd.integrations.signals import Signals; s = Signals()",
        f"s.begin(Path({str(tmp_path)!r}), 0, 1, 0); s.close(); s.begin(Path({str(tmp_path)!r}), 0, 2, 0); s.close()",
    )
    done = subprocess.run(
        [sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Server listening") == 1
    assert not (tmp_path / "0.fr").exists()


@pytest.mark.usefixtures("alone")
def test_groups_are_written_down_when_they_are_made(tmp_path: Path, signals: Signals) -> None:
    """At the next step after a new group its members are known to the daemon."""
    signals.begin(tmp_path, 0, 1, 0)
    dist.new_group([0])
    signals.step(1)
    content = json.loads((tmp_path / "0.groups").read_text())
    assert [group["runs"] for group in content["groups"]] == [[[0, 1, 1]]] * 2


@pytest.mark.usefixtures("alone")
def test_without_private_names_less_is_seen_and_that_is_said(
    tmp_path: Path, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch without them trains as before; the steps and the whole job's group are still shown."""
    monkeypatch.setattr(torch_private, "torch_c10d", lambda: None)
    monkeypatch.setattr(torch_private, "_known", lambda: None)
    signals.begin(tmp_path, 0, 1, 0)
    signals.step(3)
    assert BeatReader(tmp_path / "0.beat").look().step == 3
    content = json.loads((tmp_path / "0.groups").read_text())
    assert [group["runs"] for group in content["groups"]] == [[[0, 1, 1]]]
    assert any("_WorkerServer" in text for text in content["remarks"])
    assert not (tmp_path / "0.fr").exists()


def test_what_torch_reads_is_set_where_it_still_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small recorder, unless somebody has chosen a size, or GPUs are here, or it is too late, which is said."""
    fresh: dict[str, str] = {}
    assert torch_private.prepare(fresh) == ""
    assert fresh == {"TORCH_FR_BUFFER_SIZE": "128"}
    chosen = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "9000"}
    assert torch_private.prepare(chosen) == ""
    assert "TORCH_FR_BUFFER_SIZE" not in chosen
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    late: dict[str, str] = {}
    assert "import ckptd.Checkpointer earlier" in torch_private.prepare(late)
    assert late == {}
    assert not torch_private.is_recording({"TORCH_FR_BUFFER_SIZE": "0"})


def test_a_phase_is_left_as_it_was_entered(tmp_path: Path, signals: Signals) -> None:
    """Also when what is done in it fails; an unknown one is refused; nothing is shown where no daemon looks."""
    with signals.phase("eval"):
        pass
    signals.begin(tmp_path, 0, 1, 0)
    signals.step(1)
    reader = BeatReader(tmp_path / "0.beat")

    def fail() -> None:
        with signals.phase("eval"):
            assert PHASES[reader.look().phase] == "eval"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert PHASES[reader.look().phase] == "train"
    with pytest.raises(UsageError, match="expected one of train"), signals.phase("lunch"):
        pass


def test_a_directory_that_can_t_be_had_ends_no_training(tmp_path: Path, signals: Signals) -> None:
    """The rank goes on unwatched."""
    (tmp_path / "file").touch()
    signals.begin(tmp_path / "file", 0, 1, 0)
    signals.step(1)
    signals.reached()
