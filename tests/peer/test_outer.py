from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ConfigError, RoundError
from peer.outer import OuterStep, require_ieee

RNG = np.random.default_rng(5)


def vectors(count: int, length: int = 1000) -> list[np.ndarray]:
    return [RNG.standard_normal(length).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_agrees_with_torch_sgd(nesterov, momentum):
    start, *gradients = vectors(6)
    nesterov = nesterov and momentum > 0  # torch refuses Nesterov without momentum
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.SGD([theirs], lr=0.7, momentum=momentum, nesterov=nesterov)
    step = OuterStep(0.7, momentum, nesterov)
    ours, velocity = start, np.zeros_like(start)
    for gradient in gradients:
        theirs.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        ours, velocity = step.apply_slice(ours, velocity, gradient)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_each_operation_is_rounded_by_itself():
    # Reference in exact arithmetic (float64 holds a float32 product exactly), rounded after every operation.
    def exact(a: np.float64) -> np.float64:
        return np.float64(np.float32(a))

    parameters, velocity, gradient = vectors(3, 300)
    rate, decay = np.float64(np.float32(0.7)), np.float64(np.float32(0.9))
    new_parameters, new_velocity = OuterStep(0.7, 0.9).apply_slice(parameters, velocity, gradient)
    for i in range(300):
        p, m, g = (np.float64(vector[i]) for vector in (parameters, velocity, gradient))
        m = exact(exact(m * decay) + g)
        step = exact(exact(exact(m * decay) + g) * rate)
        assert (new_parameters[i], new_velocity[i]) == (exact(p - step), m)


@given(st.lists(st.integers(1, 999), unique=True, max_size=8).map(sorted))
def test_slicing_changes_no_byte(cuts):
    parameters, velocity, gradient = (np.sin(np.arange(1000) * k, dtype=np.float32) for k in (1.0, 2.0, 3.0))
    step = OuterStep(0.7, 0.9)
    whole = step.apply_slice(parameters, velocity, gradient)
    edges = [0, *cuts, 1000]
    parts = [step.apply_slice(parameters[a:b], velocity[a:b], gradient[a:b]) for a, b in itertools.pairwise(edges)]
    for index in (0, 1):
        assert np.concatenate([part[index] for part in parts]).tobytes() == whole[index].tobytes()


def test_inputs_stay_as_they_are():
    given_vectors = vectors(3)
    copies = [vector.copy() for vector in given_vectors]
    for nesterov in (True, False):
        new_parameters, new_velocity = OuterStep(0.5, 0.5, nesterov).apply_slice(*given_vectors)
        new_parameters[:] = new_velocity[:] = 0
    for vector, copy in zip(given_vectors, copies, strict=True):
        np.testing.assert_array_equal(vector, copy)


def test_subnormals_are_kept():
    tiny = np.full(4, 2.0**-140, np.float32)
    _, velocity = OuterStep(1.0, 0.5).apply_slice(np.zeros(4, np.float32), tiny, np.zeros(4, np.float32))
    assert (velocity == np.float32(2.0**-141)).all()


def test_overflow_voids_the_round():
    huge = np.full(3, 3e38, np.float32)
    with pytest.raises(RoundError, match="range of float32"):
        OuterStep(1.0, 0.9).apply_slice(huge, huge, huge)


def test_flushed_subnormals_are_refused():
    require_ieee()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        with pytest.raises(ConfigError, match="subnormal"):
            require_ieee()
    finally:
        torch.set_flush_denormal(False)
    require_ieee()


def test_momentum_rises_over_the_first_rounds():
    outer = OuterStep(0.8, 0.6, momentum_rounds=4)
    assert [outer.at(round_).momentum for round_ in (0, 1, 2, 3)] == pytest.approx([0.0, 0.15, 0.3, 0.45])
    assert outer.at(4) is outer
    assert OuterStep(0.8, 0.6).at(0).momentum == 0.6
