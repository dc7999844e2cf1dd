import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging import shamir
from averaging.field import PRIME

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "shamir.json").read_text())


def lagrange_at_zero(points):
    """Textbook interpolation, one inversion per point."""
    total = 0
    for x, y in points.items():
        term = y
        for other in points:
            if other != x:
                term = term * other % PRIME * pow(other - x, -1, PRIME) % PRIME
        total += term
    return total % PRIME


@given(st.data(), st.binary(min_size=31, max_size=31), st.integers(1, 16))
def test_any_threshold_shares_give_the_secret_back(data, secret, count):
    threshold = data.draw(st.integers(1, count))
    shares = shamir.split(secret, threshold, count)
    size = data.draw(st.integers(threshold, count))
    chosen = data.draw(st.permutations(range(count)))[:size]
    assert shamir.combine({k: shares[k] for k in chosen}, threshold) == secret


def test_every_subset_of_a_small_sharing():
    secret = bytes(range(31))
    shares = shamir.split(secret, 3, 6)
    for subset in combinations(range(6), 3):
        assert shamir.combine({k: shares[k] for k in subset}) == secret


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['threshold']}/{len(row['shares'])}")
def test_vectors_agree_with_textbook_interpolation(row):
    points = {k + 1: int(share, 16) for k, share in enumerate(row["shares"])}
    last = dict(list(points.items())[-row["threshold"] :])
    assert lagrange_at_zero(last) == int(row["secret"], 16)


def test_fewer_shares_than_the_threshold_say_nothing():
    secret = bytes(31)
    shares = shamir.split(secret, 5, 8)
    with pytest.raises(ValueError, match="needed"):
        shamir.combine({k: shares[k] for k in range(4)}, threshold=5)
    # For every candidate secret there is a polynomial through any four shares: all secrets stay equally likely.
    guess = int.from_bytes(b"\x07" * 31, "big")
    points = {0: guess, **{k + 1: int.from_bytes(shares[k], "big") for k in range(4)}}
    fifth = sum(y * _basis(points, x, 5) for x, y in points.items()) % PRIME
    forged = {k: shares[k] for k in range(4)} | {4: fifth.to_bytes(32, "big")}
    assert shamir.combine(forged, 5) == b"\x07" * 31


def _basis(points, x, at):
    value = 1
    for other in points:
        if other != x:
            value = value * (at - other) % PRIME * pow(x - other, -1, PRIME) % PRIME
    return value


def test_the_coefficients_come_from_the_given_randomness():
    asked = []

    def rng(size):
        asked.append(size)
        return bytes(range(size))

    first = shamir.split(bytes(31), 4, 5, rng)
    assert asked == [96]
    assert first == shamir.split(bytes(31), 4, 5, rng)
    assert first != shamir.split(bytes(31), 4, 5)


def test_a_wrong_share_does_not_give_the_secret():
    secret = bytes(range(31))
    shares = dict(enumerate(shamir.split(secret, 4, 4, lambda n: bytes(range(n)))))
    shares[2] = (int.from_bytes(shares[2], "big") ^ 1).to_bytes(32, "big")
    assert shamir.combine(shares) != secret
    shares[2] = (int.from_bytes(shares[2], "big") ^ (1 << 250)).to_bytes(32, "big")
    with pytest.raises(ValueError, match="belong together"):
        shamir.combine(shares)


def test_a_result_wider_than_a_secret_is_refused():
    with pytest.raises(ValueError, match="belong together"):
        shamir.combine({0: (2**248).to_bytes(32, "big")})
    assert shamir.combine({0: (2**248 - 1).to_bytes(32, "big")}) == b"\xff" * 31


@pytest.mark.parametrize("shares", [{}, {-1: bytes(32)}, {64: bytes(32)}, {0: bytes(31)}, {0: b"\xff" * 32}], ids=repr)
def test_malformed_shares_are_refused(shares):
    with pytest.raises(ValueError):
        shamir.combine(shares)


@pytest.mark.parametrize(("size", "threshold", "count"), [(30, 2, 3), (31, 0, 3), (31, 4, 3), (31, 2, 65)])
def test_malformed_sharings_are_refused(size, threshold, count):
    with pytest.raises(ValueError):
        shamir.split(bytes(size), threshold, count)
