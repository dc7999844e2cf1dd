"""Blockwise random rotation: random signs, then a Walsh-Hadamard transform over blocks of 4096.

After `y = H D x / 64` the coordinates of a block look Gaussian whatever x was, so that one scale fits the block
(Suresh et al. 2017, "Distributed mean estimation with limited communication"). The inverse is `x = D H y / 64`.
The forward transform is float32 and private to a peer. The inverse of the public sum is exact integer arithmetic
without the division, so it gives every machine the same bits in whatever order it is computed.

A block is seen as a 64 x 64 matrix X, and H4096 = H64 (x) H64 turns it into H64 X H64. Products with H64 only add
and subtract, so a float gemm over integers is exact while sums stay below 2^24 (float32) or 2^53 (float64).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from averaging.layout import BLOCK
from averaging.scratch import Scratch

SIDE = 64
_SIGN_BYTES = BLOCK // 8
_SHIFTS = np.arange(31, -1, -1, dtype=np.uint32)[:, None]
_TOP_BIT = np.uint32(1 << 31)
# Integer butterflies run on pieces that about fit the second-level cache: half as many cost more in calls.
_PIECE_BLOCKS = 16

Float32Array = npt.NDArray[np.float32]
IntegerArray = npt.NDArray[np.signedinteger[Any]]

_scratch = Scratch()


def hadamard(order: int) -> npt.NDArray[np.int64]:
    """Sylvester's Hadamard matrix of a power-of-two order."""
    matrix = np.ones((1, 1), np.int64)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


_H_EIGHTH = (hadamard(SIDE) / 8).astype(np.float32)
_H32 = hadamard(SIDE).astype(np.float32)
_H64 = hadamard(SIDE).astype(np.float64)


class Rotation:
    """The rotation of one round. Blocks are numbered over the whole vector, whatever the chunks."""

    def __init__(self, sign_seed: bytes) -> None:
        """`sign_seed`: 32 public bytes, the same for all members (from the sid). Raises ValueError."""
        if len(sign_seed) != 32:
            raise ValueError(f"a sign seed has 32 bytes, not {len(sign_seed)}")
        self._seed = sign_seed

    def rotate(self, x: Float32Array, first_block: int = 0) -> Float32Array:
        """`H D x / 64` in place. `x`: contiguous float32, whole blocks, the first being block `first_block`."""
        self._flip(x, first_block)
        return _transform(x)

    def unrotate(self, y: Float32Array, first_block: int = 0) -> Float32Array:
        """`D H y / 64` in place: undoes `rotate` up to float32 rounding."""
        _transform(y)
        self._flip(y, first_block)
        return y

    def unrotate_integers(self, a: IntegerArray, first_block: int = 0) -> IntegerArray:
        """`D H a`, exact and 64 times the inverse rotation; a new array, `a` is kept.

        int8 and int16 give int32 (|result| <= 2^27); int32 and int64 of at most 40 bits give int64 (|result| <= 2^51).
        """
        result: IntegerArray = np.empty(a.size, np.int64 if a.dtype.itemsize >= 4 else np.int32)
        for part, integers in self.integer_pieces(a, first_block):
            result[part] = integers
        return result

    def integer_pieces(self, a: IntegerArray, first_block: int = 0) -> Iterator[tuple[slice, IntegerArray]]:
        """`unrotate_integers` piece by piece: (where in `a`, the result there, good until the next is asked for)."""
        wide = a.dtype.itemsize >= 4
        real: type[Any] = np.float64 if wide else np.float32
        whole: type[Any] = np.int64 if wide else np.int32
        matrix, words = _H64 if wide else _H32, _PIECE_BLOCKS * BLOCK
        for start in range(0, a.size, words):
            part = slice(start, min(start + words, a.size))
            size = part.stop - start
            source, product = (_scratch.get(name, size, real) for name in ("source", "product"))
            # The butterflies' second array lies where the product was: less memory stays longer in the cache.
            ping, pong = _scratch.get("ping", size, whole), product.view(whole)
            np.copyto(source, a[part])
            # Short strides by one exact gemm, long ones by integer butterflies, which need no bound. The gemm puts row
            # i of all blocks together, so that the butterflies add long runs: numpy is twice as slow with short ones.
            by_row = (SIDE, size // BLOCK, SIDE)
            np.matmul(source.reshape(-1, SIDE, SIDE), matrix, out=product.reshape(by_row).swapaxes(0, 1))
            np.copyto(ping, product, casting="unsafe")
            _butterflies(ping, pong)
            negative = self._negative(first_block + start // BLOCK, size, whole)
            turned = pong.reshape(-1, SIDE, SIDE)
            np.bitwise_xor(ping.reshape(by_row).swapaxes(0, 1), negative.reshape(turned.shape), out=turned)
            yield part, np.subtract(pong, negative, out=pong)

    def _flip(self, x: Float32Array, first_block: int) -> None:
        bits = self._bits(first_block, x.size)
        np.bitwise_and(bits, _TOP_BIT, out=bits)
        raw = x.view(np.uint32)
        np.bitwise_xor(raw, bits, out=raw)

    def _negative(self, first_block: int, size: int, whole: type[Any]) -> IntegerArray:
        """-1 where the sign is minus, else 0."""
        bits = self._bits(first_block, size).view(np.int32)
        np.right_shift(bits, 31, out=bits)
        return bits if whole is np.int32 else bits.astype(np.int64)

    def _bits(self, first_block: int, size: int) -> npt.NDArray[np.uint32]:
        """The sign of each element as the top bit of a word: element 128 k + j of a block has bit k of word j.

        Block g takes 512 bytes of the AES-256-CTR keystream from counter 32 g, read as 128 little-endian words.
        """
        blocks = size // BLOCK
        cipher = Cipher(algorithms.AES(self._seed), modes.CTR((first_block * (_SIGN_BYTES // 16)).to_bytes(16, "big")))
        words = np.frombuffer(cipher.encryptor().update(bytes(blocks * _SIGN_BYTES)), "<u4")
        bits = _scratch.get("bits", size, np.uint32)
        np.left_shift(words.reshape(blocks, 1, -1), _SHIFTS, out=bits.reshape(blocks, 32, -1))
        return bits


def _transform(x: Float32Array) -> Float32Array:
    """`H x / 64` per block in place; an eighth in each factor is exact."""
    square = x.reshape(-1, SIDE, SIDE)
    half = _scratch.get("half", x.size, np.float32).reshape(square.shape)
    np.matmul(square, _H_EIGHTH, out=half)
    np.matmul(_H_EIGHTH, half, out=square)
    return x


def _butterflies(a: IntegerArray, spare: IntegerArray) -> None:
    """The Hadamard transform over the 64 rows of which `a` consists, in place (six levels end in `a` again)."""
    stride = a.size // SIDE
    while stride < a.size:
        pairs, out = a.reshape(-1, 2, stride), spare.reshape(-1, 2, stride)
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        a, spare = spare, a
        stride *= 2
