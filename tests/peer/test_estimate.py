"""Too little memory is said before a model is loaded."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dht.errors import ConfigError
from peer import set_up
from peer.config import PeerConfig
from peer.estimate import Needs, needs
from peer.manifest import Model, Personal
from peer.memory import CpuGauge
from peer.model import ParameterVector, build_model
from tests.peer.finetune_models import LORA, save_base, tuned
from tests.peer.swarm_in_process import TEXT, tiny_manifest

MANIFEST = tiny_manifest(3)


def test_the_count_is_that_of_the_model(tmp_path: Path):
    model = build_model(MANIFEST)
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    local = MANIFEST.replace(model=Model(path=str(tmp_path)))
    assert needs(MANIFEST) == needs(local)
    assert needs(local).parameters == needs(local).shared == ParameterVector(model).elements
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_cannot_be_sized_is_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    nowhere = MANIFEST.replace(model=Model(path=str(tmp_path / "nowhere")))
    with caplog.at_level(logging.INFO, logger="peer.estimate"):
        assert needs(nowhere).bytes == 0
    assert "not known in advance" in caplog.text
    needs(nowhere).check(0.0)


def test_what_stays_in_memory_is_counted():
    # Weights, gradient, two moments, residual.
    assert Needs(1000, 1000, 1000).bytes == 1000 * (4 + 4 + 8 + 4)
    assert Needs(1000, 1000, 1000, moment_bytes=2.0).bytes == 1000 * (4 + 4 + 2 + 4)
    assert Needs(1000, 1000, 1000, overlap=True).bytes == 1000 * (4 + 4 + 8 + 4) + 1000 * (4 + 4 + 8)
    assert Needs(1000, 10, 4, quantized=800).bytes == 200 * 4 + 800 * 9 // 16 + 10 * (4 + 8) + 4 * 4
    eight = MANIFEST.replace(train=dataclasses.replace(MANIFEST.train, optimizer="adamw8bit"))
    assert needs(MANIFEST).bytes - needs(eight).bytes == 6 * needs(MANIFEST).trained


def test_too_little_is_refused_with_both_numbers():
    Needs(10**9, 10**9, 10**9).check(20e9)
    Needs(10**9, 10**9, 10**9).check(math.inf)
    with pytest.raises(ConfigError, match=r"1,000,000,000 parameters takes 20\.00 GB .* 19\.99 GB are free") as caught:
        Needs(10**9, 10**9, 10**9).check(19.99e9)
    assert "LoRA" in caught.value.remedy
    for part in ("weights 4.00", "gradients 4.00", "moments 8.00", "residual 4.00", "state, on disk 8.00"):
        assert f"{part} GB" in caught.value.message


def test_an_adapter_takes_little_besides_the_frozen_weights(tmp_path: Path):
    manifest = tuned(save_base(tmp_path))
    everything = [(name, entry.numel()) for name, entry in build_model(manifest).named_parameters()]
    adapter = sum(size for name, size in everything if ".lora_" in name)
    found = needs(manifest)
    assert (found.parameters, found.trained, found.shared) == (sum(size for _, size in everything), adapter, adapter)
    half = needs(tuned(tmp_path, LORA, Personal(patterns=("*.layers.1.*",))))
    assert (half.trained, half.shared) == (adapter, adapter // 2)
    common = needs(tuned(tmp_path, LORA, Personal(adapter=True)))
    assert (common.trained, common.shared) == (found.parameters, found.parameters - adapter)


def test_4_bits_are_counted_as_bitsandbytes_holds_them(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    manifest = tuned(save_base(tmp_path), quantized="nf4")
    model = build_model(manifest)
    states = [entry.quant_state for entry in model.parameters() if hasattr(entry, "quant_state")]
    held = sum(entry.numel() * entry.element_size() for entry in model.parameters())
    assert len(states) == 14
    assert needs(manifest).weights == held + sum(4 * state.absmax.numel() for state in states)


def test_a_peer_is_told_before_the_model_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)

    def load(*_: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(CpuGauge, "free", lambda self: 100_000.0)
    monkeypatch.setattr(set_up, "build_model", load)
    with pytest.raises(ConfigError, match=r"0\.10 MB are free"):
        set_up.make_trainer(PeerConfig(data_dir=tmp_path, data=str(text), device="cpu"), MANIFEST)
