"""Who is there: silent deaths are found by asking, too few end an attempt early, and a restart is no presence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from averaging.actions import Send
from averaging.bulk import Chunk
from averaging.cohort import Cohort
from averaging.messages import Knock, Ping
from dht.envelope import seal
from dht.identity import PeerId
from dht.wire import encode
from tests.averaging.cohort_net import CohortNet
from tests.sim.swarm import Peer, Swarm


class Silent(CohortNet):
    """Nobody is told of a death; only who sends the dead a Ping finds that it is not acknowledged."""

    def __init__(self, n: int, seed: int, victims: int) -> None:
        super().__init__(n, seed=seed)
        self.announce = 0.0
        self.plan = {i: ("Upload", 1) for i in range(victims)}
        self.found: set[tuple[int, int]] = set()

    def _arrive(self, i: int, j: int, item: Any, envelope: Any) -> None:
        super()._arrive(i, j, item, envelope)
        if isinstance(item, Ping) and not self.nodes[j].alive:
            self.found.add((i, j))
            self._lost(i, j)

    @property
    def upload_over(self) -> float:
        """When who waits for an upload stops waiting, at the earliest, in seconds."""
        return self.params.deadlines.train + self.params.deadlines.upload


def test_a_silent_death_is_found_by_those_who_wait_for_the_dead():
    net = Silent(8, 3, victims=1)
    net.run(limit=net.upload_over - 0.1)
    assert net.fired == [(0, "Upload")]
    assert {i for i, _ in net.found} == set(net.living)
    assert all(net.nodes[i].cohort.certified is not None for i in net.living)
    net.run_on()
    assert net.check_sums() == ()


def test_an_attempt_ends_early_when_too_few_can_be_reached():
    net = Silent(8, 4, victims=2)
    net.run(limit=net.upload_over - 0.1)
    assert len(net.fired) == 2
    for i in net.living:
        failed = net.nodes[i].cohort.failed
        assert failed is not None and not failed.opened
        assert "too few members can be reached" in failed.reason


@pytest.mark.parametrize("heard_again", [True, False])
def test_who_is_heard_again_in_time_ends_no_attempt(heard_again):
    """Two members train longer than the others, who cannot reach them for a while."""
    net = CohortNet(8, seed=5)
    slow = {0, 1}
    net.delay = lambda i, j, item: 5.0 if i in slow and isinstance(item, Chunk) else 0.1
    grace = net.params.deadlines.survivors

    def each(call: Callable[[Cohort, PeerId], Any]) -> None:
        for i in range(2, 8):
            for member in slow:
                peer = net.roster.peers[member]
                net.call(i, lambda c, peer=peer: call(c, peer) or [])

    doubted: list[bool] = []
    net.at(1.5, lambda: doubted.extend(node.cohort.certified is None for node in net.nodes))
    net.at(1.5, lambda: each(lambda c, peer: c.suspect(peer)))
    if heard_again:
        net.at(1.5 + grace / 2, lambda: each(lambda c, peer: c.trust(peer)))
    net.run()
    failed = [net.nodes[i].cohort.failed for i in range(2, 8)]
    assert all(doubted), "the sum was there before anybody doubted"
    few = [f is not None and "too few members can be reached" in f.reason for f in failed]
    assert not any(few) if heard_again else all(few)
    if heard_again:
        assert net.check_sums() == ()


def test_a_suspicion_that_is_repeated_does_not_put_the_end_off():
    """A driver says it again at every attempt to reach somebody."""
    net = CohortNet(8, seed=6)
    net.tamper = lambda i, j, item: None if isinstance(item, Ping | Chunk) else item
    grace, told = net.params.deadlines.survivors, 0

    def suspect() -> None:
        nonlocal told
        told += 1
        for i in range(2, 8):
            for member in (0, 1):
                net.call(i, lambda c, peer=net.roster.peers[member]: c.suspect(peer))

    for moment in range(12):
        net.at(2.0 + moment * grace / 4, suspect)
    net.run(limit=2.0 + grace + 0.1)
    assert told >= 4
    assert all("too few members can be reached" in net.nodes[i].cohort.failed.reason for i in range(2, 8))


@pytest.fixture
def swarm() -> Swarm:
    swarm = Swarm(8, 7)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 60)
    assert swarm.run(lambda: all(in_a_cohort(peer) for peer in swarm.peers.values()), 30)
    return swarm


def in_a_cohort(peer: Peer) -> bool:
    current = peer.participant.current if peer.participant else None
    return current is not None and current.cohort is not None


def ping(swarm: Swarm, me: Peer, other: Peer, sid: bytes) -> list[tuple[PeerId, object]]:
    """What a peer answers to another's Ping."""
    assert me.participant is not None
    frame = encode(seal(other.identity, swarm.params.run, me.participant.round, Ping(1, sid)))
    answers = [action for action in me.participant.receive(other.id, frame) if isinstance(action, Send)]
    return [(answer.to, answer.message.message()) for answer in answers]  # type: ignore[attr-defined]


def test_who_has_no_part_in_an_attempt_knocks_when_it_is_asked(swarm):
    me, other = (swarm.peers[peer] for peer in swarm.order[:2])
    assert ping(swarm, me, other, bytes(32)) == []
    assert ping(swarm, me, other, me.participant.current.cohort.sid) == []
    ((to, knock),) = ping(swarm, me, other, b"?" * 32)
    assert to == other.id
    assert isinstance(knock, Knock) and knock.nonce == me.participant._nonce


def test_who_restarted_is_not_trusted_with_its_old_part_whatever_is_heard_of_it(swarm):
    me, other = (swarm.peers[peer] for peer in swarm.order[:2])
    attempt = me.participant.current.attempt
    index = attempt.cohort.peers.index(other.id)
    old = Knock(me.participant.round, me.participant.chain.beacon, other.participant._nonce)
    knock = lambda message: me.participant.receive(  # noqa: E731
        other.id, encode(seal(other.identity, swarm.params.run, me.participant.round, message))
    )
    knock(old)
    assert index not in attempt.cohort._suspects
    knock(Knock(old.known, old.head, b"n" * 32))
    assert index in attempt.cohort._suspects
    ping(swarm, me, other, bytes(32))  # it is heard again
    assert index in attempt.cohort._suspects


def test_an_old_suspicion_does_not_follow_a_peer_into_a_roster(swarm):
    """Its Join is newer than that somebody could not reach it."""
    me, other = (swarm.peers[peer] for peer in swarm.order[:2])
    me.participant._gone.add(other.id)
    number = me.participant.round + 1
    assert swarm.run(lambda: me.participant.round == number and in_a_cohort(me), 60)
    assert other.id in me.participant.current.cohort.peers
    assert not me.participant.current.cohort._suspects
