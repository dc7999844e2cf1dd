"""The clip of each Hadamard block, carried from round to round by public numbers alone.

A clip has to fit what single members send, but only their sum is public. Their mean squared norm is public too, through
the trailer, and its ratio to the squared norm of the mean says how much larger than the mean members are:

    rho = sqrt(mean_i ||w_i u_i||^2 / ||mean_i w_i u_i||^2)          (1 if all agree, sqrt(n) if none do)
    clip_k = kappa * rho * max(rms_k, rms_all / 16)                  rms of the mean in block k, and over all blocks

bounded to [1/2, 4] times the old clip. Every peer must compute the same bits: reductions are exact (integers, or
`math.fsum`, which rounds once), everything else is elementwise IEEE float64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from averaging.layout import BLOCK, MAX_MEMBERS, Layout
from averaging.packing import top_digit

Float32Array = npt.NDArray[np.float32]

SMALLEST_SCALE, LARGEST_SCALE = 1e-12, 1e12
SHRINK, GROW = 0.5, 4.0
FLOOR = 1 / 16
UNKNOWN = -1.0
_PACKED_KAPPA = {1: 0.8, 2: 1.22, 3: 1.49, 4: 1.72, 5: 1.83, 6: 1.95, 7: 2.05}
"""By M: where nearest rounding of normal numbers to M + 1 equally spaced levels loses least (Max 1960)."""


def levels(layout: Layout, members: int) -> int:
    """L: the largest quantised magnitude, an integer that float32 represents, with members * L < 2^(B-1).

    Where elements are packed (`averaging.packing`) it is M: then values are -M, -M + 2, ... M, two apart.
    Raises ValueError unless 1 <= members <= 64, or fewer where packed words do not hold so many.
    """
    if not 1 <= members <= MAX_MEMBERS:
        raise ValueError(f"{members} members; a cohort has 1 to {MAX_MEMBERS}")
    if layout.pack > 1:
        if (top := top_digit(layout.pack, members)) < 1:
            raise ValueError(f"{members} members are too many for {layout.pack} elements in a word")
        return top
    ring_bits = layout.ring_bits
    top = 1 << (ring_bits - (members - 1).bit_length() - 1)
    # In the 32-bit ring float32 cannot represent top - 1: rounding it up would let 64 members wrap.
    return top - max(1, top >> 24)


def kappa(layout: Layout, members: int) -> float:
    """Clip in units of a block's rms: where rounding error meets clipping error, as measured (decisions/0003).

    With many levels a wide clip costs nothing that matters and leaves room for members above the rms.
    """
    top = levels(layout, members)
    if layout.pack > 1:
        return _PACKED_KAPPA.get(top, 2.5)
    for least, clip in ((256, 8.0), (31, 3.5), (15, 3.0), (3, 2.5)):
        if top >= least:
            return clip
    return 2.0


def initial_scales(layout: Layout, learning_rate: float, local_steps: int) -> Float32Array:
    """float32[blocks] for the first round, when no aggregate is known.

    AdamW moves a coordinate by at most about the learning rate per step, so learning_rate * local_steps bounds the
    rms of an update; rotated coordinates are within four times that.
    """
    clip = min(max(4.0 * learning_rate * local_steps, SMALLEST_SCALE * 2), LARGEST_SCALE / 2)
    return np.full(layout.blocks, clip, np.float32)


def reference(scales: Float32Array) -> float:
    """Squared norm of an update that is at the clip everywhere: the unit of norms in the trailer."""
    wide = scales.astype(np.float64)
    return BLOCK * math.fsum((wide * wide).tolist())


def next_scales(
    layout: Layout,
    members: int,
    scales: Float32Array,
    energies: npt.NDArray[np.float64],
    survivors: int,
    mean_squared_norm: float,
) -> Float32Array:
    """float32[blocks] for the next round, from public numbers.

    `energies`: `Decoder.block_energies` of every block, or -1 for a block whose chunk was lost; it keeps its clip.
    `mean_squared_norm`: from the trailer, over `reference(scales)`. Raises ValueError for a wrong shape.
    """
    if energies.shape != (layout.blocks,) or scales.shape != (layout.blocks,):
        raise ValueError(f"{energies.shape} energies, {scales.shape} scales for {layout.blocks} blocks")
    known = energies != UNKNOWN
    if not bool(known.any()):
        return scales.copy()
    wide = scales.astype(np.float64)
    unit = wide / (levels(layout, members) * survivors)
    mean_square = np.where(known, energies, 0.0) * (unit * unit) / BLOCK
    rms_all = math.sqrt(math.fsum(mean_square.tolist()) / int(known.sum()))
    rho = _spread(mean_squared_norm * reference(scales), BLOCK * math.fsum(mean_square.tolist()), survivors)
    target = kappa(layout, members) * rho * np.maximum(np.sqrt(mean_square), rms_all * FLOOR)
    bounded = np.minimum(np.maximum(target, wide * SHRINK), wide * GROW)
    bounded = np.minimum(np.maximum(bounded, SMALLEST_SCALE * 2), LARGEST_SCALE / 2)
    return np.where(known, bounded, wide).astype(np.float32)


def _spread(individual: float, mean: float, survivors: int) -> float:
    """Rho, held to what is plausible: a lying trailer must not move the clips far."""
    ceiling = 2.0 * math.sqrt(survivors)
    if mean <= 0.0:
        return ceiling
    return min(max(math.sqrt(individual / mean), 1.0), ceiling)
