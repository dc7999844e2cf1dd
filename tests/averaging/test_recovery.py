"""Recoveries: who may go on without whom, what is no link, and how the members of a committee come to one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from averaging.actions import Send, SetTimer
from averaging.ballots import PRECOMMIT, Ballot, Certificate, Decision
from averaging.certificate import faulty, quorum
from averaging.chain import Chain
from averaging.record import Record, found, void_record
from averaging.recovery import BEATS, Present, Recover, Recovery, fewest, recovery_record
from averaging.survivors import bitmap
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import encode
from tests.averaging.test_chain import FOUNDER, FOUNDING, KEYS, PEERS, RUN, certify

COMMITTEE = PEERS[:4]
AFTER = 100.0


@pytest.fixture
def chain() -> Chain:
    return Chain(RUN, FOUNDER, FOUNDING)


def recovered(chain: Chain, members: tuple[PeerId, ...], **change: object) -> tuple[Record, Certificate]:
    """A recovery after the chain's head as its members would sign it."""
    committee = chain.committee()
    record = replace(recovery_record(chain.head, members), **change)
    chosen = tuple(sorted(committee.index(peer) for peer in members if peer in committee))
    frame = Recover(record.round, chain.head.hash(), bitmap(chosen))
    signatures = tuple(seal(KEYS[committee[i]], RUN, record.round, frame).signature for i in chosen)
    return record, Certificate(record.round, 0, record.hash(), chosen, signatures)


@pytest.mark.parametrize("n", range(2, 65))
def test_no_quorum_of_a_half_consists_of_liars_alone(n: int):
    assert quorum(fewest(n)) > faulty(n)
    assert fewest(n) < quorum(n)
    assert 2 * fewest(n) >= n


def test_a_recovery_is_a_link_and_its_members_the_committee(chain: Chain):
    before = chain.head
    chain.append(*recovered(chain, PEERS[1:3]))
    assert chain.head.recovery and chain.head.void
    assert (chain.head.state_root, chain.head.tally_root) == (before.state_root, before.tally_root)
    assert chain.committee() == PEERS[1:3]
    assert chain.recoveries == [(1, (PEERS[0], PEERS[3]))]
    assert not chain.tally.shares
    record = void_record(chain.head)
    chain.append(record, certify(record, PEERS[1:3]))
    assert chain.committee() == PEERS[1:3]  # void rounds keep the recovered committee
    assert not record.recovery


def test_a_forged_recovery_is_no_link(chain: Chain):
    good, certificate = recovered(chain, PEERS[1:3])
    ballot = Ballot(good.round, 0, PRECOMMIT, good.hash())
    votes = tuple(seal(KEYS[COMMITTEE[i]], RUN, good.round, ballot).signature for i in (1, 2))
    other = recovered(chain, PEERS[:2])[1]
    forged: list[tuple[tuple[Record, Certificate], Refusal]] = [
        (recovered(chain, PEERS[1:2]), Refusal.OUT_OF_BOUNDS),  # fewer than half
        (recovered(chain, PEERS[:3]), Refusal.OUT_OF_BOUNDS),  # a quorum needs none
        (recovered(chain, (PEERS[0], PEERS[5])), Refusal.NOT_A_MEMBER),
        (recovered(chain, PEERS[1:3], parent=bytes(32)), Refusal.BAD_HASH),
        (recovered(chain, PEERS[1:3], state_root=bytes(32)), Refusal.BAD_HASH),
        (recovered(chain, PEERS[1:3], run=bytes(32)), Refusal.WRONG_RUN),
        (recovered(chain, PEERS[1:3], round=2), Refusal.STALE),
        ((good, replace(certificate, signers=(1,), signatures=certificate.signatures[:1])), Refusal.BAD_CERTIFICATE),
        ((good, replace(certificate, signatures=certificate.signatures[::-1])), Refusal.BAD_CERTIFICATE),
        ((good, replace(certificate, signatures=votes)), Refusal.BAD_CERTIFICATE),  # ballots are no recovery
        ((good, replace(certificate, view=1)), Refusal.BAD_CERTIFICATE),
        ((good, other), Refusal.BAD_CERTIFICATE),
    ]
    rows = tuple(replace(survivor, tokens=10**9) for survivor in good.survivors)
    forged.append(((replace(good, survivors=rows), certificate), Refusal.BAD_HASH))  # tokens nobody trained on
    for link, refusal in forged:
        with pytest.raises(ProtocolError) as caught:
            chain.append(*link)
        assert caught.value.refusal is refusal
        assert chain.head.round == 0 and not chain.recoveries
    chain.append(good, certificate)


