"""Updates to ring elements and sums of ring elements back to float32.

    rotate -> scale by weight * L / clip -> stochastic rounding -> clip to [-L, L] -> Z_2^B

With n members `b = B - ceil(log2 n)` bits are used, so that n values within `L = 2^(b-1) - 1` never wrap. The sum is
decoded in integers up to one multiplication in float64, hence to the same bytes on every machine. Where elements are
packed, the digits of `averaging.packing` take the place of ring elements.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from averaging.layout import BLOCK, Layout, RingArray
from averaging.masking import keystream_iv
from averaging.packing import centred, pack_digits, unpack_digits
from averaging.rotation import Float32Array, IntegerArray, Rotation
from averaging.scales import LARGEST_SCALE, SMALLEST_SCALE, initial_scales, levels, next_scales, reference
from averaging.scratch import Scratch
from dht.errors import RoundError

__all__ = [
    "Decoder",
    "Encoder",
    "NonFiniteUpdateError",
    "initial_scales",
    "levels",
    "next_scales",
    "quantise",
    "reference",
    "squared_norm",
]

_DITHER = 65536.0
_SIGNED: dict[int, np.dtype[Any]] = {8: np.dtype("i1"), 16: np.dtype("<i2"), 32: np.dtype("<i4")}

# By ring and kind: "u" a cohort's sum, "i" one across cohorts with eight bits more. What is left has at most 20 bits.
_SHIFT = {(8, "u"): 0, (16, "u"): 0, (32, "u"): 12, (8, "i"): 0, (16, "i"): 4, (32, "i"): 20}

_scratch = Scratch()


class NonFiniteUpdateError(RoundError):
    """The update holds NaN, infinity, or values so large that their squares overflow."""

    code = "MUR-710"

    def __init__(self) -> None:
        super().__init__(
            "the local update is not finite, so nothing of it was sent",
            remedy="lower the learning rate or clip gradients; this peer goes on from the certified state",
        )


def squared_norm(update: Float32Array) -> float:
    """Squared Euclidean norm of a flat float32 update. Raises NonFiniteUpdateError; call it before encoding."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, update.size, 1 << 16):
            part = update[start : start + (1 << 16)]
            total += float(np.dot(part, part))
    if not math.isfinite(total):
        raise NonFiniteUpdateError
    return total


def _checked_scales(layout: Layout, scales: Float32Array) -> Float32Array:
    scales = np.ascontiguousarray(scales, np.float32)
    if scales.shape != (layout.blocks,):
        raise ValueError(f"{scales.shape} scales for {layout.blocks} blocks")
    if not bool(np.all((scales >= np.float32(SMALLEST_SCALE)) & (scales <= np.float32(LARGEST_SCALE)))):
        raise ValueError("a codec scale is out of range")
    return scales


