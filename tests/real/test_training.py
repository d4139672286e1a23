"""Whole trainings with real processes: what a user sees when something dies, and what stock tools see of the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.real.training import SLOWER, Training
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from ckptd.examples.train_gpt import GPT, Options

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),  # one process reads, as we want
]

TINY = Options(layers=1, width=32, heads=2, context=32, batch=2)


def test_five_lines_survive_a_kill_without_any_set_up() -> None:
    """Plain `python train.py` starts its daemon, says so, is killed, and goes on from its own slots, bit for bit."""
    with Training(300) as job:
        expected = job.run("--no-checkpoint")
        losses = job.losses()
        job.run_until(40)
        assert "no daemon ran on this node, so one was started" in (job.folder / "life-2.log").read_text()
        assert job.run() == expected
        restored = job.events("restored")[-1]["step"]
        assert restored >= 40
        assert job.losses() == {step: loss for step, loss in losses.items() if step > restored}


def test_training_outlives_its_daemon() -> None:
    """A daemon that is killed costs snapshots and not the training; its successor finds what was captured."""
    with Training(400, model=SLOWER) as job:
        expected = job.run("--no-checkpoint")
        trainer = job.start()
        job.wait_step(20)
        job.kill_daemon()
        job.start_daemon()
        met = job.events("step")[-1]["step"]
        job.wait_captured(met + 1)
        trainer.kill()
        trainer.wait()
        assert job.run() == expected
        assert job.events("restored")[-1]["step"] > met


def test_a_step_leaves_as_files_without_any_trainer(tmp_path: Path) -> None:
    """`ckptd export` writes the newest step from memory in every format, and stock tools read the same bits."""
    with Training(20) as job:
        job.run()
        for fmt in ("safetensors", "dcp", "torch"):
            done = job.ckptd("export", "latest", str(tmp_path / fmt), "--format", fmt, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["step"] == 20
        assert not list((job.segments / "restore").glob("*"))
        tensors = load_file(tmp_path / "safetensors" / "model.safetensors")
        model = GPT(TINY)
        model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        pickled = torch.load(tmp_path / "torch" / "checkpoint.pt", weights_only=True)
        assert pickled.keys() == tensors.keys()
        assert all(torch.equal(pickled[name], tensors[name]) for name in tensors)
        blank = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        load(blank, checkpoint_id=tmp_path / "dcp", no_dist=True)
        assert all(torch.equal(blank[name], tensors[name]) for name in tensors)


_READ_ON_TWO = """
import sys, torch, torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
rank, store, directory, expected = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
wanted = torch.load(expected, weights_only=True)
state = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
load(state, storage_reader=HuggingFaceStorageReader(directory))
assert all(torch.equal(state[name], wanted[name]) for name in wanted)
dist.destroy_process_group()
"""


def test_stock_readers_open_a_persisted_step_of_a_split_state(tmp_path: Path) -> None:
    """What two DDP ranks captured in halves loads whole with torch's own reader, on one rank and on two."""
    with Training(20, ranks=2, STORAGE=str(tmp_path / "storage"), PERSIST_EVERY="20") as job:
        job.run()
        (step,) = (path for path in (tmp_path / "storage" / "t").iterdir() if path.name.startswith("step-"))
        halves = [load_file(path) for path in sorted(step.glob("*.safetensors"))]
        assert len(halves) == 2
        shapes = {f"model.{name}": tensor for name, tensor in GPT(TINY).state_dict().items()}
        state = {name: torch.zeros_like(tensor) for name, tensor in shapes.items()}
        load(state, storage_reader=HuggingFaceStorageReader(str(step)), no_dist=True)
        exported = job.ckptd("export", "20", str(tmp_path / "whole"), "--format", "torch")
        assert exported.returncode == 0, exported.stderr
        whole = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
        assert all(torch.equal(state[name], whole[name]) for name in state)
        torch.save({name: whole[name] for name in state}, tmp_path / "expected.pt")
        arguments = [str(tmp_path / "store"), str(step), str(tmp_path / "expected.pt")]
        readers = [subprocess.Popen([sys.executable, "-c", _READ_ON_TWO, str(rank), *arguments]) for rank in range(2)]
        assert [reader.wait(100) for reader in readers] == [0, 0]
