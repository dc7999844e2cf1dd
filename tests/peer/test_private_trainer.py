from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dht.errors import ConfigError
from peer.config import PeerConfig
from peer.data import TokenBatches, TokenData
from peer.dp import CLAIM_DELTA, Account, Guarantee, PoissonBatches, PrivacyBudgetError, Spent
from peer.model import build_model
from peer.private_trainer import Noise, PrivateTrainer, private_trainer, unprotected
from peer.trainer import Trainer
from tests.peer.swarm_in_process import BATCH, SEQUENCE, TEXT, tiny_manifest

MANIFEST = tiny_manifest(3)
PLENTY = Guarantee(epsilon=1000.0, noise=0.1)


def data() -> TokenData:
    return TokenData(np.frombuffer(TEXT, np.uint8), SEQUENCE, "text")


def trainer(folder: Path, guarantee: Guarantee = PLENTY) -> PrivateTrainer:
    return PrivateTrainer(
        build_model(MANIFEST), PoissonBatches(data(), BATCH), MANIFEST, guarantee, Account.load(folder), "cpu"
    )


def norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def test_one_record_moves_the_sum_by_the_clip_at_most(tmp_path):
    """Also when its gradient is a hundred times too large, and when the batch is cut into several passes."""
    one = trainer(tmp_path, Guarantee(clip=0.25))
    with torch.no_grad():
        one.model.lm_head.weight.mul_(300.0)  # now gradients are huge
    batch = data().gather(range(2 * BATCH + 1))
    free = [value.norm() for value in one._per_sample.gradients(torch.from_numpy(batch[:2]))]
    assert max(free) > 100 * 0.25
    for record in (0, BATCH, 2 * BATCH):
        without = one.clipped_sum(np.delete(batch, record, axis=0))
        moved = [a - b for a, b in zip(one.clipped_sum(batch), without, strict=True)]
        assert norm(moved) == pytest.approx(0.25, rel=1e-3)


