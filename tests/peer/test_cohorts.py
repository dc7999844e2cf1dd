"""Whole peers in several cohorts: everybody's next state is what all survivors' integers say."""

from __future__ import annotations

from pathlib import Path

from tests.peer.learner_oracle import check_state, oracle_state, remember_states
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
