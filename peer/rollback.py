"""What a peer keeps when the branch that it was on is given up: the branch's progress, as an update to bring again.

The mean updates of the abandoned rounds follow from the states at both ends of the branch, which everybody on it
held: so nothing of one peer alone is sent a second time, whoever was in which sum. A peer brings them in proportion
to the rounds that it had a part in, so that those who come back bring together what they did together; of each
fragment by that fragment's rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from averaging.chain import Chain
from averaging.record import Record
from dht.identity import PeerId
from peer.fragments import Fragments
from peer.outer import OuterStep, Vector

_SLICE = 1 << 20


def pinned_rounds(chain: Chain, round_: int) -> tuple[int, ...]:
    """Rounds up to `round_` whose states a peer keeps on disk: where the last recovery's branch began."""
    recent = [recovery for recovery, _ in chain.recoveries if chain.finalized < recovery <= round_][-1:]
    return tuple(state_round(chain, recovery - 1) for recovery in recent)


def state_round(chain: Chain, round_: int) -> int:
    """The round in which the state that holds after `round_` came about."""
    while round_ and chain.record(round_).void:
        round_ -= 1
    return round_


def part_in(records: Sequence[Record], me: PeerId) -> tuple[float, int]:
    """Of abandoned records: the share of those with an update that has mine in it, and my tokens in them."""
    summed = [record for record in records if not record.void]
    mine = [survivor.tokens for record in summed for survivor in record.survivors if survivor.peer == me]
    return (len(mine) / len(summed) if summed else 0.0), sum(mine)


def shares(records: Sequence[Record], me: PeerId, fragments: Fragments) -> Iterator[tuple[slice, float]]:
    """Of every fragment its elements, and `part_in`'s share of those abandoned records that summed it."""
    for turn in range(1, fragments.count + 1):
        summed = [record for record in records if fragments.index(record.round) == fragments.index(turn)]
        yield fragments.elements(turn), part_in(summed, me)[0]


def bring_again(
    residual: Vector, outer: OuterStep, share: float, before: tuple[Vector, Vector], after: tuple[Vector, Vector]
) -> None:
    """residual += share x (sum of the mean updates that led from `before` to `after`), in place.

    Both are (parameters, momentum), float32[D]. From `p' = p - rate (mu m' + g)`, `m' = mu m + g` over all rounds the
    sum of g is `(1 - mu) (p0 - pK) / rate + mu^2 (mK - m0)` (without Nesterov mu in place of its square). That holds
    for each element whatever number of steps it took, so also where fragments had unequal numbers of turns.
    """
    rate, decay = outer.learning_rate, outer.momentum
    if rate == 0.0 or share == 0.0:
        return
    inertia = decay * decay if outer.nesterov else decay
    for start in range(0, len(residual), _SLICE):
        part = slice(start, start + _SLICE)
        progress = (before[0][part] - after[0][part]) * ((1.0 - decay) / rate)
        progress += (after[1][part] - before[1][part]) * inertia
        residual[part] += progress * share
