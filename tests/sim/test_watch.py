"""The simulator's watch sees audit shares that leave before all sums are signed, and lets those pass that may leave."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from averaging.cohort import Cohort
from tests.averaging import mutations
from tests.sim.swarm import Peer, Swarm


def two_neighbours_die(seed: int) -> tuple[Swarm, list[Peer]]:
    """A swarm in which a reducer, and the one who has the only copy of its own chunks, die before they add up.

    Nothing is audited: six of eight are too few to open the audit seed, and the round would be void.
    """
    swarm, dead = Swarm(8, seed, audit_share=0.0), list[Peer]()

    def strike(name: str, peer: Peer) -> None:
        if name == "reduce" and swarm.cohort_of(peer.id).me in (2, 3):
            dead.append(peer)
            swarm.crash(peer.id)

    swarm.on_event = strike
    swarm.start()
    assert swarm.run(lambda: len(dead) == 2 and bool(swarm.records), 120)
    return swarm, dead


@pytest.mark.parametrize("cohorts", [1, 2])
def test_audit_shares_before_all_sums_are_signed_are_seen(cohorts):
    with mutations.early_audit():
        swarm = Swarm(8, 1, minimum=4, target=8 // cohorts)
        swarm.start()
        assert swarm.run(lambda: swarm.watch.seen["AuditShares"] > 0, 60)
    assert {len(swarm.cohort_of(peer).peers) for peer in swarm.order} == {8 // cohorts}
    assert swarm.watch.broken
    assert all("sums unsigned" in broken for broken in swarm.watch.broken)


def test_sums_may_be_given_up_when_everybodys_time_is_over():
    swarm, dead = two_neighbours_die(1)
    (record,) = swarm.records[1].values()
    assert record.lost_chunks
    assert swarm.watch.seen["sums given up"] == 8 - len(dead)
    swarm.check()


def test_sums_that_are_given_up_too_early_are_seen():
    """As soon as the reducers are late, while others may still stand in for them."""

    def at_once(cohort: Cohort, turn: int) -> list[object]:
        cohort.sums.give_up()
        return [*cohort._advance()]

    with patch.object(Cohort, "_late_sums", at_once):
        swarm, _ = two_neighbours_die(1)
    assert swarm.watch.seen["sums given up"] == 0
    assert any("sums unsigned" in broken for broken in swarm.watch.broken)