def test_small_gradients_are_left_alone_and_add_up(tmp_path):
    one = trainer(tmp_path, Guarantee(clip=1e6))
    batch = data().gather(range(BATCH + 2))
    sums = one.clipped_sum(batch)
    plain = build_model(MANIFEST)
    ids = torch.from_numpy(batch)
    loss = plain(input_ids=ids, labels=ids).loss * len(ids)
    for found, right in zip(sums, torch.autograd.grad(loss, list(plain.parameters())), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


def test_a_record_that_is_not_finite_counts_as_nothing(tmp_path, monkeypatch):
    one = trainer(tmp_path)
    batch = data().gather(range(3))
    right = one.clipped_sum(batch[:2])
    real = one._per_sample.gradients

    def broken(ids: torch.Tensor) -> list[torch.Tensor]:
        found = [value.clone() for value in real(ids)]
        found[0][2] = math.inf
        return found

    monkeypatch.setattr(one._per_sample, "gradients", broken)
    for found, wanted in zip(one.clipped_sum(batch), right, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_noise_is_normal_with_its_deviation():
    """Bounds of five standard errors; the key is fixed, so it never fails by chance."""
    values = torch.zeros(400_000)
    Noise(3.0, bytes(16)).add_to(values)
    z = values.double() / 3.0
    assert abs(float(z.mean())) < 5 / math.sqrt(len(z))
    assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(2 / len(z))
    assert abs(float(z.pow(4).mean()) - 3) < 5 * math.sqrt(96 / len(z))
    share = float((z.abs() < 1).double().mean())
    assert share == pytest.approx(0.682689, abs=5 * math.sqrt(0.217 / len(z)))
    assert abs(float((z[1:] * z[:-1]).mean())) < 5 / math.sqrt(len(z))


def test_noise_is_fresh_for_every_step_and_parameter(tmp_path):
    one, other, again = (torch.zeros(5000) for _ in range(3))
    noise = Noise(1.0)
    noise.add_to(one)
    noise.add_to(other)
    Noise(1.0).add_to(again)
    assert len(torch.cat([one, other, again]).unique()) > 14_990


def test_an_empty_batch_still_takes_a_step_of_pure_noise(tmp_path, monkeypatch):
    """z C / B per coordinate: what is in the gradient that the optimizer sees."""
    one = trainer(tmp_path, Guarantee(epsilon=1000.0, noise=2.0, clip=0.5))
    monkeypatch.setattr(one._poisson, "next", lambda: np.empty((0, SEQUENCE), np.int64))
    seen = []
    step = one._optimizer.step

    def watched(rate: float) -> None:
        seen.extend(entry.grad.clone() for entry in one._parameters)
        step(rate)

    monkeypatch.setattr(one._optimizer, "step", watched)
    assert one.train(1).steps == 1
    flat = torch.cat([value.flatten() for value in seen]).double()
    assert float(flat.std()) == pytest.approx(2.0 * 0.5 / BATCH, rel=5 / math.sqrt(2 * len(flat)))


def test_it_learns_and_says_nothing_of_its_records(tmp_path):
    one = trainer(tmp_path)
    before = one.evaluate(data().evaluation(8))
    result = one.train(60)
    assert one.evaluate(data().evaluation(8)) < before - 0.5
    assert math.isnan(result.loss_mean)
    assert (result.steps, result.tokens) == (60, 60 * BATCH * SEQUENCE)  # as expected, not as drawn


def test_steps_are_on_the_account_before_they_are_taken(tmp_path, monkeypatch):
    one = trainer(tmp_path)

    def killed(_: object) -> None:
        assert Account.load(tmp_path).steps == 10
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "_private_step", killed)
    with pytest.raises(KeyboardInterrupt):
        one.train(10)
    assert Account.load(tmp_path).steps == 1  # the one that was begun


def test_a_deadline_gives_back_what_was_not_taken(tmp_path):
    one = trainer(tmp_path)
    asked = []
    assert one.train(10, lambda: len(asked) > 3 or asked.append(1)).steps == 3
    assert Account.load(tmp_path).steps == 3
    assert one.train(5, lambda: True).steps == 0


def test_a_restart_keeps_epsilon(tmp_path):
    one = trainer(tmp_path)
    one.train(4)
    state, spent = one.state(), one.privacy
    again = trainer(tmp_path)
    again.restore(state)
    assert (again.privacy, again.claim, again.step) == (spent, one.claim, 4)
    again.train(1)
    assert again.privacy["epsilon"] > spent["epsilon"] > 0
    assert again.privacy["budget"] == 1000.0


def test_training_stops_for_good_where_the_budget_ends(tmp_path):
    sequences = data().sequences
    step = Spent("text", 1.0, BATCH / sequences, 1)
    limit = Account(tmp_path / "none").epsilon(1e-6, dataclasses.replace(step, steps=7))
    guarantee = Guarantee(epsilon=limit, noise=1.0)
    one = trainer(tmp_path, guarantee)
    assert one.train(5).steps == 5
    assert one.train(5).steps == 2  # the rest of the budget
    weights = one.local().copy()
    for tried in (lambda: one.train(5), lambda: trainer(tmp_path, guarantee)):
        with pytest.raises(PrivacyBudgetError, match="budget is spent") as caught:
            tried()
        assert "--dp-epsilon" in caught.value.remedy
    np.testing.assert_array_equal(one.local(), weights)
    assert one.privacy["epsilon"] <= limit
    assert trainer(tmp_path, dataclasses.replace(guarantee, epsilon=2 * limit)).train(1).steps == 1


def test_what_was_trained_without_protection_is_not_taken_over(tmp_path):
    plain = Trainer(build_model(MANIFEST), TokenBatches(data(), BATCH, 1), MANIFEST, "cpu")
    plain.train(1)
    with pytest.raises(ConfigError, match="without --dp"):
        trainer(tmp_path).restore(plain.state())


def test_who_trains_without_it_afterwards_promises_nothing_any_more(tmp_path):
    unprotected(tmp_path, data().fingerprint)
    assert Account.load(tmp_path).empty  # nothing was promised
    trainer(tmp_path).train(1)
    unprotected(tmp_path, data().fingerprint)
    assert math.isinf(Account.load(tmp_path).epsilon(CLAIM_DELTA))
    with pytest.raises(PrivacyBudgetError):
        trainer(tmp_path)


def test_a_delta_that_lets_a_record_out_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="one of 220 records to be published"):
        trainer(tmp_path, Guarantee(delta=0.01))


def test_the_flags_make_it(tmp_path):
    config = PeerConfig(
        data_dir=tmp_path, dp=True, dp_epsilon=3.0, dp_noise=1.5, dp_clip=0.7, batch_size=6, device="cpu"
    )
    made = private_trainer(config, MANIFEST, build_model(MANIFEST), data(), 6)
    assert made.guarantee == Guarantee(3.0, 1e-6, 1.5, 0.7)
    made.train(1)
    assert made.privacy == {"epsilon": Account.load(tmp_path).epsilon(1e-6), "delta": 1e-6, "budget": 3.0}
    assert made.batches.sample_rate == 6 / data().sequences
