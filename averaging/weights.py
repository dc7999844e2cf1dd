"""How much an update counts in the mean: bounded, apart from the reward tally, and from public numbers alone.

The tally counts tokens. The mean must not: peers on slow machines may hold data that nobody else has, and a mean by
tokens drowns them (docs/training.md has the measurement). So the weight of a survivor with n tokens and cap N is

    base = n / N                     by = "tokens"
           sqrt(n / N)               by = "root"
           1                         by = "equal"        (n / N at most 1 throughout)
    u    = max(base, floor) * (ratio / 2)^q

and n / N alone for less than one sequence, which is no local step. `ratio` is the loss of the survivor's data domain
over the mean loss, within 1/2 and 2, of the last round that said so: with q > 0 domains that the model knows badly
count for more (q-FFL, Li et al. 2020, arXiv 1905.10497, with losses per domain in place of losses per peer).

All weights are whole multiples of 2^-40 by integer arithmetic, so that everybody has the same bits, and so that even
4096 of them add up exactly in a float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt

from averaging.params import tolerated
from averaging.trailer import Totals

UNIT_BITS = 40
ONE = 1 << UNIT_BITS
"""A weight of 1."""
RATIO_BITS = 16
EIGHTHS = 8
"""The exponent q counts in eighths: an eighth root is three square roots, which are exact in integers."""
_LOW, _HIGH = 0.5, 2.0

Ratios = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weighing:
    """How a run weighs updates; the same for all its peers.

    `cap`: tokens that count in full. `least`: tokens of one sequence; who brings fewer has done no local step. `floor`:
    least base of who has done one, in 0..1. `importance`: the exponent q in eighths, 0 (off) to 8.
    Raises ValueError when a value is out of range.
    """

    by: str
    cap: int
    least: int = 1
    floor: float = 0.0
    importance: int = 0

    def __post_init__(self) -> None:
        if self.by not in ("tokens", "root", "equal"):
            raise ValueError(f"no weights by {self.by!r}")
        if not (1 <= self.cap <= ONE and self.least >= 1 and 0.0 <= self.floor <= 1.0):
            raise ValueError(f"a cap of {self.cap}, a least of {self.least} or a floor of {self.floor}")
        if not 0 <= self.importance <= EIGHTHS:
            raise ValueError(f"importance of {self.importance} eighths")

    def weight(self, tokens: int, domain: int, ratios: Ratios) -> int:
        """Weight in units of 2^-40, from 1 to 2^40, of a survivor with so many `tokens` (at least 1).

        `domain` counts from 1; 0, or one that the run does not have, is none. `ratios`: see `first_ratios`.
        """
        ratio = float(ratios[domain - 1]) if 1 <= domain <= len(ratios) else 1.0
        return max(1, (self._base(tokens) * _power(ratio, self.importance)) >> UNIT_BITS)

    def total(self, tokens: Sequence[int], domains: Sequence[int], ratios: Ratios) -> float:
        """Sum of the weights of up to 4096 survivors, exact. `domains` may be empty: then nobody has declared one."""
        declared = domains or (0,) * len(tokens)
        return as_float(sum(self.weight(n, d, ratios) for n, d in zip(tokens, declared, strict=True)))

    def _base(self, tokens: int) -> int:
        plain = (min(tokens, self.cap) << UNIT_BITS) // self.cap
        if self.by == "tokens" or tokens < self.least:
            base = plain
        elif self.by == "root":
            base = isqrt((min(tokens, self.cap) << (2 * UNIT_BITS)) // self.cap)
        else:
            base = ONE
        return base if tokens < self.least else max(base, int(self.floor * ONE))


def as_float(units: int) -> float:
    """A weight, or a sum of up to 4096, as the float64 that it is exactly."""
    return units / ONE


def _power(ratio: float, eighths: int) -> int:
    """`(ratio / 2)^(eighths / 8)` in units of 2^-40, rounded down; `ratio` within 1/2 and 2."""
    if eighths == 0:
        return ONE
    whole = int(min(max(ratio, _LOW), _HIGH) * (1 << RATIO_BITS))
    power = (whole**eighths << (EIGHTHS * UNIT_BITS)) >> ((RATIO_BITS + 1) * eighths)
    return isqrt(isqrt(isqrt(power)))  # the floor of a root of a floor is the floor of the root of all


def reporting(domains: Sequence[int], least: int) -> frozenset[int]:
    """Domains whose members tell their losses, by what a cohort's members have declared (before anybody uploads).

    The trailer's sums are public, so each sum of losses must be over at least `least` survivors, whoever drops out; and
    as the sum over all is public too, so must what is left of it when the domains are taken away. Small domains
    therefore stay in that rest, and where the rest itself is too small, the smallest other domain joins it.
    """
    needed = least + tolerated(len(domains))
    counts = Counter(domains)
    large = {domain: count for domain, count in counts.items() if domain and count >= needed}
    rest = len(domains) - sum(large.values())
    while large and 0 < rest < needed:
        smallest = min(large, key=lambda domain: (large[domain], domain))
        rest += large.pop(smallest)
    return frozenset(large)


def told(domains: Sequence[int], member: int, least: int) -> int:
    """The domain that this member of a cohort reports its loss for; 0 for none."""
    return domains[member] if domains[member] in reporting(domains, least) else 0


def first_ratios(domains: int) -> Ratios:
    """float32[domains] of ones: no domain's loss is known yet. Multiples of 2^-16, within 1/2 and 2, part of the
    canonical state."""
    return np.ones(domains, np.float32)


def next_ratios(ratios: Ratios, totals: Totals | None) -> Ratios:
    """Each domain's loss over the mean of all survivors; one that is not in this round's totals keeps its old ratio."""
    fresh = ratios.copy()
    if totals is None or not totals.mean_loss > 0.0:
        return fresh
    for k, (members, loss) in enumerate(totals.domains):
        if members:
            bounded = min(max(loss / totals.mean_loss, _LOW), _HIGH)
            fresh[k] = int(bounded * (1 << RATIO_BITS)) / (1 << RATIO_BITS)
    return fresh


def declared(domains: Iterable[int]) -> tuple[int, ...]:
    """Domains as messages and aggregates carry them: none at all where nobody has declared one."""
    given = tuple(domains)
    return given if any(given) else ()
