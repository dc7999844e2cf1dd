from __future__ import annotations

import copy
import dataclasses
import math
import sys

import numpy as np
import pytest
import torch

from dht.errors import ConfigError
from dht.identity import Identity
from peer.data import TokenBatches, TokenData
from peer.manifest import Data, Manifest, Model, Train
from peer.model import build_model
from peer.trainer import Trainer, TrainerState

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": 64, "tie_word_embeddings": True, **SIZES}
TRAIN = Train(learning_rate=1e-2, warmup=4, local_steps=5)
MANIFEST = Manifest.demo(
    str(Identity(b"\x01" * 32).peer_id), model=Model(config=CONFIG, seed=1), data=Data(sequence_length=32), train=TRAIN
)
TEXT = b"the quick brown fox jumps over the lazy dog. " * 200


def data() -> TokenData:
    return TokenData(np.frombuffer(TEXT, np.uint8), 32, "text")


def trainer(precision: str | None = None, **train) -> Trainer:
    manifest = MANIFEST.replace(train=dataclasses.replace(TRAIN, **train))
    return Trainer(build_model(manifest), TokenBatches(data(), 4, seed=2), manifest, "cpu", precision)


def kept(state: TrainerState) -> TrainerState:
    return TrainerState({name: array.copy() for name, array in state.arrays.items()}, copy.deepcopy(state.facts))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_training_learns(precision, optimizer):
    one = trainer(precision, optimizer=optimizer)
    before = one.evaluate(data().evaluation(8))
    result = one.train(25)
    after = one.evaluate(data().evaluation(8))
    assert (result.steps, result.tokens, result.skipped) == (25, 25 * 4 * 32, 0)
    assert before == pytest.approx(math.log(257), rel=0.1)
    assert after < result.loss_mean < before
    assert after < 3.0
    assert one.local().dtype == np.float32


def test_moments_of_eight_bits_are_bytes():
    one = trainer(optimizer="adamw8bit")
    one.train(1)
    assert one.notes == []
    kinds = {array.dtype for name, array in one.state().arrays.items() if name.startswith("optimizer/state1/")}
    assert np.dtype(np.uint8) in kinds


def test_without_bitsandbytes_it_says_so_and_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    one = trainer(optimizer="adamw8bit")
    assert len(one.notes) == 1
    assert "using torch's AdamW" in one.notes[0]
    assert one.train(2).steps == 2


def test_the_deadline_is_asked_before_every_step():
    asked = []

    def deadline() -> bool:
        asked.append(1)
        return len(asked) > 3

    one = trainer()
    result = one.train(10, deadline)
    assert (result.steps, len(asked), one.step) == (3, 4, 3)
    nothing = one.train(10, lambda: True)
    assert (nothing.steps, nothing.tokens) == (0, 0)
    assert math.isnan(nothing.loss_mean)


def test_loss_is_the_mean_over_steps():
    one, two = trainer(), trainer()
    whole = one.train(4)
    singles = [two.train(1).loss_mean for _ in range(4)]
    assert whole.loss_mean == pytest.approx(np.mean(singles))
    np.testing.assert_array_equal(one.local(), two.local())


