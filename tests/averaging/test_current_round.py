"""One round at one peer: shares that overtake the roster, one opening per round, and when a round is given up."""

from __future__ import annotations

import random

import pytest

from averaging.actions import SetTimer
from averaging.current_round import CurrentRound
from averaging.messages import Manifest, Shares
from averaging.record import void_record
from averaging.work import Train
from dht.envelope import seal
from tests.sim.swarm import Swarm


@pytest.fixture
def swarm() -> Swarm:
    swarm = Swarm(8, 7)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 60)
    return swarm


def next_round(swarm: Swarm, peer: int = 0) -> CurrentRound:
    """A second machine for a peer's next round: what it would be after a restart."""
    node = swarm.peers[swarm.order[peer]]
    assert node.participant is not None and node.participant.chain is not None
    source = random.Random(peer).randbytes
    return CurrentRound(swarm.params, node.identity, node.guard, source, node.participant.chain)


def timers(actions) -> list[str]:
    return [action.key[0] for action in actions if isinstance(action, SetTimer)]


def test_joining_trains_and_looks_for_a_roster_once(swarm):
    machine = next_round(swarm)
    actions = machine.join(set(), set())
    assert [action.round for action in actions if isinstance(action, Train)] == [machine.number]
    assert list(machine.join(set(), set())) == []
    assert not machine.engaged


def test_who_opened_the_round_before_a_restart_does_not_join_it_again_and_gives_it_up_in_time(swarm):
    machine = next_round(swarm)
    guard = swarm.peers[swarm.order[0]].guard
    guard.open_round(swarm.params.run, machine.number, b"s" * 32)
    actions = machine.join(set(), set())
    assert not any(isinstance(action, Train) for action in actions)
    assert timers(actions) == ["give-up"]
    assert machine.convening is None
    machine.timeout(("give-up", machine.number, 0))
    assert machine._attested.propose() == void_record(machine.head)


def test_shares_may_come_before_the_roster_and_other_mail_is_not_kept(swarm):
    machine = next_round(swarm)
    machine.join(set(), set())
    key = swarm.peers[swarm.order[1]].identity

    def send(message) -> None:
        envelope = seal(key, swarm.run_id, machine.number, message)
        assert machine.receive(key.peer_id, envelope, message, b"") == []

    for k in range(10):
        send(Shares(bytes([k]) * 32, bytes(96), (bytes(32),) * 24))
        send(Manifest(bytes([k]) * 32, 1, ()))
    (kept,) = machine._early.values()
    assert [message.sid[0] for message, _ in kept] == [6, 7, 8, 9]


def test_early_shares_are_used(swarm):
    """All shares for one peer arrive before its roster: it is in the round all the same."""
    late = swarm.order[2]
    overtaken: list[object] = []
    delay = swarm.delay
    held = {"now": False}

    def on_event(name, peer) -> None:
        held["now"] = name == "Seating"
        if name == "Shares":
            overtaken.append(name)

    swarm.on_event = on_event
    swarm.delay = lambda a, b: 0.9 if b == late and held["now"] else delay(a, b)
    round_ = swarm.height() + 1
    assert swarm.run(lambda: swarm.reached(round_ + 1), 60)
    records = [next(iter(swarm.records[r].values())) for r in (round_, round_ + 1)]
    assert overtaken
    assert all(late in record.members() for record in records if not record.void)
    assert not any(record.void for record in records)
    swarm.check()


def test_an_attempt_that_fails_leads_to_the_next_one_without_its_laggards(swarm):
    attempts: list[int] = []

    def on_event(name, peer) -> None:
        if name == "Seating":
            attempts.append(peer.participant.current.convening.attempt)

    swarm.on_event = on_event
    # Nobody's shares reach member 4 from member 5: no attempt with both in it gets past its first step.
    first, second = swarm.order[4], swarm.order[5]
    swarm.tamper = lambda a, b, frame: (
        None if (a, b) == (first, second) and frame[0] == 1 and b"sealed" in frame else frame
    )
    round_ = swarm.height() + 1
    assert swarm.run(lambda: swarm.reached(round_, set(swarm.order)), 200)
    (record,) = swarm.records[round_].values()
    assert max(attempts) > 0
    assert not record.void and not {first, second} <= set(record.members()), "the laggards were not left out"
    swarm.check()


def test_an_old_knock_is_no_restart(swarm):
    """It may come late, over a link that took long to open; a process that started anew has another nonce."""
    me, other = (swarm.peers[peer] for peer in swarm.order[:2])
    assert swarm.run(lambda: me.participant.current.cohort is not None, 30)
    nonce = other.participant._nonce
    assert me.participant.current.lost_its_part(other.id, bytes(32))
    assert not me.participant.current.lost_its_part(other.id, nonce)
    swarm.crash(other.id)
    swarm._boot(other)
    assert other.participant._nonce != nonce
