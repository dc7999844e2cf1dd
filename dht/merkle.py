"""SHA-256 Merkle trees in the shape of RFC 6962: leaf and node hashes cannot be confused.

A tree over n leaves splits at the largest power of two below n, so every n has one shape and a proof
needs only the index, the number of leaves and the sibling hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(data: bytes | memoryview) -> bytes:
    """32-byte hash of one leaf's bytes (RFC 6962 section 2.1, prefix 0x00)."""
    digest = sha256(b"\x00")
    digest.update(data)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """32-byte hash of an inner node (prefix 0x01)."""
    return sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes (each 32 bytes, from `leaf_hash`)."""
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    while len(level) > 1:
        # Pairing neighbours and carrying an odd last node up gives exactly the RFC 6962 shape.
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Sibling hashes from leaf `index` to the root, bottom first. Raises IndexError."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    path: list[bytes] = []
    level = list(leaves)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
        index //= 2
    return tuple(path)


def proof_length(index: int, count: int) -> int:
    """Sibling hashes in the proof of leaf `index` of `count`."""
    length, width = 0, count
    while width > 1:
        length += index ^ 1 < width
        index, width = index // 2, (width + 1) // 2
    return length


def root_from_proof(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """Root that `leaf` at `index` of `count` leaves leads to, or None if the path has the wrong length."""
    if not 0 <= index < count:
        return None
    digest, width, siblings = leaf, count, iter(path)
    while width > 1:
        if index ^ 1 < width:
            sibling = next(siblings, None)
            if sibling is None:
                return None
            digest = node_hash(sibling, digest) if index % 2 else node_hash(digest, sibling)
        index //= 2
        width = (width + 1) // 2
    return digest if next(siblings, None) is None else None
