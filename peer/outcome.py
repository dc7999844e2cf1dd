"""What a round's sums come to: the mean pseudo-gradient, the next clips, and whether honest members can have made them.

Pure functions of the sums and of the state before them: everybody computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from averaging.encoding import Decoder, next_scales, signed
from averaging.layout import Layout
from averaging.plausible import check_norm, check_range, check_totals
from averaging.scales import UNKNOWN, levels
from averaging.trailer import Totals, unpack
from averaging.weights import Weighing, next_ratios
from peer.fragments import Fragments
from peer.outer import Vector
from peer.prepared import Prepared
from peer.sent import signs
from peer.state import CanonicalState


class Outcome:
    """The outcome of one round's sums. `fixed_clips`: they stay as they are (noise in the sum)."""

    def __init__(
        self,
        prepared: Prepared,
        state: CanonicalState,
        layout: Layout,
        fragments: Fragments,
        weighing: Weighing,
        *,
        fixed_clips: bool = False,
    ) -> None:
        self._prepared, self._state, self._layout = prepared, state, layout
        self._fragments, self._weighing, self._fixed_clips = fragments, weighing, fixed_clips
        self._scales = fragments.scales(state.scales, prepared.round)
        self._decoder = Decoder(layout, prepared.members, self._scales, signs(prepared.sid), prepared.survivors)
        self.part = fragments.elements(prepared.round)
        """The elements that the gradient is for."""

    @property
    def totals(self) -> Totals | None:
        """What the trailers add up to; None when theirs was lost."""
        prepared = self._prepared
        if self._layout.trailer in prepared.lost:
            return None
        return unpack(prepared.sums[self._layout.trailer], prepared.survivors)

    def gradient(self) -> Iterator[Vector]:
        """The mean pseudo-gradient, chunk by chunk: the weighted mean of the survivors' updates."""
        prepared = self._prepared
        weight_sum = self._weighing.total(prepared.tokens, prepared.domains, self._state.domains)
        for chunk in range(self._layout.chunks):
            if chunk in prepared.lost:
                yield np.zeros(self._layout.coordinates(chunk), np.float32)
            else:
                yield self._decoder.decode_chunk(chunk, prepared.sums[chunk], weight_sum)

    def energies(self) -> npt.NDArray[np.float64]:
        """Of every block of the round's elements; UNKNOWN for lost chunks and padding."""
        energies = np.full(self._layout.blocks, UNKNOWN, np.float64)
        for chunk in self._present:
            here = self._layout.block_slice(chunk)
            energies[here] = self._decoder.block_energies(chunk, self._prepared.sums[chunk])
        blocks = self._fragments.blocks(self._prepared.round)
        energies[blocks.stop - blocks.start :] = UNKNOWN
        return energies

    def check(self, energies: npt.NDArray[np.float64]) -> None:
        """Raises ImplausibleSumError for sums that honest members cannot have made."""
        prepared, top = self._prepared, levels(self._layout, self._prepared.members)
        data = (signed(self._layout, c, prepared.sums[c], prepared.survivors, top) for c in self._present)
        check_range(data, top, prepared.survivors)
        totals = self.totals
        if totals is not None:
            check_totals(totals, sum(prepared.tokens))
            check_norm(energies, self._scales, top, totals)

    def next_sections(self, energies: npt.NDArray[np.float64]) -> tuple[Vector, Vector]:
        """The next state's clips, and its data domains' ratios."""
        totals, prepared = self.totals, self._prepared
        if totals is None or self._fixed_clips:
            return self._state.scales.copy(), self._state.domains.copy()
        scales = next_scales(
            self._layout, prepared.members, self._scales, energies, prepared.survivors, totals.mean_squared_norm
        )
        whole = self._fragments.put_back(self._state.scales, scales, prepared.round)
        return whole, next_ratios(self._state.domains, totals)

    @property
    def _present(self) -> list[int]:
        return [chunk for chunk in range(self._layout.chunks) if chunk not in self._prepared.lost]
