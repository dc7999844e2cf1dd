"""Thresholds: what they are for every size, and the inequalities that privacy and agreement rest on."""

from __future__ import annotations

import pytest

from averaging.certificate import faulty, quorum
from averaging.params import MAX_MEMBERS, Deadlines, honest_witness, threshold, tolerated

SIZES = range(3, MAX_MEMBERS + 1)


@pytest.mark.parametrize(("n", "delta", "t"), [(3, 0, 3), (4, 1, 3), (5, 1, 4), (8, 1, 7), (16, 2, 14), (64, 8, 56)])
def test_dropouts_and_threshold(n, delta, t):
    assert (tolerated(n), threshold(n)) == (delta, t)


@pytest.mark.parametrize(("n", "colluders"), [(5, 2), (8, 5), (16, 11), (32, 23)])
def test_the_colluders_that_learn_nothing(n, colluders):
    assert 2 * threshold(n) - n - 1 == colluders


@pytest.mark.parametrize("n", SIZES)
def test_two_certificates_share_an_honest_member(n):
    """With f < 2t - n colluders, t - f honest votes for each of two sets would need more honest members than there
    are."""
    f = 2 * threshold(n) - n - 1
    assert 2 * (threshold(n) - f) > n - f
    assert threshold(n) - f == tolerated(n) + 1


@pytest.mark.parametrize("n", SIZES)
def test_a_witness_is_one_more_than_may_lie(n):
    assert honest_witness(n) == faulty(n) + 1
    assert 2 * quorum(n) - n > faulty(n)


def test_an_attempt_has_time_for_every_stand_in():
    limits = Deadlines()
    assert limits.total(16) - limits.total(3) == 2 * limits.sums
    assert limits.total(8) > limits.shares + limits.train + limits.upload + limits.survivors + limits.unmask
