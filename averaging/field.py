"""The prime field GF(2^255 - 19), on Python integers.

It is the smallest convenient field that holds a 31-byte seed, and Python multiplies 255-bit integers in tens of
nanoseconds. Secrets pass through here once per round and peer, so the arithmetic is not constant-time.
"""

from __future__ import annotations

from collections.abc import Sequence

PRIME = 2**255 - 19
ELEMENT_BYTES = 32


def to_bytes(element: int) -> bytes:
    """32 big-endian bytes of an element. Raises ValueError unless `0 <= element < PRIME`."""
    if not 0 <= element < PRIME:
        raise ValueError("not a field element")
    return element.to_bytes(ELEMENT_BYTES, "big")


def from_bytes(data: bytes) -> int:
    """Element of 32 big-endian bytes. Raises ValueError for another length or a value >= PRIME."""
    if len(data) != ELEMENT_BYTES:
        raise ValueError(f"a field element has {ELEMENT_BYTES} bytes, not {len(data)}")
    element = int.from_bytes(data, "big")
    if element >= PRIME:
        raise ValueError("not a reduced field element")
    return element


def invert_all(elements: Sequence[int]) -> list[int]:
    """Inverses of all `elements` for the price of one (Montgomery's trick). Raises ValueError on a zero."""
    prefix = [1]
    for element in elements:
        prefix.append(prefix[-1] * element % PRIME)
    if prefix[-1] == 0:
        raise ValueError("zero has no inverse")
    running = pow(prefix[-1], -1, PRIME)
    inverses = [0] * len(elements)
    for k in range(len(elements) - 1, -1, -1):
        inverses[k] = running * prefix[k] % PRIME
        running = running * elements[k] % PRIME
    return inverses
