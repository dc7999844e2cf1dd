"""Micro-batches: found by measuring, halved when memory runs out, and of no consequence for what is learned."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ConfigError
from peer import batching
from peer.batching import Fit, Pace, Trial, fit, halved, introduce, parts, search, step_sequences
from peer.data import TokenBatches, TokenData
from peer.manifest import Data, Manifest
from peer.model import build_model
from peer.trainer import Trainer
from tests.peer.swarm_in_process import SEQUENCE, TEXT, tiny_manifest

MANIFEST = tiny_manifest(3)
EVERYTHING = 1e18


def trainer(sequences: int = 6, micro: int = 0, **options: Any) -> Trainer:
    data = TokenData(np.frombuffer(TEXT, np.uint8), SEQUENCE, "text")
    one = Trainer(build_model(MANIFEST), TokenBatches(data, sequences, 5), MANIFEST, "cpu", **options)
    one.micro = micro
    return one


# --- cutting a batch ----------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 50))
def test_parts_are_the_batch_in_order(sequences: int, micro: int):
    batch = np.arange(sequences * 3).reshape(sequences, 3)
    cut = list(parts(batch, micro))
    np.testing.assert_array_equal(np.concatenate(cut), batch)
    assert {len(part) for part in cut[:-1]} <= {micro} and 0 < len(cut[-1]) <= (micro or sequences)


@pytest.mark.parametrize("micro", [1, 2, 4, 5])
def test_the_gradient_does_not_depend_on_the_cut(micro: int):
    whole, cut = trainer(), trainer()
    batch = whole.batches.next()
    losses = whole.accumulate(batch, 0), cut.accumulate(batch, micro)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (name, one), (_, other) in zip(whole._named, cut._named, strict=True):
        np.testing.assert_allclose(one.grad.numpy(), other.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_nor_do_training_and_evaluation():
    whole, cut = trainer(), trainer(micro=4)
    results = whole.train(5), cut.train(5)
    assert (results[0].steps, results[0].tokens) == (results[1].steps, results[1].tokens) == (5, 5 * 6 * SEQUENCE)
    assert results[0].loss_mean == pytest.approx(results[1].loss_mean, rel=1e-4)
    np.testing.assert_allclose(whole.local(), cut.local(), atol=2e-4)
    heldout = [whole.batches.next()]
    assert whole.evaluate(heldout) == pytest.approx(cut.evaluate(heldout), rel=1e-3)


def test_the_runs_tokens_decide_a_step_and_the_peer_only_where_the_run_does_not():
    run = MANIFEST.replace(train=dataclasses.replace(MANIFEST.train, tokens_per_step=12 * SEQUENCE))
    assert [step_sequences(run, size) for size in (0, 1, 64)] == [12, 12, 12]
    assert [step_sequences(MANIFEST, size) for size in (0, 1, 64)] == [8, 1, 64]


def test_a_step_is_of_whole_sequences():
    train = dataclasses.replace(MANIFEST.train, tokens_per_step=100)
    with pytest.raises(ConfigError, match=r"not a multiple of data\.sequence_length = 16") as caught:
        MANIFEST.replace(train=train)
    assert "96" in caught.value.remedy
    assert MANIFEST.replace(train=train, data=Data(sequence_length=10)).train.tokens_per_step == 100


# --- measuring ----------------------------------------------------------------------------------------------------


def machine(
    seconds: Callable[[int], float], size: Callable[[int], int] = lambda micro: micro, fits: int = 10**9
) -> Any:
    """What `search` measures on an imagined machine; `asked` remembers the sizes that were tried."""
    asked: list[int] = []

    def attempt(micro: int) -> Trial:
        asked.append(micro)
        if micro > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return Trial(micro, seconds(micro), size(micro))

    attempt.asked = asked  # type: ignore[attr-defined]
    return attempt


def found(attempt: Any, most: int = 24, free: float = EVERYTHING, fixed: int = 0) -> int:
    return search(attempt, most, free, fixed, 128).micro


def test_it_takes_more_as_long_as_that_is_faster():
    parallel = machine(lambda micro: 1.0)
    assert found(parallel) == 24 and parallel.asked == [1, 2, 4, 8, 16, 24]
    saturated = machine(lambda micro: max(1.0, micro / 4))
    assert found(saturated) == 4 and saturated.asked == [1, 2, 4, 8]
    serial = machine(lambda micro: float(micro))
    assert found(serial) == 1
    ten = machine(lambda micro: 1.0 if micro == 1 else 2 / 1.1001)
    nine = machine(lambda micro: 1.0 if micro == 1 else 2 / 1.0999)
    assert (found(ten, 2), found(nine, 2)) == (2, 1)


def test_it_stops_before_memory_is_full():
    attempt = machine(lambda micro: 1.0, lambda micro: 1000 + 10 * micro)
    assert found(attempt, 64, free=1100, fixed=1000) == 8  # 16 sequences would take 1160
    assert attempt.asked == [1, 2, 4, 8]
    assert found(machine(lambda micro: 1.0, lambda micro: 1000 + 10 * micro), 64, free=1100) == 1  # 2020, if all grows


def test_running_out_of_memory_ends_the_search():
    attempt = machine(lambda micro: 1.0, fits=5)
    assert found(attempt) == 4 and attempt.asked == [1, 2, 4, 8]
    with pytest.raises(ConfigError, match="too little memory for one sequence of 128 tokens"):
        found(machine(lambda micro: 1.0, fits=0))

    def broken(micro: int) -> Trial:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        found(broken)


def ticking(one: Trainer, cost: Callable[[int], float]) -> Callable[[], float]:
    """A clock that only passes go forward."""
    now = [0.0]
    real = one._loss

    def loss(part: Any) -> torch.Tensor:
        now[0] += cost(len(part))
        return real(part)

    one._loss = loss  # type: ignore[method-assign]
    return lambda: now[0]


def test_measuring_changes_nothing():
    one, control = trainer(), trainer()
    for each in (one, control):
        each.train(2)
    torch.manual_seed(7)
    before, state = torch.get_rng_state(), copy.deepcopy(one.state())
    random = one.model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        torch.rand(3)  # as dropout would
        return random(*arguments, **named)

    one.model.forward = forward
    fit(one, 6, clock=ticking(one, lambda size: 1.0))
    one.model.forward = random
    assert torch.equal(torch.get_rng_state(), before)
    after = one.state()
    assert after.facts == state.facts
    for name, array in state.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)
    assert all(entry.grad is None for entry in one.model.parameters())
    np.testing.assert_array_equal(one.local(), control.local())
    one.micro = 0
    one.train(2)
    control.train(2)
    np.testing.assert_array_equal(one.local(), control.local())


def test_what_was_measured_is_used_and_told():
    one = trainer()
    measured = fit(one, 6, clock=ticking(one, lambda size: max(2.0, float(size))))
    assert measured == one.measured == Fit(sequences=6, length=SEQUENCE, micro=2, seconds=2.0)
    assert (one.micro, measured.accumulation, measured.step_seconds) == (2, 3, 6.0)
    assert measured.tokens_per_second == one.pace.tokens_per_second == pytest.approx(6 * SEQUENCE / 6.0)
    one.notes.append("something else")
    told: list[tuple[str, dict[str, Any]]] = []
    slow = Manifest.demo(
        MANIFEST.run.founder,
        train=dataclasses.replace(MANIFEST.train, local_steps=10),
        cohort=dataclasses.replace(
            MANIFEST.cohort, deadlines=dataclasses.replace(MANIFEST.cohort.deadlines, train=39.0)
        ),
    )
    introduce(one, slow, lambda name, **fields: told.append((name, fields)))
    assert told[0] == ("warning", {"text": "something else"})
    name, fields = told[1]
    assert name == "batch"
    assert (fields["micro"], fields["accumulation"], fields["steps"], fields["local_steps"]) == (2, 3, 6, 10)


def test_a_fixed_size_is_measured_and_halved_only_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    one = trainer()
    assert fit(one, 6, 4, clock=ticking(one, float)).micro == 4
    assert fit(one, 6, 64, clock=ticking(one, float)).micro == 6
    broken = out_of_memory_above(one, 2)
    assert fit(one, 6, 6, clock=itertools.count().__next__).micro == 1  # 6, 3, 1: halves are rounded down
    assert broken == [6, 3]


def test_memory_decides_on_a_real_model(monkeypatch: pytest.MonkeyPatch):
    class Small:
        def free(self) -> float:
            return 20 * one.vector.elements / 0.8 + 4 * one.vector.elements / 0.8 + 3.5e6 / 0.8

        def start(self) -> None: ...

        def grown(self) -> int:
            return 4 * one.vector.elements + 10**6 * next(sizes)

    one = trainer()
    sizes: Iterator[int] = iter([1, 2, 4])
    monkeypatch.setattr(batching, "gauge", lambda device: Small())
    assert fit(one, 6, clock=itertools.count().__next__).micro == 2  # 4 would take 4 MB and the gradients


@pytest.mark.parametrize(
    ("seconds", "steps"), [(100.0, 10), (20.0, 10), (19.9, 9), (2.0, 1), (0.5, 1)], ids=lambda value: str(value)
)
def test_how_many_steps_fit(seconds: float, steps: int):
    assert Fit(sequences=8, length=16, micro=2, seconds=0.5).steps_within(seconds, 10) == steps
    assert Fit(sequences=8, length=16, micro=2, seconds=0.0).steps_within(seconds, 10) == 10


def test_the_pace_follows_and_forgets():
    pace = Pace()
    pace.took(1000, 10.0)
    assert pace.tokens_per_second == 100.0
    pace.took(0, 5.0)
    pace.took(5, 0.0)
    assert pace.tokens_per_second == 100.0
    pace.took(2000, 10.0)
    assert pace.tokens_per_second == pytest.approx(130.0)
    for _ in range(30):
        pace.took(2000, 10.0)
    assert pace.tokens_per_second == pytest.approx(200.0, rel=1e-3)


def test_training_sets_the_pace():
    one = trainer()
    one.clock = ticking(one, lambda size: 0.5)
    one.train(4)
    assert one.pace.tokens_per_second == pytest.approx(6 * SEQUENCE / 0.5)


# --- out of memory in a step --------------------------------------------------------------------------------------


def out_of_memory_above(one: Trainer, fits: int) -> list[int]:
    """Make passes of more than `fits` sequences fail after their forward pass; returns the sizes that failed."""
    real, failed = one._loss, []

    def loss(part: Any) -> torch.Tensor:
        result = real(part)
        if len(part) > fits:
            failed.append(len(part))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result

    one._loss = loss  # type: ignore[method-assign]
    return failed


def test_a_step_that_ran_out_of_memory_is_taken_again(caplog: pytest.LogCaptureFixture):
    one, control = trainer(8), trainer(8)
    told: list[tuple[str, dict[str, Any]]] = []
    one.report = lambda name, **fields: told.append((name, fields))
    one.train(2)
    failed = out_of_memory_above(one, 3)
    with caplog.at_level(logging.WARNING, logger="peer.trainer"):
        result = one.train(3)
    assert failed == [8, 4] and one.micro == 2  # once each, not at every step
    assert told == [("out_of_memory", {"before": 8, "micro": 4}), ("out_of_memory", {"before": 4, "micro": 2})]
    assert "out of memory with 8 sequences" in caplog.text
    control.train(2)
    expected = control.train(3)
    assert (result.steps, result.tokens, result.skipped) == (3, 3 * 8 * SEQUENCE, 0)
    assert result.loss_mean == pytest.approx(expected.loss_mean, rel=1e-4)
    assert one.batches.state() == control.batches.state()
    np.testing.assert_allclose(one.local(), control.local(), atol=2e-4)


def test_running_out_in_the_middle_of_a_batch_leaves_no_half_gradient():
    one, control = trainer(8, micro=4), trainer(8, micro=4)
    real, fired = one._loss, []

    def loss(part: Any) -> torch.Tensor:
        fired.append(len(part))
        if len(fired) == 2:
            raise MemoryError
        return real(part)

    one._loss = loss  # type: ignore[method-assign]
    one.train(1)
    control.train(1)
    assert fired == [4, 4, 2, 2, 2, 2]
    np.testing.assert_allclose(one.local(), control.local(), atol=1e-5)


def test_where_not_even_one_sequence_fits_it_says_what_would_help():
    one = trainer(4)
    before = one.local().copy()
    failed = out_of_memory_above(one, 0)
    with pytest.raises(ConfigError, match="too little memory for one sequence of 16 tokens") as caught:
        one.train(1)
    assert failed == [4, 2, 1] and "LoRA" in caught.value.remedy
    np.testing.assert_array_equal(one.local(), before)
    with pytest.raises(ConfigError, match="too little memory"):
        halved(1, 16)


def test_an_optimizer_without_memory_for_its_moments_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    one = trainer()

    def step(rate: float) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(one._optimizer, "step", step)
    with pytest.raises(ConfigError, match="too little memory for the inner optimizer"):
        one.train(1)
    assert one.micro == 0


def test_other_errors_are_not_taken_for_it():
    one = trainer()

    def loss(part: Any) -> torch.Tensor:
        raise RuntimeError("index out of range")

    one._loss = loss  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="index out of range"):
        one.train(1)
    assert one.micro == 0
