from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.discrete_gaussian import LARGEST_SCALE, Source, add, concentrated, sample

KEY = bytes(range(16))
VECTOR = [-19, 1880, 143, 148, 766, -733, -696, -358]


def probabilities(scale: int) -> dict[int, float]:
    weights = {x: math.exp(-x * x / (2 * scale * scale)) for x in range(-12 * scale - 5, 12 * scale + 6)}
    total = math.fsum(weights.values())
    return {x: weight / total for x, weight in weights.items()}


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_each_value_comes_as_often_as_it_should(scale):
    """Fixed keys, bounds of five standard deviations: never fails by chance."""
    count = 100_000
    values = sample(scale, count, Source(KEY))
    right = probabilities(scale)
    for x in range(-3 * scale, 3 * scale + 1):
        share, p = float(np.mean(values == x)), right[x]
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / count), x
    variance = math.fsum(x * x * p for x, p in right.items())
    assert np.mean(values.astype(float) ** 2) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("scale", [1000, 30_000_001, LARGEST_SCALE])
def test_large_scales_are_normal(scale):
    z = sample(scale, 100_000, Source(KEY, 3)) / scale
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / z.size)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / z.size)
    assert np.mean(np.abs(z) < 1) == pytest.approx(0.682689, abs=5 * math.sqrt(0.217 / z.size))
    assert np.abs(z).max() > 3.5
    odd = float(np.mean(sample(scale, 100_000, Source(KEY, 4)) % 2))
    assert odd == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(100_000))


@pytest.mark.parametrize("scale", [0, -1, LARGEST_SCALE + 1])
def test_other_scales_are_refused(scale):
    with pytest.raises(ValueError, match="outside"):
        sample(scale, 1, Source(KEY))


def test_known_values_stay():
    """A vector: whoever writes the sampler again gets these from the same keystream."""
    assert sample(1000, 8, Source(KEY, 1)).tolist() == VECTOR
    assert sample(1000, 8, Source(KEY, 2)).tolist() != VECTOR


@given(st.integers(1, 2**63))
def test_uniform_numbers_are_below_their_bound(bound):
    assert int(Source(KEY).below(bound, 30).max()) < bound


@pytest.mark.parametrize("bound", [2, 3, 5, 6, 2**62 + 2**61])
def test_uniform_numbers_are_uniform(bound):
    drawn = Source(KEY, 9).below(bound, 60_000).astype(float)
    parts = np.bincount((drawn * 3 // bound).astype(int), minlength=3)[:3] / drawn.size
    exact = (
        [sum(1 for x in range(bound) if x * 3 // bound == part) / bound for part in range(3)] if bound < 10 else None
    )
    np.testing.assert_allclose(parts, exact or 1 / 3, atol=5 * 0.5 / math.sqrt(drawn.size))


def test_the_noise_of_members_adds_up_in_the_ring():
    """Seven of eight members, each with a seventh of the variance: the sum has the whole of it, and wraps exactly."""
    total, members = 6000.0, 7
    scale = math.ceil(total / math.sqrt(members))
    rings = [np.full(50_000, 2**32 - 5, np.uint32) for _ in range(members)]
    for index, ring in enumerate(rings):
        add(ring, scale, bytes([index] * 16), 0)
    signed = sum(rings[1:], rings[0]).view(np.int32) + 5 * members
    assert float(np.mean(signed.astype(float) ** 2)) == pytest.approx(total**2, rel=5 * math.sqrt(2 / signed.size))
    assert float(np.corrcoef(rings[0].view(np.int32), rings[1].view(np.int32))[0, 1]) == pytest.approx(0, abs=0.03)


def test_a_chunk_made_again_has_the_same_noise_and_another_chunk_has_not():
    rings = [np.zeros(1000, np.uint32) for _ in range(3)]
    for ring, chunk in zip(rings, (4, 4, 5), strict=True):
        add(ring, 77, KEY, chunk)
    assert np.array_equal(rings[0], rings[1])
    assert not np.array_equal(rings[0], rings[2])


def test_the_bound_is_that_of_one_gaussian_and_grows_where_noise_is_coarse():
    assert concentrated(100.0, 50.0, 4, 10**6) == pytest.approx((100 / 100) ** 2 / 2)
    assert concentrated(100.0, 50.0, 8, 10**6) == pytest.approx(100**2 / (8 * 50**2) / 2)
    fine, coarse = concentrated(1.0, 1.0, 4, 10**4), concentrated(0.5, 0.5, 4, 10**4)
    assert coarse > 10 * fine > 0
    assert concentrated(1.0, 0.5, 1, 100) == pytest.approx(2.0)  # one alone is exactly discrete Gaussian
