from __future__ import annotations

import numpy as np
import pytest

from peer import progress
from peer.progress import Progress

ELEMENTS = 1000


@pytest.mark.parametrize("slice_", [64, 1 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_every_step_is_in_exactly_one_place(seed: int, slice_: int, monkeypatch: pytest.MonkeyPatch):
    """Any order of steps, updates taken, landings and restarts: learned = taken + progress, and nothing else moves."""
    monkeypatch.setattr(progress, "_SLICE", slice_)
    rng = np.random.default_rng(seed)
    local = rng.standard_normal(ELEMENTS).astype(np.float32)
    kept = Progress(local)
    certified = local.copy()
    residual = np.zeros(ELEMENTS, np.float32)
    learned = np.zeros(ELEMENTS)
    for what in rng.choice(["step", "take", "land", "restart"], 60, p=[0.5, 0.2, 0.2, 0.1]):
        progress_before, residual_before = kept.made(local), residual.copy()
        if what == "step":
            step = rng.standard_normal(ELEMENTS).astype(np.float32) / 100
            learned += step
            local -= step
        elif what == "take":
            kept.take(local, residual)
            assert not kept.made(local).any()
            np.testing.assert_allclose(residual, residual_before + progress_before, atol=1e-6)
        elif what == "land":
            certified = rng.standard_normal(ELEMENTS).astype(np.float32)
            local = kept.land(certified, local, residual)
            np.testing.assert_allclose(local, certified - progress_before - residual_before, atol=1e-6)
            assert not residual.any()
        else:
            kept = Progress(np.zeros(ELEMENTS, np.float32))
            local = kept.go_on(certified, residual, progress_before)
        if what not in ("take", "land"):
            assert np.array_equal(residual, residual_before)
        np.testing.assert_allclose(residual + kept.made(local), learned, atol=1e-5)


def test_starting_over_forgets_what_is_not_finite():
    local = np.zeros(4, np.float32)
    kept = Progress(local)
    local[1] = np.nan
    kept.take(local, np.zeros(4, np.float32))
    certified, residual = np.full(4, 3, np.float32), np.ones(4, np.float32)
    local = kept.start_over(certified, residual).copy()
    assert np.array_equal(local, certified - residual)
    assert not kept.made(local).any()
