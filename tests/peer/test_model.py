from __future__ import annotations

import numpy as np
import pytest
import torch

from dht.errors import ConfigError
from dht.identity import Identity
from peer.manifest import Data, Manifest, Model
from peer.model import ParameterVector, build_model, check_fit
from peer.tokenizer import byte_tokenizer

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TIED = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": 64, "tie_word_embeddings": True, **TINY}
SPECIAL = {"bos_token_id": 256, "eos_token_id": 256}
CONFIGS = {
    "llama-tied": TIED,
    "llama": TIED | {"tie_word_embeddings": False},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 257,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        **SPECIAL,
    },
    "qwen2": TIED | {"model_type": "qwen2", "num_key_value_heads": 2},
}


def manifest(config: dict | None = None, **model) -> Manifest:
    chosen = Model(config=config, **model) if config else Model(**model)
    return Manifest.demo(str(Identity(b"\x01" * 32).peer_id), model=chosen)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_vector_is_the_named_parameters_in_order(config):
    model = build_model(manifest(config))
    before = {name: entry.detach().clone() for name, entry in model.named_parameters()}
    ids = torch.arange(20)[None]
    logits = model.eval()(ids).logits.detach().clone()
    vector = ParameterVector(model)
    assert list(vector.names) == sorted(before)
    assert vector.elements == sum(entry.numel() for entry in before.values())
    expected = np.concatenate([before[name].numpy().ravel() for name in sorted(before)])
    np.testing.assert_array_equal(vector.view(), expected)
    assert vector.shapes == tuple(tuple(before[name].shape) for name in sorted(before))
    torch.testing.assert_close(model(ids).logits, logits)
    assert vector.schema(b"r" * 32).elements == vector.elements


def test_tied_weights_count_once_and_stay_tied():
    model = build_model(manifest(TIED))
    vector = ParameterVector(model)
    assert len(model.state_dict()) == len(vector.names) + 1
    assert "lm_head.weight" not in vector.names
    vector.copy_in(np.arange(vector.elements, dtype=np.float32))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.lm_head.weight[0, 1] == 1.0  # embed_tokens comes first by name


def test_same_seed_same_weights_and_nobody_else_s_random_numbers_move():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = ParameterVector(build_model(manifest(TIED, seed=5))).view().copy()
    torch.testing.assert_close(torch.rand(3), expected)
    assert np.array_equal(first, ParameterVector(build_model(manifest(TIED, seed=5))).view())
    assert not np.array_equal(first, ParameterVector(build_model(manifest(TIED, seed=6))).view())


def test_the_view_is_the_model():
    model = build_model(manifest(TIED))
    vector = ParameterVector(model)
    view = vector.view()
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = 42.0
    assert view[0] == 42.0
    view[1] = 7.0
    assert model.model.embed_tokens.weight[0, 1] == 7.0
    out = np.empty(vector.elements, np.float32)
    vector.copy_out(out)
    np.testing.assert_array_equal(out, view)


def test_read_only_memory_can_be_copied_in():
    for dtype in (torch.float32, torch.bfloat16):
        vector = ParameterVector(build_model(manifest(TIED)).to(dtype))
        values = np.ones(vector.elements, np.float32)
        values.flags.writeable = False
        vector.copy_in(values)
        assert (vector.view() == 1).all()


def test_bfloat16_models_round_to_the_nearest():
    model = build_model(manifest(TIED)).to(torch.bfloat16)
    vector = ParameterVector(model)
    values = np.random.default_rng(1).standard_normal(vector.elements).astype(np.float32)
    vector.copy_in(values)
    out = np.empty_like(values)
    vector.copy_out(out)
    np.testing.assert_array_equal(out, torch.from_numpy(values).bfloat16().float().numpy())
    np.testing.assert_array_equal(vector.view(), out)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_frozen_parameters_stay_out():
    model = build_model(manifest(TIED))
    model.model.embed_tokens.requires_grad_(False)
    assert "model.embed_tokens.weight" not in ParameterVector(model).names
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trained parameter"):
        ParameterVector(model)


def test_mixed_dtypes_are_refused():
    model = build_model(manifest(TIED))
    model.model.norm.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="dtype"):
        ParameterVector(model)


def test_wrong_vectors_are_refused():
    vector = ParameterVector(build_model(manifest(TIED)))
    for wrong in (np.zeros(3, np.float32), np.zeros(vector.elements, np.float64)):
        with pytest.raises(ValueError, match="expected float32"):
            vector.copy_in(wrong)
        with pytest.raises(ValueError, match="expected float32"):
            vector.copy_out(wrong)


def test_a_folder_is_a_model_too(tmp_path):
    model = build_model(manifest(TIED, seed=9))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = build_model(manifest(path=str(tmp_path)))
    assert loaded.dtype == torch.float32  # whatever the folder holds
    np.testing.assert_array_equal(ParameterVector(loaded).view(), ParameterVector(model).view())


@pytest.mark.parametrize(
    "model",
    [
        {"config": {"model_type": "no-such-model"}},
        {"config": TIED | {"num_attention_heads": 3}},
        {"config": {"model_type": "bert", "is_decoder": "maybe", "hidden_size": -1}},
        {"path": "/nowhere/at/all"},
        {"hub": "org/name", "revision": "0" * 40},
    ],
    ids=["unknown", "sizes", "nonsense", "path", "hub"],
)
def test_what_cannot_be_made_is_a_config_error(model):
    with pytest.raises(ConfigError, match="cannot make the model"):
        build_model(manifest(**model))


def test_tokenizer_and_sequences_must_fit():
    tokenizer = byte_tokenizer()
    check_fit(build_model(manifest(TIED)), tokenizer, manifest(TIED).replace(data=Data(sequence_length=64)))
    small = build_model(manifest(TIED | {"vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2}))
    with pytest.raises(ConfigError, match="257 tokens, the model 256"):
        check_fit(small, tokenizer, manifest(TIED))
    with pytest.raises(ConfigError, match="over the model's 64 positions"):
        check_fit(build_model(manifest(TIED)), tokenizer, manifest(TIED))
