"""Weights on disk: the run is bound to their bytes, and GGUF is one of their forms."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from dht.errors import ConfigError, IncompatibleRunError, StorageError
from peer.from_gguf import convert, main
from peer.manifest import Model, TokenizerChoice
from peer.model import ParameterVector, build_model, check_fit
from peer.pretrained import config_of, weights_sha256
from peer.tokenizer import END_OF_TEXT, _byte_symbols, check_same_tokens, load_tokenizer
from tests.peer.finetune_models import save_base, tuned

WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 1


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    """A Llama with the byte alphabet as its tokens, as llama.cpp's tools write one."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(258)
    writer.add_tokenizer_model("gpt2")
    tokens = [*_byte_symbols(), END_OF_TEXT, "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    chance = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", chance.standard_normal(shape).astype(np.float32) / 8)

    add("token_embd", 258, WIDTH)
    add("output_norm", WIDTH)
    add("output", 258, WIDTH)
    for part, shape in {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_down": (WIDTH, INNER)}.items():
        add(f"blk.0.{part}", *shape)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{part}", WIDTH, WIDTH)
    for part in ("ffn_up", "ffn_gate"):
        add(f"blk.0.{part}", INNER, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_hash_is_what_sha256sum_prints(base, tmp_path):
    one = (base / "model.safetensors").read_bytes()
    assert weights_sha256(base) == hashlib.sha256(one).hexdigest()
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(b"%d" % number)
    lines = subprocess.run(
        "sha256sum *.safetensors | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert weights_sha256(tmp_path) == lines.stdout.split()[0]


def test_other_weights_than_the_runs_are_refused_before_they_are_loaded(base, tmp_path):
    manifest = tuned(base, sha256=weights_sha256(base))
    build_model(manifest)
    other = save_base(tmp_path / "other", seed=6)
    with pytest.raises(IncompatibleRunError, match="not those of this run"):
        build_model(manifest.replace(model=Model(path=str(other), sha256=manifest.model.sha256)))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"sha256": "0" * 64, "hub": "a/b", "revision": "0" * 40}, "sha256 belongs to model.path"),
        ({"gguf": "a.gguf", "config": {"model_type": "llama"}}, "gguf belongs to model.path"),
        ({"path": "x", "gguf": "../a.gguf"}, "not the name of a file"),
        ({"path": "x", "sha256": "ABC"}, "not a SHA-256"),
    ],
)
def test_keys_that_do_not_fit_are_refused(base, model, says):
    with pytest.raises(ConfigError, match=says):
        tuned(base).replace(model=Model(**model))


def test_a_folder_without_weights_says_what_is_missing(base, tmp_path):
    shutil.copy(base / "config.json", tmp_path)
    for model in (Model(path=str(tmp_path)), Model(path=str(base), gguf="gone.gguf")):
        with pytest.raises(ConfigError, match=r"there is no .* in the model's folder"):
            build_model(tuned(base).replace(model=model))
    with pytest.raises(ConfigError, match="no such folder"):
        config_of(Model(path=str(tmp_path / "gone")))


def test_gguf_loads_as_it_is_and_converted_alike(base, gguf, tmp_path):
    source = str(gguf.parent)
    direct = tuned(base).replace(
        model=Model(path=source, gguf=gguf.name, seed=1), tokenizer=TokenizerChoice(kind="path", source=source)
    )
    found = convert(gguf, tmp_path / "plain")
    assert found == weights_sha256(tmp_path / "plain")
    assert convert(gguf, tmp_path / "again") == found
    plain = tuned(tmp_path / "plain", sha256=found)
    one, other = build_model(direct), build_model(plain)
    assert ParameterVector(one).names == ParameterVector(other).names
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(one.eval()(ids).logits, other.eval()(ids).logits, rtol=0, atol=0)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert reloaded.dtype == torch.float32
    text = "abba Ω"
    ours = load_tokenizer(direct)(text)["input_ids"]
    assert ours[0] == 257  # "ab", by the merge that the file lists
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")(text)["input_ids"] == ours


def test_what_is_not_converted(gguf, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    (tmp_path / "text.gguf").write_text("not a model")
    for name, says in (("bad.gguf", "cannot convert"), ("text.gguf", "not a GGUF"), ("gone.gguf", "cannot read")):
        with pytest.raises(ConfigError, match=says):
            convert(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(StorageError, match="exists"):
        convert(gguf, tmp_path)


def test_the_command_says_what_goes_into_the_manifest(gguf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["from_gguf", str(gguf), str(tmp_path / "out")])
    main()
    assert capsys.readouterr().out == f'path = "{tmp_path / "out"}"\nsha256 = "{weights_sha256(tmp_path / "out")}"\n'
    with pytest.raises(SystemExit, match="exists"):
        main()


def test_a_tokenizer_of_another_vocabulary_is_refused(base, gguf, tmp_path, caplog):
    bytes_ = load_tokenizer(tuned(base))
    check_same_tokens(bytes_, tuned(base))
    assert not caplog.records
    # As many tokens, but two of them have changed places: sizes fit, and the model would read noise.
    other = save_base(tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"a":97', '"a":X').replace('"b":98', '"b":97').replace('"a":X', '"a":98'))
    text = path.read_text()
    if '"a": 97' in text:
        path.write_text(text.replace('"a": 97', '"a": X').replace('"b": 98', '"b": 97').replace('"a": X', '"a": 98'))
    assert len(load_tokenizer(tuned(other).replace(tokenizer=TokenizerChoice(kind="path", source=str(other))))) == 257
    with pytest.raises(ConfigError, match="2 of 257 tokens differ") as caught:
        check_fit(build_model(tuned(other)), bytes_, tuned(other))
    assert str(other) in caught.value.remedy
    # The same tokens under other rules are told, and no more.
    ruled = save_base(tmp_path / "ruled")
    rules = load_tokenizer(tuned(ruled).replace(tokenizer=TokenizerChoice(kind="path", source=str(ruled))))
    rules.backend_tokenizer.pre_tokenizer = None
    rules.save_pretrained(ruled)
    check_same_tokens(bytes_, tuned(ruled))
    assert "by other rules" in caplog.text
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    check_same_tokens(bytes_, tuned(other))  # nothing to compare with
