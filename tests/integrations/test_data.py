"""torchdata's StatefulDataLoader and plain loaders: no sample is seen twice or skipped, whenever a trainer dies."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cluster import daemon_here, shm_dir
from tests.fakes import FakeChannel
from tests.integrations.data_job import EPOCHS, SAMPLES, STEPS, STEPS_AN_EPOCH, WORLD
from tests.integrations.launch import ROOT
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import StateError
from ckptd.integrations.checkpointer import Checkpointer

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 under torch 2.13
PAGE = (ROOT / "docs" / "data.md").read_text()
LENGTHS = {"shuffled": 6, "distributed": 3, "stream": 6}
"""The loaders of the tests in one process, and the batches of an epoch."""
KILLS = (-4, STEPS_AN_EPOCH)
"""In the middle of the first epoch, and at its very end."""


class Squares(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index)])


class Stream(IterableDataset[torch.Tensor]):
    """A stream that says where it is in values of every kind that torchdata hands through."""

    def __init__(self) -> None:
        self.at = 0
        self.seen = torch.zeros(11, dtype=torch.int64)

    def __iter__(self) -> Stream:
        if self.at == 11:
            self.at = 0
        return self

    def __next__(self) -> torch.Tensor:
        if self.at == 11:
            raise StopIteration
        self.at += 1
        self.seen[self.at - 1] += 1
        return torch.tensor([float(self.at - 1)])

    def state_dict(self) -> dict[Any, Any]:
        return {"at": self.at, "seen": self.seen, "raw": b"\x80\x04.", "name": "stream", ("a", 1): {2, 3}}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        assert state["raw"] == b"\x80\x04."  # opaque, whatever they look like
        assert state["a", 1] == {2, 3}
        self.at, self.seen = state["at"], state["seen"]


def loader_of(kind: str) -> Any:
    if kind == "stream":
        return StatefulDataLoader(Stream(), batch_size=2, generator=torch.Generator())
    if kind == "shuffled":
        return StatefulDataLoader(Squares(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(4))
    sampler: DistributedSampler[int] = DistributedSampler(Squares(), 2, 0)
    return StatefulDataLoader(Squares(), batch_size=2, sampler=sampler, generator=torch.Generator())


class Life:
    """A training with a loader: each step's batch, and its loss, which dropout has a part in."""

    def __init__(self, kind: str, channel: FakeChannel, seed: int = 1) -> None:
        torch.manual_seed(seed)
        self.loader, self.length = loader_of(kind), LENGTHS[kind]
        self.model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.ck = Checkpointer(job="job", channel=channel, model=self.model, optimizer=self.optimizer, data=self.loader)

    def train(self, steps: int, *, restored: int) -> list[tuple[list[float], str]]:
        found, step = [], self.ck.restore()
        assert step == restored
        while step < steps:
            epoch = step // self.length
            self.loader.generator.manual_seed(epoch)
            if isinstance(self.loader.sampler, DistributedSampler):
                self.loader.sampler.set_epoch(epoch)
            for batch in self.loader:
                loss = self.model(batch).square().mean()
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                found.append((batch.flatten().tolist(), loss.item().hex()))
                step += 1
                self.ck.step(step)
                if step == steps:
                    break
        self.ck.close()
        return found


@pytest.mark.parametrize("kind", ["shuffled", "distributed", "stream"])
@pytest.mark.parametrize("last", ["first", "middle", "end"])
def test_a_loader_goes_on_after_the_captured_step(tmp_path: Path, kind: str, last: str) -> None:
    """In the middle of an epoch as at its end: the same batches and losses as without a restart, for two more epochs."""
    length = LENGTHS[kind]
    last_step = {"first": 1, "middle": length + 2, "end": length}[last]
    (tmp_path / "whole").mkdir()
    whole = Life(kind, FakeChannel(tmp_path / "whole")).train(3 * length, restored=0)
    (tmp_path / "cut").mkdir()
    before = Life(kind, FakeChannel(tmp_path / "cut")).train(last_step, restored=0)
    after = Life(kind, FakeChannel(tmp_path / "cut"), seed=99).train(3 * length, restored=last_step)
    assert before + after == whole


