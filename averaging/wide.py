"""Sums across cohorts: signed integers in words one byte longer than the ring's, exact for up to 256 cohorts.

A cohort's sum in Z_2^B stands for a signed integer of B bits; 256 of them fit into B + 8 bits. The words of the trailer
are counts, so they are lifted as unsigned ones. On the wire: little-endian two's complement, `Layout.wide_size` bytes
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from averaging.layout import Layout, RingArray
from averaging.messages import Result
from dht import merkle
from dht.errors import ProtocolError, Refusal
from dht.transport import Part

_HASH = 32

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
    return pack_words(total, layout.wide_size(chunk))


def pack_words(total: WideArray, size: int) -> memoryview:
    """Words of `size` bytes, little-endian two's complement."""
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


def add_up(parts: Sequence[Part], ring_bits: int, *, counts: bool) -> memoryview:
    """Wire bytes of the total of these cohorts' sums; `counts`: they are the trailer's."""
    size = ring_bits // 8
    dtype = np.dtype(f"<u{size}" if counts else f"<i{size}")
    total = np.zeros(len(parts[0]) // size, "<i8" if size > 3 else "<i4")
    for data in parts:
        total += np.frombuffer(data, dtype)
    return pack_words(total, size + 1)


def make_part(data: Part, leaves: Sequence[bytes], chunk: int) -> bytes:
    """A cohort's sum with its Merkle proof, as the payload of a PART frame."""
    return b"".join((data, *merkle.proof(leaves, chunk)))


def open_part(result: Result, chunk: int, payload: Part) -> Part:
    """The sum in a PART frame. Raises ProtocolError unless it is under the root that the cohort's members signed."""
    size = merkle.proof_length(chunk, result.chunks) * _HASH if chunk < result.chunks else len(payload)
    view = memoryview(payload)
    if len(view) <= size:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a part of chunk {chunk} with {len(view)} bytes")
    data, rest = view[: len(view) - size], view[len(view) - size :]
    path = [bytes(rest[i : i + _HASH]) for i in range(0, size, _HASH)]
    leaf = merkle.leaf_hash(sha256(data).digest())
    if merkle.root_from_proof(leaf, chunk, result.chunks, path) != result.root:
        raise ProtocolError(Refusal.BAD_HASH, f"the sum of chunk {chunk} is not what cohort {result.cohort} signed")
    return data
