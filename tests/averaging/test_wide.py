"""Sums across cohorts never wrap, survive the wire, and decode to what a single cohort's sum would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging import wide
from averaging.encoding import Decoder
from averaging.layout import BLOCK, RING_DTYPES, Layout
from averaging.params import MAX_COHORTS
from dht.errors import ProtocolError, Refusal
from tests.averaging.words import wide_bytes

BITS = sorted(RING_DTYPES)


def layout_of(bits: int) -> Layout:
    return Layout(BLOCK, bits, BLOCK)


def rings(bits: int, count: int, seed: int) -> list[np.ndarray]:
    """So many cohorts' sums of a chunk, as signed integers that use the whole ring."""
    top = 2 ** (bits - 1)
    source = np.random.default_rng(seed)
    found = [source.integers(-top, top, BLOCK).astype(f"<i{bits // 8}") for _ in range(count)]
    found[0][:2] = (-top, top - 1)
    return found


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_totals_are_the_integers_sum_in_words_one_byte_wider(bits, count, seed):
    sums = rings(bits, count, seed)
    total = np.sum([ring.astype(np.int64) for ring in sums], axis=0)
    packed = wide.add_up([ring.tobytes() for ring in sums], bits, counts=False)
    assert bytes(packed) == wide_bytes(layout_of(bits), 0, total)
    assert np.array_equal(wide.unpack(layout_of(bits), 0, packed), total)


@pytest.mark.parametrize("bits", BITS)
def test_the_most_cohorts_at_the_extremes_do_not_wrap(bits):
    layout = layout_of(bits)
    info = np.iinfo(f"<i{bits // 8}")
    for value in (info.min, info.max):
        ring = np.full(BLOCK, value, f"<i{bits // 8}").tobytes()
        total = wide.unpack(layout, 0, wide.add_up([ring] * MAX_COHORTS, bits, counts=False))
        assert set(total.tolist()) == {MAX_COHORTS * int(value)}


def test_words_of_the_trailer_are_counts():
    layout = layout_of(16)
    ring = np.full(8, 2**32 - 1, "<u4").tobytes()
    # 4096 honest members stay below half of what 256 full words come to, which is what signed words of five bytes hold.
    total = wide.unpack(layout, layout.trailer, wide.add_up([ring] * (MAX_COHORTS // 2), 32, counts=True))
    assert set(total.tolist()) == {MAX_COHORTS // 2 * (2**32 - 1)}


@pytest.mark.parametrize("size", [0, BLOCK * 3 - 1, BLOCK * 3 + 3])
def test_another_length_is_refused(size):
    with pytest.raises(ProtocolError) as caught:
        wide.unpack(layout_of(16), 0, bytes(size))
    assert caught.value.refusal is Refusal.OUT_OF_BOUNDS


@pytest.mark.parametrize("bits", BITS)
def test_the_same_integers_decode_to_the_same_bytes(bits):
    layout = layout_of(bits)
    decoder = Decoder(layout, 8, np.full(1, 0.25, np.float32), bytes(32))
    (signed,) = rings(bits, 1, 7)
    ring, total = signed.view(RING_DTYPES[bits]), signed.astype(wide.wide_dtype(layout, 0))
    assert decoder.decode_chunk(0, ring, 3.5).tobytes() == decoder.decode_chunk(0, total, 3.5).tobytes()
    close = 2.0**-12 if bits == 32 else 2.0**-6  # what the wider shift drops
    np.testing.assert_allclose(decoder.block_energies(0, total), decoder.block_energies(0, ring), rtol=close)


@pytest.mark.parametrize("bits", BITS)
def test_the_largest_totals_decode_exactly(bits):
    """Against integers of any size: the float64 gemm and the butterflies stay below 2^53."""
    layout = layout_of(bits)
    source = np.random.default_rng(3)
    top = 2 ** (bits + 7)
    total = source.choice(np.array([-top, top - 1]), BLOCK).astype(wide.wide_dtype(layout, 0))
    decoder = Decoder(layout, 8, np.full(1, 1.0, np.float32), bytes(32))
    integers = decoder._rotation.unrotate_integers(total)
    exact = [int(value) for value in total]
    stride = 1
    while stride < BLOCK:
        for start in range(0, BLOCK, 2 * stride):
            for k in range(start, start + stride):
                exact[k], exact[k + stride] = exact[k] + exact[k + stride], exact[k] - exact[k + stride]
        stride *= 2
    assert sorted(map(abs, exact)) == sorted(abs(int(value)) for value in integers)
    shift = {8: 0, 16: 4, 32: 20}[bits]
    assert decoder.block_energies(0, total)[0] == float(sum((int(value) >> shift) ** 2 for value in total) << 2 * shift)
