"""Whole peers in several cohorts: everybody's next state is what all survivors' integers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from averaging.packing import centred, top_digit, unpack_digits
from peer.manifest import Codec
from tests.peer.learner_oracle import (
    check_state,
    oracle_hadamard,
    oracle_signs,
    oracle_state,
    oracle_step,
    oracle_weight,
    remember_states,
)
from tests.peer.swarm_in_process import Swarm

SHIFT = 4
"""Bits that the energies of sums across cohorts leave out in the 16-bit ring (`averaging.encoding`)."""


async def test_two_cohorts_add_up_to_one_state(tmp_path: Path):
    async with Swarm(7, tmp_path, target=4) as swarm:  # cohorts of four and of three
        states = remember_states(swarm.peers[0].learner)
        await swarm.reach(3)
        chain = swarm.peers[0].participant.chain
        assert chain is not None
        for number in (1, 2, 3):
            record = chain.record(number)
            assert not record.void
            assert (record.left_out, record.lost_chunks) == ((), ())
            rings = [peer.encoded[record.sid] for peer in swarm.peers if peer.id in record.members()]
            assert len(rings) == len(record.survivors) >= 6
            expected = oracle_state(states[number - 1], rings, record, 4, swarm.manifest, SHIFT)
            check_state(states[number], expected, record)
        assert len({peer.learner.store.chunk(3, 1) for peer in swarm.peers}) == 1
        assert swarm.network.refused == []


@pytest.mark.parametrize("peers", [4, 7])
async def test_packed_digits_add_up_in_one_cohort_and_across_two(tmp_path: Path, peers: int):
    """Ten elements in a word: whole peers agree, and the state is what everybody's digits say, added up by hand."""
    async with Swarm(peers, tmp_path, target=4, codec=Codec(ring_bits=32, chunk_elements=4096, pack=10)) as swarm:
        learner = swarm.peers[0].learner
        layout = learner.params.layout
        assert layout.chunk_bytes(0) == 4 * 410
        states = remember_states(learner)
        await swarm.reach(3)
        chain = swarm.peers[0].participant.chain
        assert chain is not None
        for number in (1, 2, 3):
            record = chain.record(number)
            assert not record.void and record.lost_chunks == ()
            given = [peer.encoded[record.sid] for peer in swarm.peers if peer.id in record.members()]
            assert len(given) == len(record.survivors)
            top = top_digit(10, 4)
            sums = {
                c: centred(sum(unpack_digits(rings[c], 10, 4096) for rings in given), len(given), top)
                for c in range(layout.chunks)
            }
            weights = sum(oracle_weight(survivor.tokens, swarm.manifest) for survivor in record.survivors)
            before = states[number - 1]
            blocks = []
            for block, summed in sums.items():
                turned = oracle_signs(record.sid, block) * oracle_hadamard(summed)
                factor = float(before.scales[block]) / (64.0 * top * weights)
                blocks.append((turned.astype(np.float64) * factor).astype(np.float32))
            parameters, momentum = oracle_step(before, np.concatenate(blocks), swarm.manifest)
            assert np.array_equal(states[number].parameters, parameters)
            assert np.array_equal(states[number].momentum, momentum)
        assert len({peer.learner.store.chunk(3, 1) for peer in swarm.peers}) == 1
        assert swarm.network.refused == []
