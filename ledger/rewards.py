"""Rewards: how one epoch's pot is split, in integers, without a unit too few or too many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dht.errors import ConfigError
from ledger.points import Points

ALL_BPS = 10_000
UINT128 = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Constants:
    """What all who recompute a run's tally must agree on; the manifest and the RewardPool fix it. Raises ConfigError.

    `emission` and `emission_cap` in 1e-18 tokens: what an epoch mints, and what all epochs together may (the
    token's cap without the genesis allocation). `tokens_bps` of 10,000 parts go to tokens, the rest to chunks.
    `chunk_bytes`: of a full chunk of the manifest's codec.
    """

    rounds_per_checkpoint: int
    emission: int
    emission_cap: int
    tokens_bps: int
    chunk_bytes: int

    def __post_init__(self) -> None:
        bounds = {
            "rounds_per_checkpoint": (1, 1 << 32),
            "emission": (0, UINT128),
            "emission_cap": (0, UINT128),
            "tokens_bps": (0, ALL_BPS),
            "chunk_bytes": (1, 1 << 32),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is not within {low} to {high}", remedy="mend the run's manifest"
                )

    def first_round(self, epoch: int) -> int:
        """The round that an epoch begins with."""
        return (epoch - 1) * self.rounds_per_checkpoint + 1

    def last_round(self, epoch: int) -> int:
        """The round that an epoch ends with; 0 for epoch 0."""
        return epoch * self.rounds_per_checkpoint


def largest_remainder(pot: int, weights: Sequence[int]) -> list[int]:
    """Split `pot` in proportion to `weights`, exactly: floors, then one unit each to the largest remainders.

    Ties go to whoever comes first (Hamilton's method). All zero when no weight is positive.
    """
    total = sum(weights)
    if total <= 0:
        return [0] * len(weights)
    shares = [pot * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda k: (-(pot * weights[k] % total), k))
    for k in by_remainder[: pot - sum(shares)]:
        shares[k] += 1
    return shares


def split(pot: int, points: Mapping[bytes, Points], tokens_bps: int) -> dict[bytes, int]:
    """Reward by peer: `tokens_bps` of the pot by tokens, the rest by chunks, ties in the order of peer ids.

    A part for which nobody has points goes to the other one; when nobody has any, nothing is paid.
    """
    peers = sorted(points)
    tokens = [points[peer].tokens for peer in peers]
    chunks = [points[peer].chunks for peer in peers]
    for_tokens = pot * tokens_bps // ALL_BPS if any(chunks) else pot
    if not any(tokens):
        for_tokens = 0
    parts = zip(largest_remainder(for_tokens, tokens), largest_remainder(pot - for_tokens, chunks), strict=True)
    return {peer: one + other for peer, (one, other) in zip(peers, parts, strict=True)}