# --- coming to one --------------------------------------------------------------------------------------------------


class Table:
    """The committee's recoveries of round 1, beat by beat; `linked` says who hears whom."""

    def __init__(self, chain: Chain, members: int = 4) -> None:
        self.chain = chain
        self.peers = chain.committee()
        assert len(self.peers) == members
        self.machines = {p: Recovery(RUN, KEYS[p], chain.head, self.peers, AFTER) for p in self.peers}
        self.linked = lambda a, b: True
        self.sent: list[tuple[PeerId, object]] = []
        self.refused: list[Refusal] = []

    def beat(self, count: int = 1) -> None:
        for _ in range(count):
            for peer in self.peers:
                self.deliver(peer, self.machines[peer].timeout(("recover", 1, 0)))

    def deliver(self, sender: PeerId, actions: list) -> None:
        for action in actions:
            if isinstance(action, Send) and self.linked(sender, action.to):
                assert isinstance(action.message, Envelope)
                body = action.message.message()
                self.sent.append((sender, body))
                try:
                    self.deliver(action.to, self.machines[action.to].receive(sender, action.message, body))
                except ProtocolError as error:
                    self.refused.append(error.refusal)

    def outcomes(self) -> dict[PeerId, Record]:
        return {peer: machine.outcome[0] for peer, machine in self.machines.items() if machine.outcome}


def test_two_halves_recover_each_for_itself_and_not_a_beat_early(chain: Chain):
    table = Table(chain)
    left = set(COMMITTEE[:2])
    table.linked = lambda a, b: (a in left) == (b in left)
    table.beat(BEATS - 1)
    assert table.outcomes() == {}
    assert all(isinstance(body, Present) for _, body in table.sent)
    table.beat(5)
    for side in (COMMITTEE[:2], COMMITTEE[2:]):
        assert {table.outcomes()[peer].hash() for peer in side} == {recovery_record(chain.head, side).hash()}
        branch = Chain(RUN, FOUNDER, FOUNDING)
        branch.append(*table.machines[side[0]].outcome)
        assert branch.committee() == side


def test_while_a_quorum_is_heard_nobody_recovers(chain: Chain):
    table = Table(chain)
    table.linked = lambda a, b: COMMITTEE[3] not in (a, b)
    table.beat(4 * BEATS)
    assert table.outcomes() == {}
    assert not any(isinstance(body, Recover) for _, body in table.sent)


def test_an_outage_shorter_than_recovery_after_does_not_count(chain: Chain):
    table = Table(chain)
    table.beat(3)
    for _ in range(3):
        table.linked = lambda a, b: (a in COMMITTEE[:2]) == (b in COMMITTEE[:2])
        table.beat(BEATS - 2)
        table.linked = lambda a, b: True
        table.beat(1)
    assert table.outcomes() == {}
    assert not any(isinstance(body, Recover) for _, body in table.sent)


def test_fewer_than_half_wait(chain: Chain):
    table = Table(chain)
    table.linked = lambda a, b: a in COMMITTEE[:1] and b in COMMITTEE[:1]
    table.beat(3 * BEATS)
    assert table.outcomes() == {} and table.machines[COMMITTEE[0]].ready


