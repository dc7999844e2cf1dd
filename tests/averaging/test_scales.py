import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging.encoding import Decoder, Encoder, squared_norm
from averaging.layout import BLOCK, Layout
from averaging.scales import (
    GROW,
    LARGEST_SCALE,
    SHRINK,
    SMALLEST_SCALE,
    UNKNOWN,
    initial_scales,
    kappa,
    next_scales,
    reference,
)

SEED = bytes(range(32))


def run(layout, updates, scales, rounds):
    """Rounds of encode, sum, decode and adapt; yields the relative error of the mean in each."""
    expected = np.mean([u.astype(np.float64) for u in updates], axis=0)
    for k in range(rounds):
        encoder, decoder = (made(layout, len(updates), scales, SEED) for made in (Encoder, Decoder))
        total = layout.zeros(0)
        for i, update in enumerate(updates):
            ring = layout.zeros(0)
            encoder.encode_chunk(0, update, 1.0, bytes([k, i]) * 8, ring)
            total += ring
        error = np.linalg.norm(decoder.decode_chunk(0, total, float(len(updates))) - expected)
        norm = sum(squared_norm(u) for u in updates) / len(updates) / reference(scales)
        scales = next_scales(layout, len(updates), scales, decoder.block_energies(0, total), len(updates), norm)
        yield float(error / np.linalg.norm(expected)), scales


@pytest.mark.parametrize("start", [1e-6, 1e-3, 10.0])
@pytest.mark.parametrize(("ring_bits", "good"), [(8, 0.1), (16, 2e-3), (32, 1e-6)])
def test_clips_find_the_size_of_the_updates_from_any_start(start, ring_bits, good):
    layout, members = Layout(4 * BLOCK, ring_bits), 8
    rng = np.random.default_rng(0)
    common = rng.standard_normal(layout.elements)
    sizes = np.repeat([1e-3, 2e-3, 1e-3, 5e-4], BLOCK)
    updates = [(sizes * (common + rng.standard_normal(layout.elements))).astype(np.float32) for _ in range(members)]
    *_, (error, scales) = run(layout, updates, np.full(4, start, np.float32), 25)
    assert error < good
    rms = sizes[::BLOCK] * math.sqrt(2)
    np.testing.assert_allclose(scales / (kappa(Layout(BLOCK, ring_bits), members) * rms), 1.0, atol=0.25)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-1, 2**42), min_size=3, max_size=3),
    st.floats(0, 16),
    st.lists(st.floats(-11, 11).map(lambda e: 10**e), min_size=3, max_size=3),
    st.integers(1, 8),
)
def test_no_public_number_moves_a_clip_out_of_bounds(energies, norm, clips, survivors):
    layout, old = Layout(3 * BLOCK, 16), np.array(clips, np.float32)
    new = next_scales(layout, 8, old, np.array(energies), survivors, norm)
    assert new.dtype == np.float32 and np.isfinite(new).all()
    assert (new >= np.float32(SMALLEST_SCALE)).all() and (new <= np.float32(LARGEST_SCALE)).all()
    ratio = new.astype(np.float64) / old
    assert (ratio <= GROW * (1 + 1e-6)).all() and (ratio >= SHRINK * (1 - 1e-6)).all()
    for block, energy in enumerate(energies):
        if energy == UNKNOWN:
            assert new[block] == old[block]
    Encoder(layout, 8, new, SEED)  # what comes out is accepted as the next clips


def test_a_lost_chunk_keeps_its_clips():
    layout, old = Layout(2 * BLOCK, 16), np.array([0.3, 0.7], np.float32)
    assert next_scales(layout, 4, old, np.array([UNKNOWN, UNKNOWN]), 4, 0.1).tolist() == old.tolist()
    mixed = next_scales(layout, 4, old, np.array([10**9, UNKNOWN]), 4, 0.001)
    assert mixed[1] == old[1] and mixed[0] != old[0]


def test_quiet_blocks_are_held_to_a_floor():
    layout, old = Layout(2 * BLOCK, 16), np.full(2, 1.0, np.float32)
    energies = np.array([10**12, 0])
    for _ in range(20):
        old = next_scales(layout, 8, old, energies, 8, 0.02)
    assert 1 / 40 < old[1] / old[0] < 1 / 16


def test_a_false_norm_moves_rho_within_its_bounds_only():
    layout, old = Layout(BLOCK, 16), np.ones(1, np.float32)
    energy = np.array([4096 * 2000**2])
    low, high = (next_scales(layout, 8, old, energy, 8, norm)[0] for norm in (0.0, 16.0))
    assert low < high <= GROW
    rms = 2000 / (4095 * 8)
    assert low == pytest.approx(max(kappa(Layout(BLOCK, 16), 8) * rms, SHRINK))


@pytest.mark.parametrize(("learning_rate", "steps", "clip"), [(1e-3, 50, 0.2), (0.0, 5, 2e-12), (1e9, 10**6, 5e11)])
def test_first_clips_cover_what_the_inner_steps_can_move(learning_rate, steps, clip):
    scales = initial_scales(Layout(10 * BLOCK + 1, 16), learning_rate, steps)
    assert scales.shape == (11,) and scales.dtype == np.float32
    np.testing.assert_allclose(scales, clip, rtol=1e-6)


def test_more_levels_take_wider_clips():
    widths = [kappa(Layout(BLOCK, b), n) for b, n in ((8, 64), (8, 32), (8, 8), (8, 4), (16, 16), (32, 8))]
    assert widths == sorted(widths)


def test_wrong_shapes_are_refused():
    layout = Layout(2 * BLOCK, 16)
    with pytest.raises(ValueError):
        next_scales(layout, 4, np.ones(2, np.float32), np.zeros(3, np.int64), 4, 0.1)
    with pytest.raises(ValueError):
        next_scales(layout, 4, np.ones(1, np.float32), np.zeros(2, np.int64), 4, 0.1)
