"""Small saved models to fine-tune, and manifests that do so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peer.manifest import Adapter, Manifest, Model, Personal
from peer.tokenizer import byte_tokenizer
from tests.peer.swarm_in_process import tiny_manifest

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {"vocab_size": 257, "max_position_embeddings": 32, "bos_token_id": 256, "eos_token_id": 256, **SIZES}
LORA = Adapter(kind="lora", rank=4, targets=("q_proj", "v_proj"))


def save_base(folder: Path, seed: int = 5) -> Path:
    """A Llama of 27 thousand parameters with a head of its own, and the byte tokenizer, as a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **CONFIG), dtype=torch.float32)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def tuned(base: Path, adapter: Adapter = LORA, personal: Personal | None = None, **model: Any) -> Manifest:
    """Three peers fine-tune a saved model."""
    return tiny_manifest(3).replace(
        model=Model(path=str(base), seed=3, **model), adapter=adapter, personal=personal or Personal()
    )