def test_who_does_not_sign_is_left_out_of_the_next_proposal():
    founding = found(KEYS[FOUNDER], RUN, PEERS, b"s" * 32, b"n" * 32)
    table = Table(Chain(RUN, FOUNDER, founding), 6)
    mute, dead = PEERS[0], PEERS[4:]
    table.linked = lambda a, b: a not in dead and b not in dead
    table.machines[mute]._sign = lambda members: []  # type: ignore[method-assign]
    table.beat(BEATS + 12)
    expected = recovery_record(table.chain.head, PEERS[1:4])
    assert {peer: table.outcomes().get(peer) for peer in PEERS[1:4]} == dict.fromkeys(PEERS[1:4], expected)
    assert mute not in table.outcomes()
    assert any(isinstance(body, Recover) and body.members & 1 for _, body in table.sent), "it was asked"


def test_what_cannot_be_is_refused(chain: Chain):
    machine = Recovery(RUN, KEYS[COMMITTEE[0]], chain.head, COMMITTEE, AFTER)
    other, parent = COMMITTEE[1], chain.head.hash()
    cases = [
        (other, Recover(1, parent, 0b0010), Refusal.OUT_OF_BOUNDS),  # fewer than half, and not me
        (other, Recover(1, parent, 0b0111), Refusal.OUT_OF_BOUNDS),  # a quorum
        (other, Recover(1, parent, 0b1001), Refusal.OUT_OF_BOUNDS),  # without its signer
        (other, Recover(1, parent, 0b10001), Refusal.OUT_OF_BOUNDS),  # from outside
        (other, Recover(2, parent, 0b0011), Refusal.STALE),
        (PEERS[5], Recover(1, parent, 0b0011), Refusal.NOT_A_MEMBER),
        (PEERS[5], Present(1, parent), Refusal.NOT_A_MEMBER),
    ]
    for sender, body, refusal in cases:
        with pytest.raises(ProtocolError) as caught:
            machine.receive(sender, seal(KEYS[sender], RUN, 1, body), body)
        assert caught.value.refusal is refusal
    elsewhere = Recover(1, bytes(32), 0b0011)
    assert machine.receive(other, seal(KEYS[other], RUN, 1, elsewhere), elsewhere) == []
    for _ in range(BEATS):
        machine.timeout(("recover", 1, 0))
    assert machine.outcome is None and machine.ready  # what was said on another parent does not count as presence


def test_nobody_signs_before_its_own_silence_was_long_enough(chain: Chain):
    machine = Recovery(RUN, KEYS[COMMITTEE[0]], chain.head, COMMITTEE, AFTER)
    asks = Recover(1, chain.head.hash(), 0b0011)
    envelope = seal(KEYS[COMMITTEE[1]], RUN, 1, asks)
    assert machine.receive(COMMITTEE[1], envelope, asks) == []
    for _ in range(BEATS - 1):
        machine.timeout(("recover", 1, 0))
        assert machine.outcome is None
    said = machine.timeout(("recover", 1, 0))
    assert machine.outcome is not None
    assert [action.message.message() for action in said if isinstance(action, Send)][-1] == asks


def test_zero_means_never_and_an_observer_only_watches(chain: Chain):
    assert Recovery(RUN, KEYS[COMMITTEE[0]], chain.head, COMMITTEE, 0.0).begin() == []
    observer = Recovery(RUN, KEYS[PEERS[5]], chain.head, COMMITTEE, AFTER)
    assert observer.begin() == []
    member = Recovery(RUN, KEYS[COMMITTEE[0]], chain.head, COMMITTEE, AFTER)
    assert member.begin() == [SetTimer(("recover", 1, 0), AFTER / BEATS)]
    record, certificate = recovered(chain, PEERS[1:3])
    decision = Decision(encode(record), encode(certificate))
    foreign = replace(record, parent=bytes(32))
    observer.decided(replace(decision, record=encode(foreign)))
    assert observer.outcome is None
    with pytest.raises(ProtocolError):
        observer.decided(replace(decision, certificate=encode(replace(certificate, signatures=(bytes(64),) * 2))))
    observer.decided(decision)
    assert observer.outcome == (record, certificate)