class Encoder:
    """Quantises one member's update, chunk by chunk; threads may encode different chunks at once."""

    def __init__(self, layout: Layout, members: int, scales: Float32Array, sign_seed: bytes) -> None:
        """`scales`: float32[blocks], the clip of each Hadamard block. Raises ValueError when malformed."""
        self.layout = layout
        self.levels = levels(layout, members)
        self._scales = _checked_scales(layout, scales).astype(np.float64)
        self._rotation = Rotation(sign_seed)

    def encode_chunk(self, chunk: int, update: Float32Array, weight: float, dither_key: bytes, out: RingArray) -> None:
        """Write the ring elements of a data chunk of `update` (float32[D], flat) to `out`.

        `weight` in (0, 1] multiplies the update; `dither_key` is 16 secret random bytes, fresh for each sid, since
        who knows the dither knows the rounding errors. Raises NonFiniteUpdateError.
        """
        if not 0.0 < weight <= 1.0:
            raise ValueError(f"weight {weight} is outside (0, 1]")
        x = self._padded(chunk, update)
        with np.errstate(over="ignore", invalid="ignore"):
            self._rotation.rotate(x, self.layout.block_slice(chunk).start)
            if not math.isfinite(float(np.dot(x, x))):
                raise NonFiniteUpdateError
        factors = weight * self.levels / self._scales[self.layout.block_slice(chunk)]
        if self.layout.pack > 1:
            digits = _scratch.get("digits", x.size, np.uint8)
            quantise_digits(x, factors, self.levels, digits)
            pack_digits(digits, self.layout.pack, out)
        else:
            quantise(x, factors, self.levels, dither_key, chunk, out)

    def dequantise_chunk(self, chunk: int, ring: RingArray, weight: float) -> Float32Array:
        """What a chunk encoded by this member (not yet masked) says in update space: float32[chunk].

        `update - dequantised` is what clipping and rounding lost; it goes into the next update (error feedback).
        """
        blocks = self.layout.block_slice(chunk)
        factors = (self._scales[blocks] / (self.levels * weight)).astype(np.float32)
        y = signed(self.layout, chunk, ring, 1, self.levels).astype(np.float32)
        by_block = y.reshape(-1, BLOCK)
        np.multiply(by_block, factors[:, None], out=by_block)
        return self._rotation.unrotate(y, blocks.start)

    def _padded(self, chunk: int, update: Float32Array) -> Float32Array:
        if update.shape != (self.layout.parameters,) or update.dtype != np.float32:
            raise ValueError(f"the update is {update.dtype}{update.shape}, not float32[{self.layout.parameters}]")
        part = self.layout.slice(chunk)
        x: Float32Array = _scratch.get("x", part.stop - part.start, np.float32)
        given = update[part]
        x[: given.size] = given
        x[given.size :] = 0.0
        return x


def quantise(
    x: Float32Array, factors: npt.NDArray[np.float64], top: int, dither_key: bytes, chunk: int, out: RingArray
) -> None:
    """Stochastic rounding of `x * factor` per block, clipped to [-top, top], into `out`; `x` is overwritten.

    The dither is 16 bits of AES-128-CTR per element: floor(v + d) has mean v for uniform d in [0, 1).
    """
    dither = _dither(dither_key, chunk, x.size)
    whole = _scratch.get("whole", x.size, np.int32)
    narrow = out.itemsize < 4
    by_block = x.reshape(-1, BLOCK)
    # Narrow rings round in fixed point with 16 fractional bits: the sum's upper half is the floor.
    unit = _DITHER if narrow else 1.0
    np.multiply(by_block, (factors * unit).astype(np.float32)[:, None], out=by_block)
    if narrow:
        np.clip(x, np.float32(-top * unit), np.float32(top * unit), out=x)
        np.copyto(whole, x, casting="unsafe")
        np.add(whole, dither, out=whole)
        out[:] = whole.view(out.dtype)[1::2] if out.itemsize == 2 else whole.view(out.dtype)[2::4]
        return
    noise = _scratch.get("noise", x.size, np.float32)
    np.multiply(dither, np.float32(1 / _DITHER), out=noise)
    np.add(x, noise, out=x)
    np.floor(x, out=x)
    np.clip(x, np.float32(-top), np.float32(top), out=x)
    np.copyto(whole, x, casting="unsafe")
    out[:] = whole.view(out.dtype)


def quantise_digits(x: Float32Array, factors: npt.NDArray[np.float64], top: int, out: npt.NDArray[np.uint8]) -> None:
    """`(x * factor + top) / 2` per block, rounded to the nearest digit 0..top, in `out`; `x` is overwritten.

    With so few digits dither would be a third of the update's energy. Nearest rounding is biased in one round; what
    it loses is in the next update, under other signs.
    """
    by_block = x.reshape(-1, BLOCK)
    np.multiply(by_block, (factors / 2).astype(np.float32)[:, None], out=by_block)
    np.add(x, np.float32((top + 1) / 2), out=x)
    np.clip(x, np.float32(0.0), np.float32(top + 0.5), out=x)
    np.copyto(out, x, casting="unsafe")


