from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dht.errors import ConfigError
from peer.adapter import draw, plain_name, without_adapter
from peer.manifest import Adapter, Personal
from peer.model import ParameterVector, build_model
from peer.run_params import run_params
from peer.state import CanonicalState
from tests.peer.finetune_models import LORA, save_base, tuned
from tests.peer.learner_table import Table
from tests.peer.swarm_in_process import make_trainer

WIDTH, RANK, LAYERS = 32, 4, 2
FROZEN_A = Adapter(kind="lora", rank=RANK, targets=("q_proj", "v_proj"), freeze_a=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def genesis(manifest):
    trainer = make_trainer(manifest, 0)
    schema = trainer.vector.schema(manifest.run_id)
    return CanonicalState.genesis(schema, trainer.local().copy(), manifest.first_clip), trainer


@pytest.mark.parametrize(("adapter", "matrices"), [(LORA, "AB"), (FROZEN_A, "B")], ids=["lora", "frozen-a"])
def test_only_the_adapter_travels(base, adapter, matrices):
    manifest = tuned(base, adapter)
    state, trainer = genesis(manifest)
    expected = [
        f"model.layers.{layer}.self_attn.{module}.lora_{matrix}.weight"
        for layer in range(LAYERS)
        for module in ("q_proj", "v_proj")
        for matrix in matrices
    ]
    assert list(trainer.vector.names) == expected
    assert state.schema.elements == LAYERS * 2 * len(matrices) * RANK * WIDTH
    params = run_params(manifest, trainer.vector.elements)
    assert params.layout.parameters == state.schema.elements  # what is encoded has no place for the base


def test_everybody_begins_with_the_same_adapter_whatever_was_drawn_before(base):
    manifest = tuned(base)
    first, _ = genesis(manifest)
    torch.manual_seed(77)
    torch.rand(5)
    before = torch.random.get_rng_state()
    second, _ = genesis(manifest)
    assert first.root() == second.root()
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.count_nonzero(first.parameters) == first.schema.elements // 2  # A, but not B
    other = manifest.replace(model=type(manifest.model)(path=str(base), seed=4))
    assert not np.array_equal(genesis(other)[0].parameters, first.parameters)


def test_a_frozen_a_is_the_same_although_no_root_holds_it(base):
    def a(adapter):
        named = build_model(tuned(base, adapter)).named_parameters()
        return {plain_name(name): entry.detach().clone() for name, entry in named if ".lora_A." in name}

    frozen, trained = a(FROZEN_A), a(LORA)
    assert len(frozen) == 4
    assert all(torch.equal(frozen[name], trained[name]) for name in frozen)
    assert len({entry.sum().item() for entry in frozen.values()}) == 4  # each matrix has numbers of its own


def test_a_is_drawn_by_exact_steps():
    values = draw((8, 1000), 3, "some.name")
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest().startswith("8ed061ef95283238")
    bound = np.float32(1 / math.sqrt(1000))
    assert np.abs(values).max() <= bound
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.02
    assert abs(values.mean()) < 0.03 * bound


def test_the_base_stays_and_the_adapter_learns(base):
    _, trainer = genesis(tuned(base))
    saved = AutoModelForCausalLM.from_pretrained(base)
    before = trainer.local().copy()
    first, last = trainer.train(1).loss_mean, trainer.train(12).loss_mean
    assert last < first
    moved = trainer.local() != before
    assert moved.mean() > 0.9
    plain = dict(without_adapter(trainer.model).named_parameters())
    assert all(torch.equal(plain[name], entry) for name, entry in saved.named_parameters())


def test_without_b_nothing_has_changed_yet(base):
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        adapted = build_model(tuned(base)).eval()(ids).logits
    torch.testing.assert_close(adapted, plain, rtol=0, atol=0)


def test_a_target_that_the_model_lacks_is_named_with_those_that_it_has(base):
    with pytest.raises(ConfigError, match="'c_attn'") as caught:
        build_model(tuned(base, Adapter(kind="lora", targets=("q_proj", "c_attn"))))
    assert "q_proj" in caught.value.remedy and "down_proj" in caught.value.remedy


@pytest.mark.parametrize(
    ("adapter", "personal", "model", "says"),
    [
        (Adapter(freeze_a=True), Personal(), {}, "freeze_a needs an adapter"),
        (Adapter(), Personal(adapter=True), {}, "personal.adapter needs an adapter"),
        (Adapter(kind="lora", targets=()), Personal(), {}, "targets is empty"),
        (Adapter(), Personal(), {"quantized": "nf4"}, "cannot be trained"),
        (LORA, Personal(adapter=True), {"quantized": "nf4"}, "cannot be trained"),
        (LORA, Personal(), {"quantized": "nf4", "gguf": "a.gguf"}, "needs saved weights"),
    ],
)
def test_what_does_not_go_together_is_refused(base, adapter, personal, model, says):
    with pytest.raises(ConfigError, match=says):
        tuned(base, adapter, personal, **model)


async def test_a_round_of_adapters_and_a_restart(base, tmp_path):
    table = Table(tmp_path, manifest=tuned(base))
    first = table.learners[0].state.parameters.copy()
    await table.round()
    await table.round()
    assert not np.array_equal(table.learners[0].state.parameters, first)
    again, known = table.make(0), table.learners[0]
    assert again.state.root() == known.state.root()
    assert again.round == 2
    np.testing.assert_array_equal(again._trainer.local(), known._trainer.local())
    ours, theirs = again._trainer.state(), known._trainer.state()
    assert ours.arrays.keys() == theirs.arrays.keys()
    assert any("lora_A" in name for name in ours.arrays)
    for name in ours.arrays:
        np.testing.assert_array_equal(ours.arrays[name], theirs.arrays[name])


def test_a_base_in_4_bits_trains_and_the_state_knows_nothing_of_it(base):
    pytest.importorskip("bitsandbytes")
    plain, _ = genesis(tuned(base))
    manifest = tuned(base, quantized="nf4")
    state, trainer = genesis(manifest)
    matrices = [entry for name, entry in trainer.model.named_parameters() if name.endswith("base_layer.weight")]
    assert [entry.dtype for entry in matrices] == [torch.uint8] * 4
    np.testing.assert_array_equal(state.parameters, plain.parameters)
    assert state.schema.names == plain.schema.names
    full = ParameterVector(build_model(manifest, quantized=False))
    assert full.names == state.schema.names  # an export in float32 takes the same state
    batch = [trainer.batches.next()]
    start = trainer.evaluate(batch)  # an evaluation must not cost later steps their gradients
    first = trainer.train(1).loss_mean
    before = trainer.local().copy()
    last = trainer.train(12).loss_mean
    assert last < first
    assert trainer.evaluate(batch) < start
    layers = [part.any() for part in np.split(trainer.local() != before, 8)]
    assert all(layers), "a gradient does not reach every adapter"
