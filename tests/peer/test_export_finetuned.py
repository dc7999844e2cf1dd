"""Exports of fine-tuned runs load with peft and transformers and compute what the peer computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dht.errors import ConfigError
from peer.export import export
from peer.manifest import Personal
from peer.modelcard import RunFacts
from peer.state import CanonicalState
from peer.trainer import Trainer
from tests.peer.finetune_models import LORA, save_base, tuned
from tests.peer.swarm_in_process import make_trainer

IDS = torch.arange(40, 60)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def trained(manifest) -> tuple[Trainer, CanonicalState, RunFacts]:
    """A peer that has trained, and the state that everyone holds if its parameters are certified as they are."""
    trainer = make_trainer(manifest, 0)
    trainer.train(3)
    state = CanonicalState.genesis(trainer.vector.schema(manifest.run_id), trainer.local().copy(), 0.1)
    return trainer, state, RunFacts(3, state.root())


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own, when it loads one
def test_an_adapter_is_loaded_by_peft_on_its_base(base, tmp_path):
    manifest = tuned(base)
    trainer, state, facts = trained(manifest)
    folder = export(tmp_path / "out", state, manifest, facts)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, str(base))
    assert not (folder / "model.safetensors").exists()
    expected = logits(trainer.model)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(logits(plain), expected)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(plain, folder)), expected)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), expected)
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"] == [97, 98]
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert "rank 4" in card.text and "load it with peft" in card.text


@pytest.mark.parametrize("quantized", ["none", "nf4"])
def test_merged_it_is_a_plain_model(base, tmp_path, quantized):
    if quantized == "nf4":
        pytest.importorskip("bitsandbytes")
    manifest = tuned(base, quantized=quantized)
    trainer, state, facts = trained(manifest)
    folder = export(tmp_path / "out", state, manifest, facts, merge=True)
    assert not (folder / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    tolerance = 1e-5 if quantized == "none" else 0.5  # the base it was trained over was a rounded one
    torch.testing.assert_close(logits(loaded), logits(trainer.model), rtol=0, atol=tolerance)
    text = ModelCard.load(folder / "README.md").text
    assert ("NF4" in text) == (quantized == "nf4")


def test_personal_parameters_are_the_peers_own_or_left_out(base, tmp_path):
    manifest = tuned(base, type(LORA)(), Personal(patterns=("lm_head.*",)))
    trainer, state, facts = trained(manifest)
    mine = export(tmp_path / "mine", state, manifest, facts, personal=trainer.personal.arrays())
    common = export(tmp_path / "common", state, manifest, facts)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(mine)), logits(trainer.model))
    heads = [AutoModelForCausalLM.from_pretrained(folder).lm_head.weight for folder in (base, common, mine)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    cards = [(folder / "README.md").read_text() for folder in (mine, common)]
    assert f"{257 * 32:,}, trained by the peer that exported this" in cards[0]
    assert "left out" in cards[1]


def test_a_personal_adapter_is_merged_or_left_out(base, tmp_path):
    manifest = tuned(base, LORA, Personal(adapter=True))
    trainer, state, facts = trained(manifest)
    mine = export(tmp_path / "mine", state, manifest, facts, personal=trainer.personal.arrays())
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(mine)), logits(trainer.model))
    common = AutoModelForCausalLM.from_pretrained(export(tmp_path / "common", state, manifest, facts))
    assert not any("lora" in name for name, _ in common.named_parameters())
    for array in trainer.personal.arrays().values():
        array[...] = 0
    torch.testing.assert_close(logits(common), logits(trainer.model))


def test_personal_values_of_another_model_are_refused(base, tmp_path):
    manifest = tuned(base, type(LORA)(), Personal(patterns=("lm_head.*",)))
    _, state, facts = trained(manifest)
    wrong = {"personal/lm_head.weight": np.zeros((1, 1), np.float32)}
    with pytest.raises(ConfigError, match="do not fit"):
        export(tmp_path / "out", state, manifest, facts, personal=wrong)
    assert not Path(tmp_path / "out").exists()
