"""Shamir's secret sharing of 31-byte seeds over GF(2^255 - 19) (Shamir 1979, "How to share a secret").

Member k holds the value at x = k + 1 of a random polynomial whose value at 0 is the secret. Any `threshold` shares
give the secret back, fewer say nothing about it. Shares carry no authentication: a reconstructed seed is checked
against its commitment or public key (`averaging.keys`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache

from averaging import field

SECRET_BYTES = 31
SHARE_BYTES = field.ELEMENT_BYTES
MAX_SHARES = 64


def split(secret: bytes, threshold: int, count: int, rng: Callable[[int], bytes] = os.urandom) -> tuple[bytes, ...]:
    """`count` shares of 32 bytes, share k for member k; any `threshold` of them give `secret` (31 bytes) back.

    `rng(n)` returns n uniform bytes. Raises ValueError unless `1 <= threshold <= count <= 64`.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= threshold <= count <= MAX_SHARES:
        raise ValueError(f"threshold {threshold} of {count} shares")
    # 32 uniform bytes reduced modulo the prime are within 2^-249 of a uniform element.
    noise = rng(32 * (threshold - 1))
    coefficients = [int.from_bytes(noise[k : k + 32], "big") % field.PRIME for k in range(0, len(noise), 32)]
    constant = int.from_bytes(secret, "big")
    shares = []
    for x in range(1, count + 1):
        value = 0
        # x has at most 7 bits: one reduction at the end is cheaper than one per step.
        for coefficient in coefficients:
            value = (value + coefficient) * x
        shares.append(field.to_bytes((value + constant) % field.PRIME))
    return tuple(shares)


def combine(shares: Mapping[int, bytes], threshold: int = 1) -> bytes:
    """The 31-byte secret from shares by member index; all of them are used.

    Raises ValueError for fewer than `threshold` shares, an index outside 0..63, bytes that are no field element, or
    a result that is no 31-byte secret. With a wrong share the result is random, and fails here in 127 of 128 cases.
    """
    if len(shares) < max(1, threshold):
        raise ValueError(f"{len(shares)} shares, {max(1, threshold)} needed")
    members = tuple(sorted(shares))
    if members[0] < 0 or members[-1] >= MAX_SHARES:
        raise ValueError("a share's index is no member index")
    total = 0
    for weight, member in zip(_weights_at_zero(members), members, strict=True):
        total += weight * field.from_bytes(shares[member])
    secret = total % field.PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)
def _weights_at_zero(members: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange coefficients at 0. One round combines many secrets over the same members."""
    numerators, denominators = [], []
    for k in members:
        numerator = denominator = 1
        for m in members:
            if m != k:
                numerator *= m + 1
                denominator *= m - k
        numerators.append(numerator)
        denominators.append(denominator % field.PRIME)
    inverses = field.invert_all(denominators)
    return tuple(n * d % field.PRIME for n, d in zip(numerators, inverses, strict=True))
