"""Discrete Gaussian noise, sampled exactly, and what a sum of it promises (an experiment).

P(x) is proportional to exp(-x^2 / (2 s^2)) over the integers (Canonne, Kamath and Steinke 2020, arXiv 2004.00010). The
sampler is their algorithm 3 with t = s, for a whole s, on arrays: a discrete Laplace variate y of scale s is kept with
probability exp(-(|y| - s)^2 / (2 s^2)). All coins are tossed with whole numbers: no exponential and no float is
computed, so no rounding can betray what a variate was added to.

Each of n members adds its own to its ring elements before they are masked, so nobody adds the whole noise, and nobody
can take it off (the distributed discrete Gaussian mechanism: Kairouz, Liu and Steinke 2021, arXiv 2102.06387). The sum
of h >= n - delta survivors has h times the variance of one and is all but discrete Gaussian: `concentrated` says what
the difference costs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from averaging.layout import RingArray
from averaging.masking import keystream_iv

LARGEST_SCALE = 1 << 26
"""Of s: squares of what is at most 32 s then fit into 62 bits; larger variates are dropped (probability e^-500)."""
_PIECE = 1 << 16
Integers = npt.NDArray[np.int64]
Coins = npt.NDArray[np.bool_]


class Source:
    """Uniform 64-bit words from AES-128-CTR; the same for the same key and chunk, so that a chunk can be made again."""

    def __init__(self, key: bytes, chunk: int = 0) -> None:
        """`key`: 16 secret random bytes, used for nothing else."""
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(keystream_iv(chunk))).encryptor()

    def below(self, bound: int, count: int) -> npt.NDArray[np.uint64]:
        """`count` uniform whole numbers from 0 to `bound` - 1, for a bound from 1 to 2^63. By rejection: exact."""
        mask = np.uint64((1 << (bound - 1).bit_length()) - 1)
        result = np.zeros(count, np.uint64)
        open_ = np.arange(count if bound > 1 else 0)
        while open_.size:
            words = np.frombuffer(self._cipher.update(bytes(8 * open_.size)), "<u8") & mask
            good = words < bound
            result[open_[good]] = words[good]
            open_ = open_[~good]
        return result


def sample(scale: int, count: int, source: Source) -> Integers:
    """`count` independent discrete Gaussian variates of parameter `scale` (s, whole, from 1 to 2^26), int64[count].

    Their variance is at most s^2, and all but equal to it from s = 2 on. Raises ValueError for another scale.
    """
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"scale {scale} is outside 1..{LARGEST_SCALE}")
    result = np.empty(count, np.int64)
    for start in range(0, count, _PIECE):
        piece = result[start : start + _PIECE]
        done = 0
        while done < piece.size:
            y = _laplace(scale, 2 * (piece.size - done) + 16, source)
            off = np.abs(y) - scale
            near = np.abs(off) <= 32 * scale
            y, off = y[near], off[near]
            kept = y[_exponential_coins(off * off, 2 * scale * scale, source)][: piece.size - done]
            piece[done : done + kept.size] = kept
            done += kept.size
    return result


def add(ring: RingArray, scale: int, key: bytes, chunk: int) -> None:
    """Add noise to 32-bit ring elements in place, modulo 2^32; the same for the same key and chunk."""
    noise = sample(scale, ring.size, Source(key, chunk))
    np.add(ring, (noise & 0xFFFFFFFF).astype(ring.dtype), out=ring)


def concentrated(sensitivity: float, scale: float, honest: int, elements: int) -> float:
    """Rho of the zero-concentrated privacy of one sum, by the bound of arXiv 2102.06387 on sums of discrete Gaussians.

    `sensitivity`: largest norm of one member's vector of whole numbers, `scale`: s of each of the `honest` members
    whose noise is in the sum, of `elements` coordinates.
    """
    off = 10.0 * sum(math.exp(-2.0 * (math.pi * scale) ** 2 * j / (j + 1)) for j in range(1, honest))
    ratio = sensitivity / (math.sqrt(honest) * scale)
    epsilon_squared = min(ratio**2 + off * elements / 2, (ratio + off * math.sqrt(elements)) ** 2)
    return epsilon_squared / 2


def _laplace(scale: int, tries: int, source: Source) -> Integers:
    """Discrete Laplace variates, P(y) proportional to exp(-|y| / scale); as many as `tries` tries give."""
    low = source.below(scale, tries).astype(np.int64)
    low = low[_below_one_coins(low, scale, source)]
    size = low + scale * _runs(low.size, source)
    negative = source.below(2, size.size) == 1
    found: Integers = np.where(negative, -size, size)[~(negative & (size == 0))]  # else zero would come twice
    return found


def _runs(count: int, source: Source) -> Integers:
    """How many coins of probability 1/e in a row show heads."""
    lengths = np.zeros(count, np.int64)
    open_ = np.arange(count)
    while open_.size:
        open_ = open_[_below_one_coins(np.ones(open_.size, np.int64), 1, source)]
        lengths[open_] += 1
    return lengths


def _exponential_coins(over: Integers, under: int, source: Source) -> Coins:
    """Heads with probability exp(-over / under), for over >= 0: a coin of 1/e for each whole, one for the rest."""
    whole, rest = np.divmod(over, under)
    heads: Coins = _runs(over.size, source) >= whole
    chosen = np.flatnonzero(heads)
    heads[chosen] = _below_one_coins(rest[chosen], under, source)
    return heads


def _below_one_coins(over: Integers, under: int, source: Source) -> Coins:
    """Heads with probability exp(-over / under), for 0 <= over <= under: von Neumann's trick.

    Toss coins of probability over / (under k) for k = 1, 2, ... until one shows tails: k is odd that often.
    """
    result = np.zeros(over.size, np.bool_)
    open_, k = np.arange(over.size), 1
    while open_.size:
        heads = source.below(under, open_.size) < over[open_].astype(np.uint64)
        if k > 1:
            heads &= source.below(k, open_.size) == 0
        result[open_[~heads]] = k % 2 == 1
        open_, k = open_[heads], k + 1
    return result
