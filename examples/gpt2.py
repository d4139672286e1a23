"""The model of the examples for frameworks: a GPT-2 of two layers from a config, nothing is downloaded."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ckptd.examples.tokens import Tokens


def tiny_gpt2(seed: int) -> GPT2LMHeadModel:
    """With random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=Tokens.KINDS, n_positions=Tokens.LENGTH, n_embd=32, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
