"""A model that was trained beside ckptd is opened by `transformers`' own `from_pretrained`, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exchange.contents import told
from tests.fakes import capture_to

from ckptd.ckpt.model import Version
from ckptd.integrations.exchange.readers import content_at
from ckptd.integrations.exchange.steps import content_of
from ckptd.integrations.exchange.writers import write

transformers = pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard_bytes", [0, 20_000])
def test_an_exported_model_is_a_pretrained_one(tmp_path: Path, shard_bytes: int) -> None:
    """One file or shards with an index, tied weights included: the same parameters, and the same logits."""
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=32)
    model: Any = transformers.GPT2LMHeadModel(config).eval()
    capture_to(tmp_path / "image", {"model": model}, Version(1, 12))
    target = tmp_path / "out"
    target.mkdir()
    content = content_of([tmp_path / "image"]).select("model", "")
    write("safetensors", target, content, shard_bytes=shard_bytes, add=lambda _: None)
    assert len(list(target.glob("*.safetensors"))) == (2 if shard_bytes else 1)
    config.save_pretrained(target)
    loaded: Any = transformers.GPT2LMHeadModel.from_pretrained(target, local_files_only=True).eval()
    assert told(dict(loaded.named_parameters())) == told(dict(model.named_parameters()))
    tokens = torch.arange(8)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pretrained_model_comes_in(tmp_path: Path) -> None:
    """What `save_pretrained` writes, in shards, is read with every name."""
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=32, n_positions=16)
    model: Any = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    with content_at(tmp_path, None, None) as content:
        names = {tensor.name for tensor in content.tensors}
    assert {name for name, _ in model.named_parameters()} <= names
