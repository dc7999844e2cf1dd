from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging.layout import BLOCK
from averaging.rotation import Rotation, hadamard

SEED = bytes(range(32))


def naive_unrotate(a, signs):
    """`D H a` by twelve levels of textbook butterflies on Python-sized integers."""
    x = a.astype(np.int64).reshape(-1, BLOCK)
    stride = 1
    while stride < BLOCK:
        x = x.reshape(-1, 2, stride)
        x = np.stack([x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]], axis=1)
        stride *= 2
    return x.reshape(-1) * signs


def signs_of(seed, first_block, blocks):
    """The signs, read back from the rotation of ones: H of ones is 4096 at the first place of a block."""
    impulses = np.zeros(blocks * BLOCK, np.int16)
    impulses[::BLOCK] = 1
    return Rotation(seed).unrotate_integers(impulses, first_block)


def random_integers(dtype, blocks, seed=0):
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, blocks * BLOCK, dtype, endpoint=True)


def test_hadamard_matrices_are_orthogonal():
    for order in (1, 2, 64):
        matrix = hadamard(order)
        np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize(("first_block", "blocks"), [(0, 1), (5, 7), (2**33, 17)])
def test_integers_agree_with_textbook_butterflies(dtype, first_block, blocks):
    a = random_integers(dtype, blocks)
    expected = naive_unrotate(a, signs_of(SEED, first_block, blocks))
    kept = a.copy()
    result = Rotation(SEED).unrotate_integers(a, first_block)
    assert result.dtype == (np.int64 if dtype is np.int32 else np.int32)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(a, kept)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_extreme_integers_are_exact(dtype):
    """All entries at the ring's ends, in the pattern that adds up everything at one place."""
    info = np.iinfo(dtype)
    for row in (0, 1, 63, 2048, 4095):
        pattern = np.array([1 - 2 * ((row & k).bit_count() % 2) for k in range(BLOCK)])
        for ends in ((info.min, info.max), (info.max, info.min)):
            a = np.where(pattern > 0, *ends).astype(dtype)
            result = Rotation(SEED).unrotate_integers(a)
            np.testing.assert_array_equal(result, naive_unrotate(a, signs_of(SEED, 0, 1)))
            assert abs(int(result[row])) >= BLOCK * info.max


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 9))
def test_any_cut_into_blocks_gives_the_same_integers(seed, blocks, cut):
    a = random_integers(np.int16, blocks, seed)
    whole = Rotation(SEED).unrotate_integers(a, 3)
    cut = min(cut, blocks)
    parts = [
        Rotation(SEED).unrotate_integers(a[: cut * BLOCK], 3),
        Rotation(SEED).unrotate_integers(a[cut * BLOCK :], 3 + cut),
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_rotation_and_its_inverses_undo_each_other():
    x = np.random.default_rng(1).standard_normal(5 * BLOCK).astype(np.float32)
    rotation = Rotation(SEED)
    y = rotation.rotate(x.copy(), 2)
    assert abs(np.linalg.norm(y) / np.linalg.norm(x) - 1) < 1e-5
    np.testing.assert_allclose(rotation.unrotate(y.copy(), 2), x, atol=1e-5)
    # The integer inverse undoes the float rotation, times 64.
    grid = np.rint(y * 1000).astype(np.int16)
    np.testing.assert_allclose(rotation.unrotate_integers(grid, 2) / 64000, x, atol=2e-2)


def test_a_spike_is_spread_over_its_block_and_no_further():
    x = np.zeros(3 * BLOCK, np.float32)
    x[BLOCK + 17] = 64.0
    y = Rotation(SEED).rotate(x)
    np.testing.assert_array_equal(np.abs(y[BLOCK : 2 * BLOCK]), 1.0)
    assert not y[:BLOCK].any() and not y[2 * BLOCK :].any()


def test_signs_are_balanced_and_differ_by_seed_and_block():
    signs = signs_of(SEED, 0, 64).reshape(64, BLOCK)
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(int(signs.sum())) < 5 * 512  # five standard deviations of 64 * 4096 fair coins
    assert len({row.tobytes() for row in signs}) == 64
    assert not np.array_equal(signs, signs_of(bytes(32), 0, 64).reshape(64, BLOCK))


def test_threads_do_not_share_buffers():
    rotation, inputs = Rotation(SEED), [random_integers(np.int16, 20, seed) for seed in range(8)]
    alone = [rotation.unrotate_integers(a).tobytes() for a in inputs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda a: rotation.unrotate_integers(a).tobytes(), inputs * 5)) == alone * 5


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(ValueError):
        Rotation(bytes(16))
