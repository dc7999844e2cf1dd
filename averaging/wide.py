"""Sums across cohorts: signed integers in words one byte longer than the ring's, exact for up to 256 cohorts.

A cohort's sum in Z_2^B stands for a signed integer of B bits; 256 of them fit into B + 8 bits. The words of the trailer
are counts, so they are lifted as unsigned ones. On the wire: little-endian two's complement, `Layout.wide_size` bytes
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from averaging.layout import Layout
from dht.errors import ProtocolError, Refusal
from dht.transport import Part

WideArray: TypeAlias = npt.NDArray[np.signedinteger[Any]]


def wide_dtype(layout: Layout, chunk: int) -> np.dtype[Any]:
    """In memory: int32 for the 8- and 16-bit ring, int64 for the 32-bit ring and the trailer."""
    return np.dtype("<i8" if layout.wide_size(chunk) > 4 else "<i4")


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


def add_up(parts: Sequence[Part], ring_bits: int, *, counts: bool) -> memoryview:
    """Wire bytes of the total of these cohorts' sums (ring words); `counts`: they are the trailer's."""
    size = ring_bits // 8
    dtype = np.dtype(f"<u{size}" if counts else f"<i{size}")
    total = np.zeros(len(parts[0]) // size, "<i8" if size > 3 else "<i4")
    for data in parts:
        total += np.frombuffer(data, dtype)
    narrow = np.ascontiguousarray(total.view(np.uint8).reshape(total.size, total.itemsize)[:, : size + 1])
    return memoryview(narrow).cast("B")
