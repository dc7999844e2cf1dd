"""Sums across cohorts: signed integers in words one byte longer than the ring's, exact for up to 256 cohorts.

A cohort's sum in Z_2^B stands for a signed integer of B bits; 256 of them fit into B + 8 bits. The words of the trailer
are counts, so they are lifted as unsigned ones. On the wire: little-endian two's complement. Packed digits
(`averaging.packing`) are taken apart first; their sums are counts, in one byte each where that is enough for so many
cohorts, else in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from averaging.layout import BLOCK, Layout
from averaging.packing import base, unpack_digits
from dht.errors import ProtocolError, Refusal
from dht.transport import Part

WideArray: TypeAlias = npt.NDArray[np.signedinteger[Any]]


def wide_dtype(layout: Layout, chunk: int) -> np.dtype[Any]:
    """In memory: int32 for packed digits and the 8- and 16-bit ring, int64 for the 32-bit ring and the trailer."""
    return np.dtype("<i8" if layout.wide_sizes(chunk)[-1] > 4 else "<i4")


def unpack(layout: Layout, chunk: int, data: Part) -> WideArray:
    """The integers of wire bytes, in `wide_dtype`. Raises ProtocolError (OUT_OF_BOUNDS) for another length."""
    count = layout.coordinates(chunk)
    size, rest = divmod(len(data), count)
    if rest or size not in layout.wide_sizes(chunk):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a total of chunk {chunk} with {len(data)} bytes")
    dtype = wide_dtype(layout, chunk)
    if layout.packed(chunk):
        return np.frombuffer(data, f"<u{size}").astype(dtype)
    padded = np.zeros((count, dtype.itemsize), np.uint8)
    padded[:, dtype.itemsize - size :] = np.frombuffer(data, np.uint8).reshape(count, size)
    # At the top of its word, so that an arithmetic shift brings it down with its sign.
    total: WideArray = padded.reshape(-1).view(dtype) >> (8 * (dtype.itemsize - size))
    return total


def add_up(parts: Sequence[Part], ring_bits: int, *, counts: bool) -> memoryview:
    """Wire bytes of the total of these cohorts' sums (ring words); `counts`: they are the trailer's."""
    size = ring_bits // 8
    dtype = np.dtype(f"<u{size}" if counts else f"<i{size}")
    total = np.zeros(len(parts[0]) // size, "<i8" if size > 3 else "<i4")
    for data in parts:
        total += np.frombuffer(data, dtype)
    narrow = np.ascontiguousarray(total.view(np.uint8).reshape(total.size, total.itemsize)[:, : size + 1])
    return memoryview(narrow).cast("B")


def add_up_packed(parts: Sequence[Part], pack: int) -> memoryview:
    """Wire bytes of the total of these cohorts' sums of packed digits.

    Chunks are whole Hadamard blocks, so the number of words says how many elements they hold.
    """
    elements = len(parts[0]) // 4 * pack // BLOCK * BLOCK
    narrow = len(parts) * (base(pack) - 1) < 256
    total = np.zeros(elements, "u1" if narrow else "<u2")
    for data in parts:
        total += unpack_digits(np.frombuffer(data, "<u4"), pack, elements).astype(total.dtype)
    return memoryview(total).cast("B")


def total_of(parts: Sequence[Part], layout: Layout, chunk: int) -> memoryview:
    """Wire bytes of the total of these cohorts' sums of a chunk."""
    if layout.packed(chunk):
        return add_up_packed(parts, layout.pack)
    counts = chunk == layout.trailer
    return add_up(parts, 32 if counts else layout.ring_bits, counts=counts)
