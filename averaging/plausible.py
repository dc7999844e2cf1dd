"""What honest members can have summed up to, by public numbers alone: a sum beyond it is nobody's to apply.

Nobody can see what one member uploaded. But each honest one is within [-L, L] in every coordinate, says its tokens in
manifest and trailer alike, and says a squared norm that its upload does not exceed before rounding. So for U survivors

    |sum| <= U * L in every coordinate          (the ring has room for a little more; wrong masks fall there)
    ||sum|| <= sqrt(U * sum_i ||w_i u_i||^2) + U * sqrt(reference) / L   (Cauchy-Schwarz, and rounding)

and the trailer counts U members and the manifests' tokens. All members compute the same verdict from the same sums.

This finds broken masks, values out of range and inflated updates whose trailer is honest. It does not find a liar that
stays within what the others' claims leave room for: see docs/threat-model.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from averaging.scales import Float32Array, reference
from averaging.trailer import Totals
from dht.errors import RoundError

_SLACK = 1.01
"""Norms are computed in float32, and the trailer rounds down."""
_NORM_UNIT = 2.0**-22


class ImplausibleSumError(RoundError):
    """No honest members can have summed up to this: somebody lied, and nobody can tell who."""

    code = "MUR-711"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the sum is not one of honest updates: {reason}", remedy="nothing; the round will be void")


def check_range(sums: Iterable[npt.NDArray[np.integer[Any]]], levels: int, survivors: int) -> None:
    """Raises ImplausibleSumError if a coordinate is larger than `survivors` updates within [-levels, levels] can make
    it. `sums`: the signed integers of data chunks (`averaging.encoding.signed`)."""
    most = levels * survivors
    for chunk, signed in enumerate(sums):
        low, high = int(signed.min(initial=0)), int(signed.max(initial=0))
        if not -most <= low <= high <= most:
            raise ImplausibleSumError(f"{max(-low, high)} in chunk {chunk}, where {most} is the most")


def check_totals(totals: Totals, tokens: int) -> None:
    """Raises ImplausibleSumError unless the trailer counts the survivors and the tokens that their manifests say."""
    if not totals.plausible:
        raise ImplausibleSumError("its trailer is not a sum of trailers")
    if totals.tokens != tokens:
        raise ImplausibleSumError(f"its trailer says {totals.tokens} tokens, the manifests say {tokens}")


def check_norm(energies: npt.NDArray[Any], scales: Float32Array, levels: int, totals: Totals) -> None:
    """Raises ImplausibleSumError if the sum is longer than the members' own norms allow.

    `energies`: float64[blocks], sums of squares of each block's integers; negative for lost ones, which count as zero.
    `scales`: float32[blocks], the clips.
    """
    wide = scales.astype(np.float64)
    squared = np.maximum(energies.astype(np.float64), 0.0) * (wide / levels) ** 2
    unit, survivors = reference(scales), totals.members
    length = math.sqrt(math.fsum(squared.tolist()) / unit)
    claimed = survivors * (totals.mean_squared_norm + _NORM_UNIT)
    most = _SLACK * math.sqrt(survivors * claimed) + survivors / levels
    if length > most:
        raise ImplausibleSumError(f"it is {length:.3g} clips long, and its members say {most:.3g} at most")
