"""How the vector of trained parameters is padded, cut into chunks, and spread over reducers.

D parameters are padded with zeros to N, a multiple of the Hadamard block (4096), and cut into chunks of
`chunk_elements` (the last one may be shorter, still a multiple of 4096). One more chunk, the trailer, holds
eight 32-bit words of public sums, and two more for each of the run's data domains (`averaging.trailer`). With
`pack` > 1 a 32-bit ring word carries several elements (`averaging.packing`).
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from averaging.packing import LEAST_PACK, MOST_PACK, packed_words

BLOCK = 4096
TRAILER_WORDS = 8
MAX_DOMAINS = 16
RING_DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("u1"), 16: np.dtype("<u2"), 32: np.dtype("<u4")}
MAX_MEMBERS = 64

RingArray: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Layout:
    """The chunks of one aggregate: `parameters` elements in Z_2^`ring_bits`, `pack` of them in a word.

    `domains`: kinds of data whose losses the trailer tells apart. Raises ValueError when malformed.
    """

    parameters: int
    ring_bits: int
    chunk_elements: int = 65536
    pack: int = 1
    domains: int = 0

    def __post_init__(self) -> None:
        if self.parameters < 1:
            raise ValueError("a layout needs at least one parameter")
        if self.ring_bits not in RING_DTYPES:
            raise ValueError(f"ring_bits must be 8, 16 or 32, not {self.ring_bits}")
        if self.pack != 1 and (self.ring_bits != 32 or not LEAST_PACK <= self.pack <= MOST_PACK):
            raise ValueError(f"pack must be 1, or {LEAST_PACK} to {MOST_PACK} in the 32-bit ring, not {self.pack}")
        if self.chunk_elements < BLOCK or self.chunk_elements % BLOCK:
            raise ValueError(f"chunk_elements must be a multiple of {BLOCK}, not {self.chunk_elements}")
        if not 0 <= self.domains <= MAX_DOMAINS:
            raise ValueError(f"{self.domains} data domains; at most {MAX_DOMAINS}")

    @cached_property
    def elements(self) -> int:
        """N: parameters padded to a multiple of 4096."""
        return self.blocks * BLOCK

    @cached_property
    def blocks(self) -> int:
        """Number of Hadamard blocks, and so of scales."""
        return -(-self.parameters // BLOCK)

    @cached_property
    def chunks(self) -> int:
        """Number of data chunks."""
        return -(-self.elements // self.chunk_elements)

    @cached_property
    def trailer(self) -> int:
        """Index of the trailer chunk."""
        return self.chunks

    @cached_property
    def total_chunks(self) -> int:
        """Data chunks and the trailer."""
        return self.chunks + 1

    @cached_property
    def blocks_per_chunk(self) -> int:
        """Hadamard blocks in every data chunk but the last."""
        return self.chunk_elements // BLOCK

    def slice(self, chunk: int) -> builtins.slice:
        """Elements of a data chunk in 0..N. Raises IndexError for the trailer and beyond."""
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"data chunk {chunk} of {self.chunks}")
        start = chunk * self.chunk_elements
        return slice(start, min(start + self.chunk_elements, self.elements))

    def block_slice(self, chunk: int) -> builtins.slice:
        """Hadamard blocks (indices into the scales) of a data chunk."""
        part = self.slice(chunk)
        return slice(part.start // BLOCK, part.stop // BLOCK)

    def words(self, chunk: int) -> int:
        """Ring words in a chunk; in the trailer 8, and two for each data domain."""
        whole = self.coordinates(chunk)
        return whole if chunk == self.trailer else packed_words(whole, self.pack)

    def coordinates(self, chunk: int) -> int:
        """Elements in a chunk, which are its words unless several are packed into one; the trailer's are its words."""
        if chunk == self.trailer:
            return TRAILER_WORDS + 2 * self.domains
        part = self.slice(chunk)
        return int(part.stop - part.start)

    def packed(self, chunk: int) -> bool:
        """Whether the words of a chunk hold several elements each; the trailer's never do."""
        return self.pack > 1 and chunk != self.trailer

    def dtype(self, chunk: int) -> np.dtype[Any]:
        """Little-endian unsigned dtype of a chunk; the trailer is always 32 bits wide."""
        return RING_DTYPES[32 if chunk == self.trailer else self.ring_bits]

    def chunk_bytes(self, chunk: int) -> int:
        """Bytes of a chunk on the wire."""
        return self.words(chunk) * int(self.dtype(chunk).itemsize)

    def wide_sizes(self, chunk: int) -> tuple[int, ...]:
        """Bytes that an element of a sum across cohorts (`averaging.wide`) may take: one more than the ring's words;
        one or two, by the number of cohorts, where elements are packed.
        """
        return (1, 2) if self.packed(chunk) else (int(self.dtype(chunk).itemsize) + 1,)

    def zeros(self, chunk: int) -> RingArray:
        """A zeroed array for a chunk, the trailer included."""
        return np.zeros(self.words(chunk), self.dtype(chunk))

    def empty(self, chunk: int) -> RingArray:
        """An array for a chunk whose every element is written before anybody reads it."""
        return np.empty(self.words(chunk), self.dtype(chunk))

    def reducers(self, members: int, fractions: Sequence[float | int] | None = None) -> tuple[int, ...]:
        """Member index that reduces each chunk (length `total_chunks`): contiguous runs in member order.

        `fractions` are relative loads, all equal by default; runs have integer lengths by largest remainder, ties to
        the lower index. A member with fraction 0 reduces nothing. The trailer goes to the reducer of the last data
        chunk, so it prolongs a run and never makes a member a reducer that has none. Exact, so all agree.
        Raises ValueError for no members, a negative or non-finite fraction, or all fractions zero.
        """
        given = [1.0] * members if fractions is None else fractions
        if not all(math.isfinite(load) for load in given):
            raise ValueError("fractions must be finite")
        loads = [Fraction(load) for load in given]
        total = sum(loads, Fraction(0))
        if len(loads) != members or total <= 0 or min(loads) < 0:
            raise ValueError(f"fractions of {members} members must be non-negative and not all zero")
        ideal = [load * self.chunks / total for load in loads]
        runs = [int(share) for share in ideal]
        by_remainder = sorted(range(members), key=lambda k: (runs[k] - ideal[k], k))
        for k in by_remainder[: self.chunks - sum(runs)]:
            runs[k] += 1
        owners = [member for member, run in enumerate(runs) for _ in range(run)]
        return (*owners, owners[-1])
