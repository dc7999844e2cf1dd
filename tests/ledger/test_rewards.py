"""Rewards are exact, and a function of who did what alone."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dht.errors import ConfigError
from ledger.points import Points
from ledger.rewards import Constants, largest_remainder, split

POTS = st.integers(0, 10**28) | st.integers(0, 50)
WEIGHTS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), min_size=1, max_size=30)
PEERS = st.dictionaries(
    st.binary(min_size=2, max_size=2),
    st.builds(Points, st.integers(0, 2**64) | st.integers(0, 2), st.integers(0, 9), st.integers(0, 5)),
    max_size=20,
)
BPS = st.sampled_from((0, 1, 5000, 7000, 9999, 10_000))


@pytest.mark.parametrize(
    ("pot", "weights", "shares"),
    [
        (10, [1, 1, 1], [4, 3, 3]),  # ties go to the first
        (11, [1, 1, 1], [4, 4, 3]),
        (100, [47, 16, 158, 12, 61, 7], [16, 5, 53, 4, 20, 2]),
        (5, [0, 3, 0, 1], [0, 4, 0, 1]),
        (2, [1, 5, 5], [0, 1, 1]),
        (7, [0, 0], [0, 0]),
        (0, [3, 4], [0, 0]),
    ],
)
def test_largest_remainder(pot, weights, shares):
    assert largest_remainder(pot, weights) == shares


@given(POTS, WEIGHTS)
def test_nothing_is_lost_and_nobody_is_a_unit_off(pot, weights):
    assume(any(weights))
    shares = largest_remainder(pot, weights)
    assert sum(shares) == pot
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(pot * weight, sum(weights))) < 1
        assert weight or not share


@given(POTS, PEERS, BPS)
def test_the_payouts_are_the_pot(pot, points, bps):
    paid = split(pot, points, bps)
    earned = any(each.tokens or each.chunks for each in points.values())
    assert sum(paid.values()) == (pot if earned else 0)
    assert all(amount >= 0 for amount in paid.values())


@given(POTS, PEERS, BPS, st.randoms())
def test_the_order_of_peers_does_not_matter(pot, points, bps, random):
    shuffled = dict(random.sample(list(points.items()), len(points)))
    assert split(pot, shuffled, bps) == split(pot, points, bps)


@given(POTS, PEERS, BPS, st.sets(st.binary(min_size=3, max_size=3), max_size=5))
def test_peers_without_points_change_nothing(pot, points, bps, idle):
    paid = split(pot, points | {peer: Points(rounds=1) for peer in idle}, bps)
    assert {peer: amount for peer, amount in paid.items() if peer in points} == split(pot, points, bps)
    assert not any(paid[peer] for peer in idle)


@given(POTS, PEERS, BPS)
def test_bounds(pot, points, bps):
    """Each part is within a unit of its ideal, so a reward is within two."""
    tokens, chunks = (sum(getattr(each, name) for each in points.values()) for name in ("tokens", "chunks"))
    assume(tokens and chunks)
    for_tokens = pot * bps // 10_000
    for peer, amount in split(pot, points, bps).items():
        ideal = Fraction(for_tokens * points[peer].tokens, tokens)
        ideal += Fraction((pot - for_tokens) * points[peer].chunks, chunks)
        assert abs(amount - ideal) < 2


def test_a_part_that_nobody_earned_goes_to_the_other():
    assert split(1000, {b"a": Points(tokens=3), b"b": Points(tokens=1)}, 6000) == {b"a": 750, b"b": 250}
    assert split(1000, {b"a": Points(chunks=3), b"b": Points(chunks=1)}, 6000) == {b"a": 750, b"b": 250}
    assert split(1000, {b"a": Points(tokens=1), b"b": Points(chunks=1)}, 6000) == {b"a": 600, b"b": 400}
    assert split(1000, {b"a": Points(rounds=1)}, 6000) == {b"a": 0}


@pytest.mark.parametrize("change", [{"tokens_bps": 10_001}, {"emission": -1}, {"rounds_per_checkpoint": 0}])
def test_constants_have_bounds(change):
    good = {"rounds_per_checkpoint": 1, "emission": 1, "emission_cap": 1, "tokens_bps": 1, "chunk_bytes": 1}
    with pytest.raises(ConfigError, match=next(iter(change))) as refused:
        Constants(**good | change)
    assert refused.value.remedy


def test_epochs_adjoin():
    constants = Constants(5, 1, 1, 1, 1)
    assert [constants.first_round(epoch) for epoch in (1, 2, 3)] == [1, 6, 11]
    assert [constants.last_round(epoch) for epoch in (0, 1, 2)] == [0, 5, 10]