def _dither(key: bytes, chunk: int, size: int) -> npt.NDArray[np.uint16]:
    stream = _scratch.get("stream", size * 2 + 15, np.uint8)
    cipher = Cipher(algorithms.AES(key), modes.CTR(keystream_iv(chunk))).encryptor()
    cipher.update_into(_zeros(size * 2), stream.data)
    return stream[: size * 2].view(np.uint16)


def signed(layout: Layout, chunk: int, summed: npt.NDArray[np.integer[Any]], survivors: int, top: int) -> IntegerArray:
    """The signed integers of a data chunk that a sum stands for, one for each element.

    `summed`: ring words, or integers added up across cohorts. `survivors`, `top`: how many members' values are in
    it, and `levels`; they count where elements are packed.
    """
    lifted: IntegerArray
    if layout.packed(chunk):
        count = layout.coordinates(chunk)
        digits = summed.astype(np.int32) if summed.dtype.kind == "i" else unpack_digits(summed, layout.pack, count)
        lifted = centred(digits, survivors, top)
        return lifted.astype(np.int16) if survivors * top < 1 << 14 else lifted
    lifted = summed.view(summed.dtype if summed.dtype.kind == "i" else _SIGNED[layout.ring_bits])
    return lifted


_zero_bytes = bytes(1 << 17)


def _zeros(size: int) -> bytes | memoryview:
    return memoryview(_zero_bytes)[:size] if size <= len(_zero_bytes) else bytes(size)


class Decoder:
    """Turns sums of ring elements into the weighted mean update, to the same bytes everywhere."""

    def __init__(
        self, layout: Layout, members: int, scales: Float32Array, sign_seed: bytes, survivors: int | None = None
    ) -> None:
        """As for `Encoder`; `members` is the size of the (largest) cohort, `survivors` how many are in the sums: by
        default all of these. It matters only where elements are packed.
        """
        self.layout = layout
        self.survivors = members if survivors is None else survivors
        self.levels = levels(layout, members)
        self._scales = _checked_scales(layout, scales).astype(np.float64)
        self._rotation = Rotation(sign_seed)

    def decode_chunk(
        self, chunk: int, summed: npt.NDArray[np.integer[Any]], weight_sum: float, out: Float32Array | None = None
    ) -> Float32Array:
        """The mean update of a data chunk, float32[chunk], from the unmasked sum and the survivors' weight sum.

        It is written to `out` if that is given, else to a new array.
        """
        if not weight_sum > 0.0:
            raise ValueError(f"weight sum {weight_sum} is not positive")
        blocks = self.layout.block_slice(chunk)
        factors = (self._scales[blocks] / (64.0 * self.levels * weight_sum))[:, None]
        integers = self._lift(chunk, summed)
        decoded = np.empty(integers.size, np.float32) if out is None else out
        for part, piece in self._rotation.integer_pieces(integers, blocks.start):
            # Elementwise float64 product, then one rounding to float32: IEEE 754 leaves no choice.
            real = _scratch.get("real", piece.size, np.float64)
            np.copyto(real, piece)
            by_block = real.reshape(-1, BLOCK)
            np.multiply(by_block, factors[part.start // BLOCK : part.stop // BLOCK], out=by_block)
            np.copyto(decoded[part], real, casting="same_kind")
        return decoded

    def block_energies(self, chunk: int, summed: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """Sum of squares of each block's integers, float64, for `averaging.scales.next_scales`; exact everywhere.

        Wide integers are first shifted right, so that float64 holds every partial sum exactly.
        """
        shift = 0 if self.layout.pack > 1 else _SHIFT[self.layout.ring_bits, summed.dtype.kind]
        lifted = self._lift(chunk, summed)
        if shift:
            lifted = lifted >> shift
        real = lifted.reshape(-1, BLOCK).astype(np.float64)
        energies: npt.NDArray[np.float64] = np.einsum("ij,ij->i", real, real)
        return energies * 4.0**shift

    def _lift(self, chunk: int, summed: npt.NDArray[np.integer[Any]]) -> IntegerArray:
        return signed(self.layout, chunk, summed, self.survivors, self.levels)
