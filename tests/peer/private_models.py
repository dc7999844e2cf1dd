"""Small models for tests of `--dp`."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT2 = {"n_embd": 24, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
KINDS = {
    "llama, tied": {"model_type": "llama", **LLAMA, "max_position_embeddings": 32, "tie_word_embeddings": True},
    "llama, untied": {"model_type": "llama", **LLAMA, "max_position_embeddings": 32, "tie_word_embeddings": False},
    "llama, its end is its padding": {
        **{"model_type": "llama", **LLAMA, "max_position_embeddings": 32, "tie_word_embeddings": True},
        **{"pad_token_id": 256, "eos_token_id": 256, "bos_token_id": 256},
    },
    "gpt2, tied, with dropout": {"model_type": "gpt2", **GPT2, "loss_type": "ForCausalLM"},
}


def model(kind: str = "llama, tied", vocabulary: int = 257):
    """A causal language model in training mode, the same for the same arguments."""
    config = dict(KINDS[kind])
    settings = AutoConfig.for_model(config.pop("model_type"), vocab_size=vocabulary, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(settings, dtype=torch.float32).train()
