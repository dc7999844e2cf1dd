from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from dht.errors import ConfigError
from dht.identity import Identity
from peer import tokenizer as module
from peer.manifest import Manifest, TokenizerChoice
from peer.tokenizer import BYTE_VOCABULARY, byte_tokenizer, fingerprint, is_byte_tokenizer, load_tokenizer

BYTES = byte_tokenizer()
DEMO = Manifest.demo(str(Identity(b"\x01" * 32).peer_id))


def test_alphabet_is_the_library_s():
    assert sorted(module._byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())


@given(st.text(st.characters(codec="utf-8")))
def test_tokens_are_bytes(text):
    ids = BYTES(text, split_special_tokens=True)["input_ids"]
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text


def test_loads_without_our_code(tmp_path):
    BYTES.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "def f():\n\treturn 'héllo 漢字'  # 😀"
    assert loaded(text)["input_ids"] == list(text.encode())
    assert len(loaded) == BYTE_VOCABULARY == 257
    assert loaded.eos_token_id == loaded.pad_token_id == 256
    assert is_byte_tokenizer(loaded)
    named = DEMO.replace(tokenizer=TokenizerChoice(kind="path", source=str(tmp_path)))
    assert fingerprint(load_tokenizer(named)) == fingerprint(load_tokenizer(DEMO))


def test_fingerprint_tells_tokenizers_apart():
    other = byte_tokenizer()
    other.add_tokens(["<new>"])
    assert fingerprint(other) != fingerprint(BYTES)
    assert not is_byte_tokenizer(other)


def test_what_cannot_be_loaded_is_a_config_error(tmp_path):
    for choice in (
        TokenizerChoice(kind="path", source=str(tmp_path / "nowhere")),
        TokenizerChoice(kind="hub", source="org/name", revision="0" * 40),
    ):
        with pytest.raises(ConfigError, match="cannot load the tokenizer"):
            load_tokenizer(DEMO.replace(tokenizer=choice))


def test_a_tokenizer_needs_an_end_of_text(tmp_path):
    without = byte_tokenizer()
    without.eos_token = None
    without.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no end-of-text"):
        load_tokenizer(DEMO.replace(tokenizer=TokenizerChoice(kind="path", source=str(tmp_path))))
