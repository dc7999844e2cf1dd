from __future__ import annotations

import logging

import pytest

from dht.errors import ConfigError
from peer import footprint
from peer.footprint import estimate, require_memory
from peer.manifest import Personal, Train
from peer.model import build_model
from tests.peer.finetune_models import LORA, save_base, tuned
from tests.peer.swarm_in_process import tiny_manifest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def sizes(model) -> tuple[int, int]:
    entries = list(model.parameters())
    return sum(entry.numel() for entry in entries), sum(entry.numel() for entry in entries if entry.requires_grad)


def test_a_whole_model_has_everything_of_all_its_parameters():
    manifest = tiny_manifest(3)
    count, trained = sizes(build_model(manifest))
    needs = estimate(manifest)
    assert count == trained
    assert (needs.weights, needs.gradients, needs.moments) == (4 * count, 4 * count, 8 * count)
    assert (needs.state, needs.residual) == (8 * count, 4 * count)
    assert needs.total == 28 * count
    eight = estimate(manifest.replace(train=Train(optimizer="adamw8bit")))
    assert 2 * count < eight.moments < 2.1 * count


def test_an_adapter_needs_little_besides_the_frozen_weights(base):
    count, trained = sizes(build_model(tuned(base)))
    assert trained < count / 10
    needs = estimate(tuned(base))
    assert (needs.weights, needs.total) == (4 * count, 4 * count + 24 * trained)


def test_4_bits_are_counted_as_bitsandbytes_holds_them(base):
    pytest.importorskip("bitsandbytes")
    needs = estimate(tuned(base, quantized="nf4"))
    model = build_model(tuned(base, quantized="nf4"))
    held = sum(entry.numel() * entry.element_size() for entry in model.parameters())
    scales = sum(
        module.weight.quant_state.absmax.numel() * 4
        for module in model.modules()
        if hasattr(module, "compute_type_is_set") and hasattr(module.weight, "quant_state")
    )
    assert scales > 0
    assert needs.weights == held + scales


def test_what_is_personal_is_in_no_state(base):
    manifest = tuned(base, LORA, Personal(patterns=("*.layers.1.*",)))
    _, trained = sizes(build_model(manifest))
    needs = estimate(manifest)
    assert (needs.gradients, needs.state, needs.residual) == (4 * trained, 4 * trained, 2 * trained)


def test_too_little_memory_is_told_with_the_numbers(base, monkeypatch, caplog):
    total = estimate(tuned(base)).total
    monkeypatch.setattr(footprint, "available", lambda: total - 1)
    with pytest.raises(ConfigError, match=r"too little memory: .* needs 0\.00 GB .*weights .*residual") as caught:
        require_memory(tuned(base), "cpu")
    assert "lora" in caught.value.remedy
    monkeypatch.setattr(footprint, "available", lambda: total + 1)
    require_memory(tuned(base), "cpu")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    for free in (total * 2, 0):  # plenty, or a system that does not say
        monkeypatch.setattr(footprint, "available", lambda free=free: free)
        require_memory(tuned(base), "cpu")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_this_machine_says_what_it_has():
    assert footprint.available() > 1 << 20
