"""The trailer: 32-bit words of statistics that are summed under the same masks as the update.

Each word of one member is below 2^26, so the sum over 64 members never wraps. Fixed point, rounded down:

| word | content | unit |
|---|---|---|
| 0 | 1, so that the sum counts members | 1 |
| 1, 2 | tokens, low and high 24 bits | 1 |
| 3 | training loss, at most 63 | 2^-20 |
| 4 | squared norm of the weighted update over the reference, at most 15 | 2^-22 |
| 5 | squared norm of what the codec lost, over the reference, at most 15 | 2^-22 |
| 6 | local steps | 1 |
| 7 | training loss at the first local step, at most 63 | 2^-20 |
| 6 + 2d | 1 if the member reports for data domain d = 1, 2, ..., so that the sum counts who does | 1 |
| 7 + 2d | its training loss in that case, at most 63 | 2^-20 |

A run without data domains has the first eight. Who reports for its domain is in `averaging.weights.reporting`.

The reference is public: `averaging.scales.reference`, the squared norm of an update at the clip everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from averaging.layout import MAX_DOMAINS, TRAILER_WORDS
from averaging.params import MAX_PEERS

WORD_BITS = 26
_WORD_MAX = 2**WORD_BITS - 1
_TOKEN_BITS = 24
_LOSS_UNIT = 2.0**20
_NORM_UNIT = 2.0**22


@dataclass(frozen=True, slots=True)
class Statistics:
    """What one member reports for a round; floats are finite and not negative, large ones saturate.

    `domain` counts from 1; 0: it reports for none.
    """

    tokens: int
    loss: float
    first_loss: float
    squared_norm: float
    lost_norm: float
    steps: int
    domain: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What the sum of the trailers says about the survivors together.

    `plausible` is False when a sum is outside what honest members can reach: some member's trailer was invalid, the
    sum says nothing, and the means are clamped to their possible range so that no value does harm downstream.
    `domains`: for each data domain, how many members report for it, and their mean loss (0 if nobody does).
    """

    members: int
    tokens: int
    mean_loss: float
    mean_first_loss: float
    mean_squared_norm: float
    mean_lost_norm: float
    mean_steps: float
    plausible: bool
    domains: tuple[tuple[int, float], ...] = ()


def pack(statistics: Statistics, domains: int = 0) -> npt.NDArray[np.uint32]:
    """Eight words, and two for each of the run's data `domains`.

    Raises ValueError for a negative or non-finite entry, tokens from 2^48, or a domain that the run does not have.
    """
    tokens, steps = statistics.tokens, statistics.steps
    if not 0 <= tokens < 1 << (2 * _TOKEN_BITS) or steps < 0:
        raise ValueError(f"{tokens} tokens, {steps} steps")
    if not 0 <= statistics.domain <= domains:
        raise ValueError(f"data domain {statistics.domain} of {domains}")
    loss = _fixed(statistics.loss, _LOSS_UNIT)
    words = (
        1,
        tokens & ((1 << _TOKEN_BITS) - 1),
        tokens >> _TOKEN_BITS,
        loss,
        _fixed(statistics.squared_norm, _NORM_UNIT),
        _fixed(statistics.lost_norm, _NORM_UNIT),
        min(steps, _WORD_MAX),
        _fixed(statistics.first_loss, _LOSS_UNIT),
    )
    by_domain = [word for d in range(1, domains + 1) for word in ((1, loss) if d == statistics.domain else (0, 0))]
    return np.array((*words, *by_domain), "<u4")


def unpack(summed: npt.NDArray[np.integer[Any]], members: int) -> Totals:
    """Public totals of `members` survivors from the unmasked sum of their words: uint32 of one cohort, int64 of many.
    The same floats on every machine.
    """
    domains, odd = divmod(summed.size - TRAILER_WORDS, 2)
    if summed.ndim != 1 or odd or not 0 <= domains <= MAX_DOMAINS or not 1 <= members <= MAX_PEERS:
        raise ValueError(f"a trailer of shape {summed.shape} over {members} members")
    words = [int(word) for word in summed]
    caps = [members * (2**_TOKEN_BITS - 1 if k in (1, 2) else _WORD_MAX) for k in range(TRAILER_WORDS)]
    caps += [members, members * _WORD_MAX] * domains
    plausible = words[0] == members and all(word <= cap for word, cap in zip(words, caps, strict=True))
    words = [min(word, cap) for word, cap in zip(words, caps, strict=True)]
    by_domain = list(zip(words[TRAILER_WORDS::2], words[TRAILER_WORDS + 1 :: 2], strict=True))
    plausible = plausible and sum(count for count, _ in by_domain) <= members
    return Totals(
        members=members,
        tokens=words[1] + (words[2] << _TOKEN_BITS),
        mean_loss=words[3] / (_LOSS_UNIT * members),
        mean_first_loss=words[7] / (_LOSS_UNIT * members),
        mean_squared_norm=words[4] / (_NORM_UNIT * members),
        mean_lost_norm=words[5] / (_NORM_UNIT * members),
        mean_steps=words[6] / members,
        plausible=plausible,
        domains=tuple((count, loss / (_LOSS_UNIT * count) if count else 0.0) for count, loss in by_domain),
    )


def _fixed(value: float, unit: float) -> int:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value} cannot go into the trailer")
    return int(min(value * unit, float(_WORD_MAX)))
