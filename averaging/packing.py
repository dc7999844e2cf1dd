"""Several small digits in one 32-bit ring word, so that few bits per element are enough under masks.

A power-of-two ring for each element would spend whole bits on headroom. Instead a member sends digits 0..M of
base b, and a word holds `pack` of them: word = sum_j digit_j * b^j. With n * M < b the sums of n members' digits never
carry into each other, and with b^pack <= 2^32 their word never wraps: adding up words in Z_2^32, masks included, adds
up all digits exactly. (The idea is that of packed ciphertexts, as in BatchCrypt, USENIX ATC 2020, with a base that is
no power of two.)

    pack             7     8    10    13
    base            23    16     9     5
    bits per digit  4.6   4     3.2   2.5
    M for 4 members  5     3     2     1
    M for 8 members  2     1     1     -
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LEAST_PACK, MOST_PACK = 4, 20
"""Fewer than four digits are what the 8- and 16-bit rings do; with more than 20 three members would not fit."""


def base(pack: int) -> int:
    """The largest b with b^pack <= 2^32: the range of a digit's sum."""
    found: int = round(2.0 ** (32 / pack))
    while found**pack > 1 << 32:
        found -= 1
    while (found + 1) ** pack <= 1 << 32:
        found += 1
    return found


def top_digit(pack: int, members: int) -> int:
    """M: the largest digit that each of so many members may send; 0 if they are too many."""
    return (base(pack) - 1) // members


def packed_words(elements: int, pack: int) -> int:
    """Words that hold so many digits; the last one may be in part unused."""
    return -(-elements // pack)


def pack_digits(digits: npt.NDArray[np.uint8], pack: int, out: npt.NDArray[np.uint32]) -> None:
    """Write digits (uint8[e], each below `base(pack)`) as ring words to `out`, uint32[packed_words(e, pack)].

    Word i holds the digits i, i + w, i + 2w ... of w words: runs of digits are read and written, not single ones.
    """
    words = len(out)
    out[:] = 0
    radix = np.uint32(base(pack))
    for place in reversed(range(pack)):
        part = digits[place * words : (place + 1) * words]
        out *= radix
        out[: len(part)] += part


def unpack_digits(words: npt.NDArray[np.integer[Any]], pack: int, elements: int) -> npt.NDArray[np.int32]:
    """The digits of ring words, int32[elements]. Unused ones are not looked at.

    A word that no digits make up has a last digit of `base(pack)` or more, which no honest sum has.
    """
    digits = np.empty(elements, np.int32)
    radix = np.uint32(base(pack))
    rest = words.astype(np.uint32)
    for place in range(pack):
        part = digits[place * len(words) : (place + 1) * len(words)]
        rest, digit = np.divmod(rest, radix) if place < pack - 1 else (rest, rest)
        part[:] = digit[: len(part)]
    return digits


def centred(digits: npt.NDArray[np.int32], survivors: int, top: int) -> npt.NDArray[np.int32]:
    """Sums of `survivors` digits 0..M as integers around zero: twice the digit less M for each of them."""
    return 2 * digits - np.int32(survivors * top)
