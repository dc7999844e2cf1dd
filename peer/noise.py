"""Noise in the sum ([privacy] noise_multiplier, an experiment): how much each member adds, and what that promises.

The unit is the whole update of one peer in one round: neighbouring sums differ by one member's update put to zero.
That it took part, and its tokens, stay public. Update times weight is clipped to norm C, so with z C of noise in the
sum of at least n - delta survivors the sum is about z-Gaussian for each member (`averaging.discrete_gaussian`).

The codec's clip is fixed by C and z: nothing that a member sends depends on how large its update is, and nothing is cut
off. A member that knows its own noise can take it off: f who work together leave (n - delta - f) / (n - delta) of it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from averaging import discrete_gaussian
from averaging.discrete_gaussian import concentrated
from averaging.encoding import Encoder
from averaging.layout import BLOCK, MAX_MEMBERS, Layout, RingArray
from averaging.params import threshold
from averaging.scales import Float32Array, levels
from averaging.trailer import Statistics
from dht.errors import ConfigError
from dht.wire import digest

if TYPE_CHECKING:
    from peer.manifest import Manifest
    from peer.outer import Vector

DELTA = 1e-6
LOUD, DROWNED = 0.35, 1.0
_TAIL = 8.0
"""Deviations of one member's noise that the codec's range leaves room for beside the update."""
_FLOAT_SLACK = 1 + 2.0**-10
"""Rotation and scaling in float32 change a norm by less."""


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """The noise of one run. `elements`: padded coordinates, `parameters`: trained ones."""

    multiplier: float
    clip_norm: float
    minimum: int
    parameters: int
    elements: int

    @classmethod
    def of(cls, manifest: Manifest, layout: Layout, tell: Callable[[str], object]) -> NoisePlan | None:
        """The plan of a run, described to `tell`; None without noise.

        Raises ConfigError when it would drown the smallest cohort's sum, or without dp-accounting.
        """
        privacy = manifest.privacy
        if not privacy.noise_multiplier:
            return None
        minimum = manifest.cohort.minimum
        plan = cls(privacy.noise_multiplier, privacy.clip_norm, minimum, layout.parameters, layout.elements)
        if plan.ratio > DROWNED:
            raise ConfigError(
                f"the noise is {plan.ratio:.2f} times as long as an update can be (z * sqrt(d) / K with z = "
                f"{plan.multiplier:g}, d = {plan.parameters}, K = {minimum}): it would drown the sum",
                remedy="train fewer parameters, raise cohort.minimum, or lower privacy.noise_multiplier, which "
                "promises less; run-peer --dp protects single records without this",
            )
        tell(plan.describe())
        return plan

    @property
    def ratio(self) -> float:
        """z sqrt(d) / K: length of the noise in the mean of the smallest cohort over the clip."""
        return self.multiplier * math.sqrt(self.parameters) / self.minimum

    def deviation(self, members: int) -> float:
        """Of the noise that one of so many members adds to each coordinate, in units of the update."""
        return self.multiplier * self.clip_norm / math.sqrt(threshold(members))

    def scale(self, members: int, top: int, clip: float) -> int:
        """The same in ring units, whole and rounded up; `top` levels stand for `clip`."""
        return math.ceil(self.deviation(members) * top / clip)

    def clipped(self, update: Vector, weight: float) -> float:
        """The weight at which `update` (float32[D]) has norm `clip_norm` at most; `weight` if that is so already."""
        squares = sum(
            float(np.square(update[start : start + BLOCK], dtype=np.float64).sum())
            for start in range(0, update.size, BLOCK)
        )
        length = weight * math.sqrt(squares)
        return weight * min(1.0, self.clip_norm / length) if length else weight

    def hide(
        self, statistics: Statistics, update: Vector, weight: float, members: int, unit: float
    ) -> tuple[Statistics, float]:
        """A trailer in which nothing depends on the update, and the weight that clips it. `unit`: of squared norms."""
        bound = self.longest(members) ** 2 / unit
        hidden = replace(statistics, loss=0.0, first_loss=0.0, squared_norm=bound, lost_norm=0.0)
        return hidden, self.clipped(update, weight)

    def longest(self, members: int) -> float:
        """A bound on clipped update and noise of one member together, which depends on neither."""
        return self.clip_norm + 1.1 * self.deviation(members) * math.sqrt(self.elements) + 1e-6

    def rho(self, honest: int | None = None) -> float:
        """Zero-concentrated privacy of one round for a member of the smallest cohort.

        `honest`: members whose noise is in the sum; by default as few as may survive.
        """
        # In units of the coarsest rounding that a cohort can have, at which stochastic rounding adds most.
        top = levels(Layout(self.parameters, 32), MAX_MEMBERS)
        clip = self.clip_norm + _TAIL * self.deviation(self.minimum)
        sensitivity = _FLOAT_SLACK * self.clip_norm * top / clip + math.sqrt(self.elements)
        survivors = threshold(self.minimum) if honest is None else honest
        return concentrated(sensitivity, self.scale(self.minimum, top, clip), survivors, self.elements)

    def epsilon(self, rounds: int) -> float:
        """Of so many rounds at `DELTA` for a peer that takes part in all. Raises ConfigError without dp-accounting."""
        try:
            accounting: Any = importlib.import_module("dp_accounting")
        except ImportError as error:
            raise ConfigError(
                f"privacy.noise_multiplier needs dp-accounting, which cannot be imported: {error}",
                remedy="install murmuration[dp], which brings it",
            ) from error
        # A round that was void may have been opened all the same, so rounds count by their numbers.
        accountant = accounting.rdp.RdpAccountant()
        return float(accountant.compose(accounting.ZCDpEvent(self.rho()), rounds).get_epsilon(DELTA))

    def describe(self) -> str:
        """What to print at start."""
        figures = ", ".join(f"{self.epsilon(rounds):.3g} after {rounds}" for rounds in (1, 10, 100, 1000))
        loud = f", over {LOUD:g}: expect a worse model" if self.ratio > LOUD else ""
        return (
            f"noise in the sum (experiment): epsilon of a peer's updates {figures} rounds, delta {DELTA:g}; "
            f"z * sqrt(d) / K = {self.ratio:.3f} at K = {self.minimum}{loud}"
        )


class NoisyEncoder(Encoder):
    """An encoder that adds this member's noise, the same for the same dither key, and leaves no error behind."""

    def __init__(
        self,
        layout: Layout,
        members: int,
        scales: Float32Array,
        sign_seed: bytes,
        plan: NoisePlan,
        update: Float32Array,
    ) -> None:
        """As for `Encoder`, whose `members` are of the largest cohort; set `members` to those of one's own."""
        super().__init__(layout, members, scales, sign_seed)
        self.members = members
        self._plan, self._update, self._clip = plan, update, float(scales[0])

    def encode_chunk(self, chunk: int, update: Float32Array, weight: float, dither_key: bytes, out: RingArray) -> None:
        """As `Encoder.encode_chunk`, with noise, modulo 2^32."""
        super().encode_chunk(chunk, update, weight, dither_key, out)
        scale = self._plan.scale(self.members, self.levels, self._clip)
        discrete_gaussian.add(out, scale, digest("noise", dither_key)[:16], chunk)

    def dequantise_chunk(self, chunk: int, ring: RingArray, weight: float) -> Float32Array:
        """The update itself, whatever was clipped or rounded: fed back, noise would pass for something learned."""
        return self._update[self.layout.slice(chunk)]


def noise_clip(manifest: Manifest) -> float:
    """Clip of every Hadamard block in every round: an update's whole length, and the noise's tail."""
    privacy = manifest.privacy
    deviation = privacy.noise_multiplier * privacy.clip_norm / math.sqrt(threshold(manifest.cohort.minimum))
    return privacy.clip_norm + _TAIL * deviation
