"""The example's data are dealt out once and can be resumed; its command line is its options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptd.examples.train_gpt import GPT, Options, Text, digest, parse, standard_library

SMALL = Options(layers=1, width=32, heads=2, context=16, batch=3)


def test_the_standard_library_is_real_text_and_always_the_same() -> None:
    text = standard_library(200_000)
    assert len(text) == 200_000
    assert text == standard_library(200_000)
    assert b"import " in text


def test_the_ranks_get_different_windows_and_together_all_of_one_process() -> None:
    text = bytes(range(256)) * 200
    both = [Text(text, SMALL, rank, 2).next_batch() for rank in (0, 1)]
    alone = Text(text, Options(**{**SMALL.__dict__, "batch": 6}), 0, 1).next_batch()
    dealt = {tuple(window.tolist()) for batch in both for window in batch}
    assert len(dealt) == 6
    assert dealt == {tuple(window.tolist()) for window in alone}


def test_the_data_go_on_where_they_were() -> None:
    text = bytes(range(256)) * 200
    data, resumed = Text(text, SMALL, 1, 2), Text(text, SMALL, 1, 2)
    data.next_batch()
    resumed.load_state_dict(data.state_dict())
    assert torch.equal(resumed.next_batch(), data.next_batch())


def test_the_digest_sees_every_bit() -> None:
    torch.manual_seed(1)
    model = GPT(SMALL)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, SMALL.context + 1, dtype=torch.long)).backward()
    optimizer.step()
    before = digest(model, optimizer)
    assert before == digest(model, optimizer)
    for tensor in (model.norm.bias.detach(), optimizer.state[model.norm.bias]["exp_avg_sq"]):
        saved = tensor.clone()
        tensor.view(torch.int32)[-1] ^= 1
        assert digest(model, optimizer) != before
        tensor.copy_(saved)
    assert digest(model, optimizer) == before


def test_every_option_is_on_the_command_line() -> None:
    options = parse(["--steps=7", "--lr=0.5", "--events=/tmp/x", "--no-checkpoint"])
    assert options == Options(steps=7, lr=0.5, events="/tmp/x", checkpoint=False)
    assert parse([]) == Options()


@pytest.mark.slow
def test_it_trains_as_a_plain_script(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "train_gpt.py"
    command = [sys.executable, str(script), "--no-checkpoint", "--steps=3", "--layers=1", "--width=32", "--heads=2"]
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    subprocess.run([*command, f"--events={tmp_path / 'run'}"], check=True, timeout=60, env=alone)
    told = [json.loads(line) for line in (tmp_path / "run.rank-0.jsonl").read_text().splitlines()]
    assert [line["event"] for line in told] == ["start", "restored", "step", "step", "step", "done"]
    losses = [float.fromhex(line["loss"]) for line in told if line["event"] == "step"]
    assert 4 < losses[0] < 7, "an untrained model of bytes knows nothing: the loss is about log(256)"
