from __future__ import annotations

import dataclasses
import errno
import os

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from dht.errors import IncompatibleRunError, StorageError
from dht.identity import Identity
from peer import durable
from peer.export import export
from peer.manifest import Manifest, Model
from peer.model import ParameterVector, build_model
from peer.modelcard import Declared, RunFacts, model_card
from peer.state import CanonicalState

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {"model_type": "llama", "vocab_size": 257, "tie_word_embeddings": True, "eos_token_id": 256, **SIZES}
MANIFEST = Manifest.demo(str(Identity(b"\x01" * 32).peer_id), model=Model(config=CONFIG | {"bos_token_id": 256}))
PEERS = {str(Identity(bytes([k]) * 32).peer_id): 1000 * k for k in (1, 2)}


@pytest.fixture
def state() -> CanonicalState:
    vector = ParameterVector(build_model(MANIFEST))
    values = np.random.default_rng(1).standard_normal(vector.elements).astype(np.float32) / 8
    return CanonicalState.genesis(vector.schema(MANIFEST.run_id), values, 0.1)


def facts(state: CanonicalState) -> RunFacts:
    return RunFacts(7, state.root(), PEERS, 2.125)


def test_transformers_loads_what_was_exported(state, tmp_path):
    folder = export(tmp_path / "new" / "out", state, MANIFEST, facts(state))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    np.testing.assert_array_equal(ParameterVector(model).view(), state.parameters)
    prompt = tokenizer("def ", return_tensors="pt")
    assert prompt["input_ids"].tolist() == [list(b"def ")]
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=3, do_sample=False)[0])
    assert text.startswith("def ")
    assert Manifest.load(folder / "run.toml").run_id == MANIFEST.run_id
    assert model.dtype == torch.float32


def test_the_card_says_where_it_comes_from(state, tmp_path):
    folder = export(tmp_path / "out", state, MANIFEST, facts(state))
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    for fact in (MANIFEST.run_id.hex(), MANIFEST.run.founder, "| 7 |", state.root().hex(), "2.1250", "1,000", "2,000"):
        assert fact in card.text
    assert all(peer in card.text for peer in PEERS)


def test_the_hub_reads_the_cards_metadata(state, tmp_path):
    declared = Declared("apache-2.0", ("en", "de"), ("org/texts",))
    folder = export(tmp_path / "out", state, MANIFEST, dataclasses.replace(facts(state), declared=declared))
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en", "de"], ["org/texts"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {"loss": 2.125, "perplexity": pytest.approx(np.exp(2.125))}
    assert data.model_name == MANIFEST.run.name
    bare = model_card(MANIFEST, RunFacts(0, b"r" * 32), 5).data.to_dict()
    assert not {"license", "language", "datasets", "base_model", "model-index"} & bare.keys()


def test_the_cards_own_example_runs(state, tmp_path, monkeypatch, capsys):
    folder = export(tmp_path / "this-folder", state, MANIFEST, facts(state))
    code = ModelCard.load(folder / "README.md").text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_the_card_of_an_adapter_loads_it_with_peft():
    card = model_card(MANIFEST, RunFacts(0, b"r" * 32), 5, is_adapter=True)
    assert card.data.library_name == "peft"
    assert "from peft import AutoPeftModelForCausalLM" in card.text
    assert "model = AutoPeftModelForCausalLM.from_pretrained" in card.text


def test_weights_are_safetensors_alone(state, tmp_path):
    folder = export(tmp_path / "out", state, MANIFEST, facts(state))
    files = {path.name for path in folder.rglob("*")}
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]


def test_a_card_without_peers_or_loss():
    card = model_card(MANIFEST, RunFacts(0, b"r" * 32), 5)
    assert "## Peers" not in card.text
    assert "Held-out" not in card.text
    hub = MANIFEST.replace(model=Model(hub="org/name", revision="0" * 40))
    assert model_card(hub, RunFacts(0, b"r" * 32), 5).data.base_model == "org/name"


def test_only_the_certified_state_is_exported(state, tmp_path):
    with pytest.raises(StorageError, match="certified root"):
        export(tmp_path / "out", state, MANIFEST, dataclasses.replace(facts(state), root=b"x" * 32))
    other = MANIFEST.replace(model=Model(config=CONFIG, seed=5))
    with pytest.raises(IncompatibleRunError):
        export(tmp_path / "out", state, other, facts(state))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(state, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(StorageError, match="not empty"):
            export(target, state, MANIFEST, facts(state))
    (tmp_path / "empty").mkdir()
    assert (export(tmp_path / "empty", state, MANIFEST, facts(state)) / "config.json").exists()


def test_a_full_disk_leaves_no_half_model(state, tmp_path, monkeypatch):
    fired = []

    def full(descriptor: int, data: bytes) -> int:
        fired.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "write", full)
    with pytest.raises(StorageError, match="cannot export"):
        export(tmp_path / "out", state, MANIFEST, facts(state))
    assert fired
    assert list(tmp_path.iterdir()) == []
