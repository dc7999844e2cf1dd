"""Digits in ring words: what goes in comes out, and sums of members never carry from one digit into the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.encoding import Decoder, Encoder, signed
from averaging.layout import BLOCK, Layout
from averaging.masking import Masker, unmask
from averaging.packing import (
    LEAST_PACK,
    MOST_PACK,
    base,
    centred,
    pack_digits,
    packed_words,
    top_digit,
    unpack_digits,
)
from averaging.scales import levels
from averaging.wide import add_up_packed, unpack
from dht.errors import ProtocolError

PACKS = range(LEAST_PACK, MOST_PACK + 1)


@pytest.mark.parametrize("pack", PACKS)
def test_the_base_is_the_largest_that_fits(pack: int) -> None:
    assert base(pack) ** pack <= 2**32 < (base(pack) + 1) ** pack


def test_the_table_of_the_docstring() -> None:
    assert [base(pack) for pack in (7, 8, 10, 13)] == [23, 16, 9, 5]
    assert [top_digit(pack, 4) for pack in (7, 8, 10, 13)] == [5, 3, 2, 1]
    assert [top_digit(pack, 8) for pack in (7, 8, 10, 13)] == [2, 1, 1, 0]


@given(st.sampled_from(PACKS), st.integers(1, 300), st.integers(2, 64), st.integers(0, 2**32 - 1))
def test_sums_of_words_are_the_words_of_sums(pack: int, elements: int, members: int, seed: int) -> None:
    """At the extremes too: every member may send the largest digit everywhere."""
    top = top_digit(pack, members)
    if top < 1:
        return
    source = np.random.default_rng(seed)
    digits = source.integers(0, top + 1, (members, elements)).astype(np.uint8)
    digits[:, : elements // 2] = top
    total = np.zeros(packed_words(elements, pack), np.uint32)
    for row in digits:
        words = np.empty_like(total)
        pack_digits(row, pack, words)
        total += words
    assert np.array_equal(unpack_digits(total, pack, elements), digits.sum(0, dtype=np.int32))


def test_words_that_no_digits_make_up_are_out_of_range() -> None:
    """9^10 is below 2^32: words above it exist, and must not pass for small digits."""
    top = np.full(3, 2**32 - 1, np.uint32)
    assert unpack_digits(top, 10, 30)[-3:].min() >= base(10)


def test_centred_digits_are_symmetric() -> None:
    assert centred(np.array([0, 3, 6], np.int32), 3, 2).tolist() == [-6, 0, 6]


def layout_of(pack: int) -> Layout:
    return Layout(2 * BLOCK - 5, 32, BLOCK, pack)


@pytest.mark.parametrize(("pack", "members"), [(7, 8), (10, 4), (10, 8), (13, 4), (4, 64)])
def test_masked_sums_decode_to_the_mean_and_feedback_brings_the_rest(pack: int, members: int) -> None:
    """Encode, mask, add, unmask, decode, and take out what was sent: over rounds nothing of an update is lost."""
    layout = layout_of(pack)
    source = np.random.default_rng(pack)
    scales = np.full(layout.blocks, 2.0, np.float32)
    updates = [source.standard_normal(layout.parameters).astype(np.float32) for _ in range(members)]
    residuals = [update.copy() for update in updates]
    keys = [source.bytes(16) for _ in range(members)]
    arrived = np.zeros(BLOCK)
    errors = []
    for turn in range(8):
        encoder = Encoder(layout, members, scales, bytes([turn]) * 32)
        total = layout.zeros(0)
        for i, key in enumerate(keys):
            ring = layout.empty(0)
            encoder.encode_chunk(0, residuals[i], 1.0, bytes(16), ring)
            residuals[i][:BLOCK] -= encoder.dequantise_chunk(0, ring, 1.0)
            Masker(b"sid", i, key, {}).apply(0, ring)
            total += ring
        unmask(0, total, keys, [])
        decoder = Decoder(layout, members, scales, bytes([turn]) * 32, members)
        arrived += decoder.decode_chunk(0, total, float(members))
        left = np.mean([residual[:BLOCK] for residual in residuals], axis=0)
        np.testing.assert_allclose(arrived + left, np.mean(updates, axis=0)[:BLOCK], atol=1e-4)
        errors.append(float(np.abs(left).mean()))
        scales *= np.float32(0.6)
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("pack", [7, 10])
def test_what_was_sent_is_what_the_encoder_says_was_sent(pack: int) -> None:
    """Error feedback stands on it: dequantising one's own ring words gives what a sum of one decodes to."""
    layout = layout_of(pack)
    scales = np.full(layout.blocks, 2.5, np.float32)
    update = np.random.default_rng(1).standard_normal(layout.parameters).astype(np.float32)
    encoder = Encoder(layout, 4, scales, b"t" * 32)
    ring = layout.empty(1)
    encoder.encode_chunk(1, update, 0.5, b"d" * 16, ring)
    sent = encoder.dequantise_chunk(1, ring, 0.5)
    decoded = Decoder(layout, 4, scales, b"t" * 32, 1).decode_chunk(1, ring, 0.5)
    np.testing.assert_allclose(sent, decoded, rtol=1e-4, atol=1e-5)
    assert np.abs(signed(layout, 1, ring, 1, encoder.levels)).max() <= encoder.levels


@pytest.mark.parametrize(("cohorts", "size"), [(2, 1), (31, 1), (32, 2), (256, 2)])
def test_totals_across_cohorts_take_one_byte_while_it_is_enough(cohorts: int, size: int) -> None:
    layout = Layout(BLOCK, 32, BLOCK, 10)
    words = np.empty(layout.words(0), np.uint32)
    pack_digits(np.full(BLOCK, base(10) - 1, np.uint8), 10, words)
    total = add_up_packed([words.tobytes()] * cohorts, 10)
    expected = (base(10) - 1) * cohorts
    assert len(total) == size * BLOCK
    assert set(unpack(layout, 0, total).tolist()) == {expected}


def test_totals_of_another_length_are_refused() -> None:
    layout = Layout(BLOCK, 32, BLOCK, 10)
    for length in (0, BLOCK - 1, BLOCK + 1, 3 * BLOCK):
        with pytest.raises(ProtocolError):
            unpack(layout, 0, bytes(length))


def test_too_many_members_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        levels(Layout(BLOCK, 32, BLOCK, 13), 5)


@pytest.mark.parametrize(("bits", "pack"), [(16, 8), (32, 3), (32, 21), (8, 4)])
def test_layouts_that_cannot_be(bits: int, pack: int) -> None:
    with pytest.raises(ValueError, match="pack"):
        Layout(BLOCK, bits, BLOCK, pack)


def test_a_tenth_of_the_bytes() -> None:
    packed, plain = Layout(10 * BLOCK, 32, BLOCK, 10), Layout(10 * BLOCK, 32, BLOCK)
    assert plain.chunk_bytes(0) / packed.chunk_bytes(0) == pytest.approx(10, rel=1e-3)
    assert packed.chunk_bytes(packed.trailer) == plain.chunk_bytes(plain.trailer)