def test_rate_rises_during_the_warm_up_over_all_rounds():
    one = trainer()
    seen = []
    for _ in range(6):
        one.train(1)
        seen.append(one._optimizer.groups[0]["lr"])
    np.testing.assert_allclose(seen, [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_gradients_are_clipped(monkeypatch):
    norms = []
    real = torch.nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        before = real(parameters, limit)
        norms.append((float(before), float(torch.stack([p.grad.norm() for p in parameters]).norm())))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    trainer(clip_norm=0.01).train(2)
    assert all(before > 0.1 and after == pytest.approx(0.01, rel=1e-3) for before, after in norms)


def test_only_matrices_decay():
    one = trainer(weight_decay=0.5)
    decayed = {id(entry) for group in one._optimizer.groups if group["weight_decay"] for entry in group["params"]}
    for _, entry in one.model.named_parameters():
        assert (id(entry) in decayed) == (entry.ndim == 2)


def test_what_is_not_finite_is_skipped_and_counted():
    one = trainer()
    one.train(2)
    calls = []
    real = one._loss

    def poisoned(batch):
        calls.append(1)
        return real(batch) * (math.nan if len(calls) % 2 else 1.0)

    one._loss = poisoned
    before = one.local().copy()
    result = one.train(1)
    assert (result.steps, result.skipped, result.tokens) == (0, 1, 0)
    np.testing.assert_array_equal(one.local(), before)
    result = one.train(3)
    assert (result.steps, result.skipped) == (2, 1)
    assert np.isfinite(one.local()).all()
    assert one.step == 4


def test_gradients_do_not_outlive_training():
    one = trainer()
    one.train(1)
    assert all(entry.grad is None for entry in one.model.parameters())


def test_parameters_in_and_out():
    one = trainer()
    target = np.random.default_rng(0).standard_normal(one.vector.elements).astype(np.float32)
    one.set_parameters(target)
    out = np.empty_like(target)
    one.get_parameters(out)
    np.testing.assert_array_equal(out, target)
    np.testing.assert_array_equal(one.local(), target)


def test_evaluation_disturbs_nothing():
    one, two = trainer(), trainer()
    for _ in range(3):
        one.train(1)
        two.train(1)
        one.evaluate(data().evaluation(8, 16))
    np.testing.assert_array_equal(one.local(), two.local())
    assert one.model.training
    assert math.isnan(one.evaluate([]))


def test_evaluation_weighs_by_tokens():
    one = trainer()
    whole = one.evaluate(data().evaluation(100, 7))
    parts = one.evaluate(data().evaluation(4, 7))
    assert whole == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_resumed_training_is_the_same_training(optimizer):
    one = trainer(optimizer=optimizer)
    one.train(6)
    state, parameters = kept(one.state()), one.local().copy()
    one.train(4)
    two = trainer(optimizer=optimizer)
    two.set_parameters(parameters)
    two.restore(state)
    assert two.step == 6
    two.train(4)
    np.testing.assert_array_equal(two.local(), one.local())


def test_moments_matter_to_resuming():
    # Guards the test above: without the saved moments the result must differ.
    one = trainer()
    one.train(6)
    parameters = one.local().copy()
    state = kept(one.state())
    one.train(2)
    two = trainer()
    two.set_parameters(parameters)
    two.restore(TrainerState({}, state.facts))
    two.train(2)
    assert not np.array_equal(two.local(), one.local())


def test_state_of_something_else_is_refused_and_changes_nothing():
    one = trainer()
    one.train(2)
    good = kept(one.state())
    before = kept(one.state())
    with pytest.raises(ConfigError, match="another inner optimizer"):
        one.restore(TrainerState(good.arrays, good.facts | {"optimizer": "SGD"}))
    with pytest.raises(ConfigError, match="another model"):
        one.restore(TrainerState(good.arrays | {"optimizer/exp_avg/nobody": np.zeros(3, np.float32)}, good.facts))
    shapes = {name: array.reshape(-1)[:1] if "exp_avg/" in name else array for name, array in good.arrays.items()}
    with pytest.raises(ConfigError, match="another model"):
        one.restore(TrainerState(shapes, good.facts))
    after = one.state()
    assert after.facts == before.facts
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)


def test_two_rounds_of_local_training_beat_none():
    # The whole inner and outer loop in the clear: two peers, mean update, outer step of rate 1.
    peers = [trainer(), trainer()]
    shared = peers[0].local().copy()
    start = peers[0].evaluate(data().evaluation(8))
    for _ in range(2):
        mean = np.zeros_like(shared)
        for one in peers:
            one.set_parameters(shared)
            one.train(8)
            mean += (shared - one.local()) / 2
        shared = shared - mean
    peers[0].set_parameters(shared)
    assert peers[0].evaluate(data().evaluation(8)) < start - 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda():
    one = Trainer(build_model(MANIFEST), TokenBatches(data(), 4, seed=2), MANIFEST, "cuda", "bf16")
    before = one.evaluate(data().evaluation(8))
    one.train(20)
    assert one.evaluate(data().evaluation(8)) < before
    state = kept(one.state())
    one.restore(state)
    one.train(1)
