"""Which sums honest members can have made: all that they do make pass, and what a liar must do to pass is bounded."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from averaging.encoding import Encoder, squared_norm
from averaging.layout import BLOCK, Layout
from averaging.masking import Masker
from averaging.plausible import ImplausibleSumError, check_norm, check_range, check_totals
from averaging.scales import levels, reference
from averaging.trailer import Statistics, pack, unpack

SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32}
MEMBERS, TOKENS = 8, 700


class Round:
    """Eight members' encoded updates and trailers; a liar changes its own before they are summed."""

    def __init__(self, bits: int, shape: str = "noise", weight: float = 0.7, blocks: int = 6) -> None:
        self.layout = Layout(blocks * BLOCK - 11, bits, BLOCK)
        self.levels = levels(self.layout, MEMBERS)
        self.scales = np.linspace(1e-3, 4e-3, blocks).astype(np.float32)
        source = np.random.default_rng(bits)
        encoder = Encoder(self.layout, MEMBERS, self.scales, b"s" * 32)
        common = source.normal(0, 5e-4, self.layout.parameters).astype(np.float32)
        self.rings: list[list[Any]] = []
        self.trailers: list[Any] = []
        for i in range(MEMBERS):
            own = source.normal(0, 5e-4, self.layout.parameters).astype(np.float32)
            factor = {"noise": 1.0, "equal": 1.0, "large": 60.0, "tiny": 1e-6, "zero": 0.0}[shape]
            update = factor * (common if shape == "equal" else own)
            rings = [self.layout.zeros(c) for c in range(self.layout.chunks)]
            for c, ring in enumerate(rings):
                encoder.encode_chunk(c, update, weight, sha256(b"%d %d" % (i, c)).digest()[:16], ring)
            self.rings.append(rings)
            norm = squared_norm(update) * weight * weight / reference(self.scales)
            self.trailers.append(pack(Statistics(TOKENS + i, 1.0, 1.0, norm, 0.0, 3)))
        self.tokens = sum(TOKENS + i for i in range(MEMBERS))

    def check(self) -> None:
        summed = [sum(ring[c] for ring in self.rings) for c in range(self.layout.chunks)]
        lifted = [total.astype(self.layout.dtype(0)).view(SIGNED[self.layout.ring_bits]) for total in summed]
        trailer = sum(words.astype(np.uint64) for words in self.trailers).astype(np.uint32)
        totals = unpack(trailer, MEMBERS)
        check_totals(totals, self.tokens)
        check_range(lifted, self.levels, MEMBERS)
        energies = np.concatenate([(one.astype(np.float64).reshape(-1, BLOCK) ** 2).sum(1) for one in lifted])
        check_norm(energies, self.scales, self.levels, totals)


@pytest.mark.parametrize("weight", [1.0, 0.01])
@pytest.mark.parametrize("shape", ["noise", "equal", "large", "tiny", "zero"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_what_honest_members_sum_up_to_passes(bits: int, shape: str, weight: float) -> None:
    """`equal` updates meet the bound of Cauchy and Schwarz; `large` ones are cut at the clip nearly everywhere."""
    Round(bits, shape, weight).check()


def refused(found: Round) -> str:
    with pytest.raises(ImplausibleSumError) as caught:
        found.check()
    return caught.value.message


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_masks_that_do_not_cancel_are_found_by_the_trailer(bits: int) -> None:
    """Whoever masks with a wrong key, by fault or on purpose, adds noise to its trailer, too."""
    found = Round(bits)
    masker = Masker(bytes(32), 0, b"k" * 16, {})
    for c, ring in enumerate(found.rings[3]):
        masker.apply(c, ring)
    words = found.trailers[3]
    masker.apply(found.layout.trailer, words)
    assert "trailer is not a sum of trailers" in refused(found)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_noise_over_the_ring_under_an_honest_trailer_is_found(bits: int) -> None:
    found = Round(bits)
    for c, ring in enumerate(found.rings[3]):
        Masker(bytes(32), 0, b"k" * 16, {}).apply(c, ring)
    assert "is the most" in refused(found) or "clips long" in refused(found)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_one_coordinate_one_level_beyond_what_all_members_can_reach_is_found(bits: int) -> None:
    found = Round(bits)
    others = sum(int(ring[0].view(SIGNED[bits])[17]) for i, ring in enumerate(found.rings) if i != 3)
    for beyond in (0, 1):
        found.rings[3][0].view(SIGNED[bits])[17] = np.array(MEMBERS * found.levels + beyond - others).astype(
            SIGNED[bits]
        )
        if not beyond:
            found.check()  # as much as all members together at their clip, in one coordinate: that passes
    assert "is the most" in refused(found)


def test_an_update_inflated_beyond_what_its_trailer_says_is_found() -> None:
    found = Round(16)
    for ring in found.rings[3]:
        ring[:] = np.where(ring.view(np.int16) < 0, -found.levels * 4, found.levels * 4).astype(np.uint16)
    assert "clips long" in refused(found)


def test_tokens_that_differ_from_the_manifest_are_found() -> None:
    found = Round(16)
    found.tokens += 1
    assert "tokens" in refused(found)


def test_a_liar_that_owns_up_to_its_norm_is_not_found_and_moves_the_sum_by_so_much_at_most() -> None:
    """The limit of what can be checked: a norm of 15 references leaves room for three clips in every coordinate."""
    found = Round(16)
    honest = found.trailers[3]
    statistics = Statistics(TOKENS + 3, 1.0, 1.0, 15.0, 0.0, 3)
    found.trailers[3] = pack(statistics)
    for ring in found.rings[3]:
        ring[:] = np.where(np.arange(ring.size) % 2, -3 * found.levels, 3 * found.levels).astype(np.uint16)
    found.check()
    found.trailers[3] = honest
    assert "clips long" in refused(found)
    found.trailers[3] = pack(replace(statistics, squared_norm=0.5))  # an honest one at its clip says one at most
    assert "clips long" in refused(found)
