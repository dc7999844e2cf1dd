"""Whole peers, with drivers, learners and stores, that are split in two halves and meet again."""

from __future__ import annotations

from pathlib import Path

from averaging.chain import Chain
from peer.history import certify
from tests.peer.swarm_in_process import Peer, Swarm, until

LIMITS = {"join": 1.0}
AFTER = 3.0
"""Seconds that count as gone for good: a beat of 0.3 s, ten of which must pass without a word."""


def chain(peer: Peer) -> Chain:
    assert peer.participant.chain is not None
    return peer.participant.chain


async def test_two_halves_train_on_alone_and_become_one_run_again(tmp_path: Path):
    async with Swarm(6, tmp_path, LIMITS, recovery_after=AFTER) as swarm:
        await swarm.reach(1)
        one, other = swarm.peers[:3], swarm.peers[3:]
        swarm.network.cut = {(a.id, b.id) for a in swarm.peers for b in swarm.peers if (a in one) != (b in one)}
        failed = [peer.driver.failed for peer in swarm.peers]

        def branched(rounds: int) -> bool:
            since = [(peer, dict(chain(peer).recoveries)) for peer in swarm.peers]
            return all(gone and peer.learner.round >= max(gone) + rounds for peer, gone in since)

        await until(lambda: branched(2), failed)
        forks = {chain(peer).recoveries[0][0] for peer in swarm.peers}
        assert len(forks) == 1
        assert chain(one[0]).record(max(forks)) != chain(other[0]).record(max(forks))
        for side, rest in ((one, other), (other, one)):
            for peer in side:
                (event,) = peer.events.named("recovery")
                assert {*event["members"]} == {str(p.id) for p in side}
                assert {*event["missing"]} == {str(p.id) for p in rest}
        swarm.network.cut.clear()
        height = max(peer.learner.round for peer in swarm.peers)

        def united() -> bool:
            heads = {(peer.learner.round, chain(peer).record(peer.learner.round).hash()) for peer in swarm.peers}
            head = chain(swarm.peers[0]).record(swarm.peers[0].learner.round)
            return len(heads) == 1 and head.round > height and len(head.survivors) == 6

        await until(united, failed)
        changed = [peer for peer in swarm.peers if peer.events.named("rolled_back")]
        assert any(all(peer in changed for peer in side) for side in (one, other))
        for peer in changed:
            event = peer.events.named("rolled_back")[0]
            assert event["fork"] == max(forks) - 1 < event["left"]
        assert swarm.network.refused == []
    # What is on disk is one history, whole, that certifies itself.
    for peer in swarm.peers:
        store = peer.learner.store
        stored = store.load_newest(lambda found: certify(found, swarm.manifest.run_id, swarm.manifest.founder))
        assert stored is not None
        assert stored.root == chain(peer).state_root(stored.round) == store.load_state(stored).root()