def test_a_loader_without_a_generator_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It draws from the numbers that dropout draws from, once more after a restart."""
    with Checkpointer(job="job", channel=FakeChannel(tmp_path), data=StatefulDataLoader(Squares())):
        pass
    assert [record.message.split(";")[-1] for record in caplog.records] == [" give it generator=torch.Generator()"]


def test_another_number_of_workers_is_refused_before_anything_changes(tmp_path: Path) -> None:
    """torchdata would fail without words, when the next iteration begins."""
    life = Life("shuffled", FakeChannel(tmp_path))
    life.train(2, restored=0)
    more = StatefulDataLoader(Squares(), batch_size=2, num_workers=1, shuffle=True, generator=torch.Generator())
    objects: dict[str, Any] = {"model": life.model, "optimizer": life.optimizer, "data": more}
    with (
        Checkpointer(job="job", channel=FakeChannel(tmp_path), **objects) as ck,
        pytest.raises(StateError, match=r"data \(num_workers=0 in the snapshot, 1 here\)"),
    ):
        ck.restore()
    assert more.next_iter_state is None


def snippet(name: str) -> str:
    """The Python of a section of the page."""
    section = PAGE.partition(f"## {name}\n")[2].partition("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("die_after", [2, 3, 5])
@pytest.mark.parametrize("section", ["StatefulDataLoader", "A plain DataLoader"])
def test_the_lines_of_the_page_see_every_sample_once(tmp_path: Path, section: str, die_after: int) -> None:
    """As they are printed, but without workers; the trainer dies in the middle or at the end of an epoch of three steps."""
    seen: list[float] = []
    code = snippet(section).replace("num_workers=2", "num_workers=0").replace("batch_size=8", "batch_size=2")

    def train(batch: torch.Tensor) -> None:
        seen.extend(batch.flatten().tolist())

    def dies(batch: torch.Tensor) -> None:
        if len(seen) == 2 * die_after:
            raise InterruptedError
        train(batch)

    def checkpointer(*, model: nn.Module, optimizer: object, **data: Any) -> Checkpointer:
        return Checkpointer(job="job", channel=FakeChannel(tmp_path), model=model, **data)

    names: dict[str, Any] = {
        "torch": torch, "itertools": itertools, "StatefulDataLoader": StatefulDataLoader, "DataLoader": DataLoader,
        "DistributedSampler": partial(DistributedSampler, num_replicas=1, rank=0), "Checkpointer": checkpointer,
        "dataset": Subset(Squares(), range(6)), "model": nn.Linear(1, 1), "optimizer": None, "steps": 6,
    }  # fmt: skip
    first, second = names | {"train": dies}, names | {"train": train}
    with pytest.raises(InterruptedError):
        exec(code, first)  # noqa: S102
    first["ck"].close()
    exec(code, second)  # noqa: S102
    second["ck"].close()
    assert [sorted(seen[:6]), sorted(seen[6:])] == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 2


@pytest.mark.slow
def test_no_sample_is_lost_or_repeated_by_kills_of_ranks_with_workers() -> None:
    """Two ranks of two workers each, a real daemon, SIGKILL in the middle and at the end of an epoch."""
    with shm_dir() as folder:
        config = Config(
            job="data", node=0, nodes=("127.0.0.1:0",), run_dir=folder / "run", segment_dir=folder / "memory", parity=0
        )
        with daemon_here(config):
            command = [sys.executable, "-m", "tests.integrations.data_job", str(folder), *map(str, KILLS)]
            own = {"CKPTD_RUN_DIR": str(folder / "run"), "CKPTD_JOB": "data", "GLOO_SOCKET_IFNAME": "lo"}
            path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | own | {"PYTHONPATH": path}, timeout=100.0, check=False,
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        lives = [[steps_of(folder, life, rank) for rank in range(WORLD)] for life in range(len(KILLS) + 2)]
    whole = lives[0]
    begun = [min(life[0], default=0) for life in lives[1:]]
    assert 1 < begun[1] <= -KILLS[0] + 1
    assert begun[2] == KILLS[1] + 1
    for life in lives[1:]:
        for rank in range(WORLD):
            assert life[rank] == {step: whole[rank][step] for step in life[rank]}
    for epoch in range(EPOCHS):
        steps = range(epoch * STEPS_AN_EPOCH + 1, (epoch + 1) * STEPS_AN_EPOCH + 1)
        assert sorted(sample for rank in whole for step in steps for sample in rank[step][0]) == list(range(SAMPLES))
    assert set().union(*(life[0] for life in lives[1:])) == set(range(1, STEPS + 1))


def steps_of(folder: Path, life: int, rank: int) -> dict[int, tuple[list[int], str]]:
    """What a rank wrote in a life, by step: its samples and its loss."""
    lines = (folder / f"life-{life}.rank-{rank}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {entry["step"]: (entry["samples"], entry["loss"]) for entry in found}
