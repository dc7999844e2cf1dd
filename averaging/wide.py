"""Sums across cohorts: signed integers in words one byte longer than the ring's, exact for up to 256 cohorts.

A cohort's sum in Z_2^B stands for a signed integer of B bits; 256 of them fit into B + 8 bits. The words of the trailer
are counts, so they are lifted as unsigned ones. On the wire: little-endian two's complement, `Layout.wide_size` bytes
each.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from averaging.layout import Layout, RingArray
from dht.errors import ProtocolError, Refusal
from dht.transport import Part

WideArray: TypeAlias = npt.NDArray[np.signedinteger[Any]]


def wide_dtype(layout: Layout, chunk: int) -> np.dtype[Any]:
    """In memory: int32 for the 8- and 16-bit ring, int64 for the 32-bit ring and the trailer."""
    return np.dtype("<i8" if layout.wide_size(chunk) > 4 else "<i4")


def lift(layout: Layout, chunk: int, ring: RingArray) -> WideArray:
    """The integers that a cohort's sum of a chunk stands for; a new array of `wide_dtype`."""
    signed = ring if chunk == layout.trailer else ring.view(f"<i{ring.itemsize}")
    lifted: WideArray = signed.astype(wide_dtype(layout, chunk))
    return lifted


def pack(layout: Layout, chunk: int, total: WideArray) -> memoryview:
    """Wire bytes of a chunk's total."""
    size = layout.wide_size(chunk)
    narrow = np.ascontiguousarray(total.view(np.uint8).reshape(total.size, total.itemsize)[:, :size])
    return memoryview(narrow).cast("B")


def unpack(layout: Layout, chunk: int, data: Part) -> WideArray:
    """The integers of wire bytes, in `wide_dtype`. Raises ProtocolError (OUT_OF_BOUNDS) for another length."""
    size, words = layout.wide_size(chunk), layout.words(chunk)
    if len(data) != size * words:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a total of chunk {chunk} with {len(data)} bytes")
    dtype = wide_dtype(layout, chunk)
    padded = np.zeros((words, dtype.itemsize), np.uint8)
    padded[:, dtype.itemsize - size :] = np.frombuffer(data, np.uint8).reshape(words, size)
    # At the top of its word, so that an arithmetic shift brings it down with its sign.
    total: WideArray = padded.reshape(-1).view(dtype) >> (8 * (dtype.itemsize - size))
    return total
