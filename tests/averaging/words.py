"""The words of a total across cohorts, written out by the definition: what the code is compared with, and liars use."""

from __future__ import annotations

from collections.abc import Iterable

from averaging.layout import Layout


def wide_bytes(layout: Layout, chunk: int, total: Iterable[int]) -> bytes:
    """Little-endian two's complement, one byte longer than the ring's words."""
    size = int(layout.dtype(chunk).itemsize) + 1
    return b"".join(int(value).to_bytes(size, "little", signed=True) for value in total)
