"""Masks that cancel: AES-128-CTR keystreams added to and taken from chunks of Z_2^B in place.

Member i uploads `q_i + PRG(self_i) + sum_j sign_ij PRG(pair_ij)` with sign_ij = + if i < j else -
(Bonawitz et al. 2017, section 4). PRG(key, chunk) is the AES-128-CTR keystream from the counter block
`chunk (8 bytes, big-endian) || 0 (8 bytes)`, read as little-endian ring words, so chunks of up to 2^68 bytes never
share a counter. Keys are fresh for each sid and pair, so no (key, counter) is used twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from averaging.layout import RingArray
from averaging.scratch import Scratch

# Keystream, zeros and ring piece stay in the second-level cache together.
PIECE_BYTES = 1 << 17
_ZEROS = memoryview(bytes(PIECE_BYTES))

_scratch = Scratch()


def keystream_iv(chunk: int) -> bytes:
    """16-byte counter block at which the mask of a chunk starts."""
    return chunk.to_bytes(8, "big") + bytes(8)


def add_stream(key: bytes, chunk: int, ring: RingArray, sign: int) -> None:
    """Add (`sign` +1) or subtract (-1) PRG(key, chunk) in place. `ring`: contiguous uint8, uint16 or uint32."""
    combine = np.add if sign > 0 else np.subtract
    cipher = Cipher(algorithms.AES(key), modes.CTR(keystream_iv(chunk))).encryptor()
    # `update_into` asks for a block less one byte more than it writes.
    stream = _scratch.get("stream", PIECE_BYTES + 15, np.uint8)
    step = PIECE_BYTES // ring.itemsize
    for start in range(0, ring.size, step):
        piece = ring[start : start + step]
        cipher.update_into(_ZEROS[: piece.nbytes], stream.data)
        combine(piece, stream[: piece.nbytes].view(ring.dtype), out=piece)


class Masker:
    """The masks of one member for one sid; `apply` may run in several threads on different chunks."""

    def __init__(self, sid: bytes, me: int, self_key: bytes, pair_keys: Mapping[int, bytes]) -> None:
        """`pair_keys`: 16-byte key by the other member's index. Raises ValueError if `me` is among them."""
        if me in pair_keys:
            raise ValueError("a member has no pair key with itself")
        self.sid = sid
        self.me = me
        self._keys = [(self_key, +1)] + [(key, _sign(me, j)) for j, key in sorted(pair_keys.items())]

    def apply(self, chunk: int, ring: RingArray) -> None:
        """Mask an encoded chunk in place."""
        for key, sign in self._keys:
            add_stream(key, chunk, ring, sign)


def unmask(chunk: int, ring: RingArray, self_keys: Iterable[bytes], dead: Iterable[tuple[int, int, bytes]]) -> None:
    """Strip from a sum of masked chunks, in place, the masks that did not cancel.

    `self_keys`: of every survivor. `dead`: (survivor, dead member, pair key) for every such pair.
    """
    for key in self_keys:
        add_stream(key, chunk, ring, -1)
    for survivor, gone, key in dead:
        add_stream(key, chunk, ring, -_sign(survivor, gone))


def _sign(me: int, other: int) -> int:
    return 1 if me < other else -1
