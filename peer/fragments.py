"""Rotating fragments: each round only one part of the trained vector is summed (Streaming DiLoCo, arXiv 2501.18512).

The protocol sees a vector of one fragment's size, so a round's traffic falls to a P-th. What a round does not sum stays
in each peer's own model until its turn: the residual holds it, and training goes on from there. A fragment is whole
Hadamard blocks, so that each block's clip is of one fragment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from averaging.layout import BLOCK
from averaging.scales import SMALLEST_SCALE
from dht.errors import ConfigError
from peer.outer import Vector


@dataclass(frozen=True, slots=True)
class Fragments:
    """`count` parts of `size` elements each, the last one shorter. With one part everything is as without."""

    parameters: int
    count: int

    def __post_init__(self) -> None:
        """Raises ConfigError when a part would be empty."""
        if self.count > 1 and self.size * (self.count - 1) >= self.parameters:
            fitting = -(-self.parameters // self.size)
            raise ConfigError(
                f"codec.fragments = {self.count} would leave parts of {self.parameters:,} trained parameters empty",
                remedy=f"fragments are multiples of {BLOCK:,} elements: set codec.fragments = {fitting}",
            )

    @property
    def size(self) -> int:
        """Elements of a fragment, padding included."""
        return self.parameters if self.count == 1 else -(-self.parameters // (self.count * BLOCK)) * BLOCK

    def index(self, round_: int) -> int:
        """Whose turn a round is, 0..count - 1. It follows from the number alone, so void rounds are turns as well:
        their part waits for its next one."""
        return (round_ - 1) % self.count

    def elements(self, round_: int) -> slice:
        """Which elements a round sums."""
        start = self.index(round_) * self.size
        return slice(start, min(start + self.size, self.parameters))

    def blocks(self, round_: int) -> slice:
        """The Hadamard blocks of these elements: indices into the state's scales."""
        part = self.elements(round_)
        return slice(part.start // BLOCK, -(-part.stop // BLOCK))

    def part(self, vector: Vector, round_: int) -> Vector:
        """The round's elements, float32[size], zeros at the end; the vector itself where it is not cut."""
        if self.count == 1:
            return vector
        found = vector[self.elements(round_)]
        return np.concatenate((found, np.zeros(self.size - len(found), np.float32)))

    def scales(self, scales: Vector, round_: int) -> Vector:
        """Clips of the round's blocks; those of padding are as small as may be. A copy."""
        found = scales[self.blocks(round_)]
        padding = np.full(-(-self.size // BLOCK) - len(found), 2 * SMALLEST_SCALE, np.float32)
        return np.concatenate((found, padding))

    def put_back(self, scales: Vector, part: Vector, round_: int) -> Vector:
        """A copy of all clips with these in the round's place."""
        blocks = self.blocks(round_)
        new = scales.copy()
        new[blocks] = part[: blocks.stop - blocks.start]
        return new
