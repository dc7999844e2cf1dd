"""Which usage fees count in which epoch: one rule for all who compute a tally.

A fee that was paid while checkpoint p was the hub's newest counts in epoch p + 3. What counts in an epoch was settled
when the checkpoint two epochs before came: whoever signs sees the same, whenever it looks, and whatever becomes of the
last blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TypeAlias

DELAY = 3

Place: TypeAlias = tuple[int, int]
"""(block number, log index) of an event."""


def count_fees(checkpoints: Sequence[Place], payments: Iterable[tuple[Place, int]]) -> tuple[int, ...]:
    """Fees of epochs 1, 2, ... up to the one after the last checkpoint, as `Head.fees` and `Books` take them.

    `checkpoints`: places of `CheckpointProposed` of the epochs that stand, in order; `payments`: places of `UsagePaid`
    and the contributors' part of each, in 1e-18 tokens.
    """
    fees = [0] * (len(checkpoints) + 1)
    for place, amount in payments:
        epoch = bisect_left(checkpoints, place) + DELAY
        if epoch <= len(fees):
            fees[epoch - 1] += amount
    return tuple(fees)
