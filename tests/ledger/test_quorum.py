"""One epoch at one attestor, event by event."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.actions import Note, Send, SetTimer
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity
from dht.wire import digest
from ledger.electorate import Electorate
from ledger.evidence import SignedCheckpoint
from ledger.messages import Attestations, CheckpointStatus
from ledger.quorum import TAKE_OVER, EpochQuorum, check_place
from ledger.signatures import key_address, recover, sign
from tests.ledger.attestor_net import Net
from tests.ledger.headers import DOMAIN, header
from tests.strategies import messages

KEYS = [Identity(digest("quorum", bytes([k]))) for k in range(4)]
PEERS = [key.peer_id for key in KEYS]
ELECTORATE = Electorate(tuple(map(key_address, PEERS)), (1, 1, 1, 1))
HEADER, OTHER = header(), header(root=b"x" * 32)


@pytest.fixture
def machine(guard):
    directory = dict(zip(ELECTORATE.addresses, PEERS, strict=True))
    return EpochQuorum(KEYS[0], DOMAIN, ELECTORATE, (0, 1), guard, directory)


def status(head=HEADER, heard=0, have=0):
    return CheckpointStatus(head.fork_nonce, head.epoch, head.hash(), heard, have)


def signed(index, head=HEADER):
    return SignedCheckpoint(head, sign(KEYS[index], head.digest(DOMAIN)))


def sent(actions, kind):
    sends = [action for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]
    return [(PEERS.index(send.to), send.message) for send in sends]


def test_it_signs_once_more_than_two_thirds_say_the_same(machine, guard):
    assert sent(machine.adopt(HEADER), CheckpointStatus) == [(k, status(heard=1)) for k in (1, 2, 3)]
    assert machine.signed is None and guard.promised(DOMAIN, HEADER.run, 0, 1) is None
    assert not sent(machine.status(PEERS[1], 1, status()), Attestations)
    assert not sent(machine.status(PEERS[2], 2, status(OTHER)), Attestations)
    assert not sent(machine.status(PEERS[1], 1, status(OTHER)), Attestations)  # it changed its mind
    assert not sent(machine.status(PEERS[2], 2, status()), Attestations)
    ((_, mine), *rest) = sent(machine.status(PEERS[3], 3, status()), Attestations)
    assert len(rest) == 2
    assert recover(HEADER.digest(DOMAIN), mine.signatures[0]) == ELECTORATE.addresses[0]
    assert guard.promised(DOMAIN, HEADER.run, 0, 1) == HEADER


def test_a_signature_says_as_much_as_a_status(machine):
    machine.adopt(HEADER)
    machine.collect(1, signed(1))
    assert machine.signed is None
    machine.collect(2, signed(2))
    assert machine.signed == signed(0)


def test_a_status_is_answered_with_what_it_lacks(machine):
    machine.adopt(HEADER)
    for index in (1, 2):
        machine.collect(index, signed(index))
    answers = machine.status(PEERS[3], 3, status(heard=0b1111, have=0b0010))
    ((to, attestations),) = sent(answers, Attestations)
    assert to == 3 and [recover(HEADER.digest(DOMAIN), each) for each in attestations.signatures] == [
        ELECTORATE.addresses[index] for index in (0, 2)
    ]
    assert not sent(answers, CheckpointStatus)
    assert sent(machine.status(PEERS[3], 3, status(heard=0b1110, have=0b0111)), CheckpointStatus)  # has not heard me
    assert sent(machine.status(PEERS[3], 3, status(heard=0b1111, have=0b1111)), CheckpointStatus)  # has more than me
    assert machine.status(PEERS[3], 3, status(heard=0b1111, have=0b0111)) == []


def test_two_whose_signatures_get_lost_fall_silent_until_they_ask_again(machine, guard):
    directory = dict(zip(ELECTORATE.addresses, PEERS, strict=True))
    other = EpochQuorum(KEYS[1], DOMAIN, ELECTORATE, (0, 1), guard, directory)
    pair = (machine, other)
    for index, each in enumerate(pair):
        each.adopt(HEADER)
        each.collect(2 + index, signed(2 + index))

    def talk(actions):
        said, turn_ = 0, 1  # what the first one says is heard by the second
        while replies := [message for to, message in sent(actions, CheckpointStatus) if to == turn_]:
            said += len(replies)
            assert said < 20, "they talk without end"
            actions = [reply for each in replies for reply in pair[turn_].status(PEERS[1 - turn_], 1 - turn_, each)]
            turn_ = 1 - turn_
        return said

    assert talk(machine.timeout(("checkpoint ask", 1, 0))) > 2
    other.timeout(("checkpoint ask", 1, 0))
    assert talk(machine.timeout(("checkpoint ask", 1, 0))) > 1


def test_a_header_that_differs_is_passed_on_once(machine):
    assert machine.collect(2, signed(2, OTHER)) == []  # I know none of my own yet
    actions = machine.adopt(HEADER)
    passed = sent(actions, Attestations)
    assert passed == [(k, Attestations(OTHER.encode(), (signed(2, OTHER).signature,))) for k in (1, 2, 3)]
    assert any(isinstance(action, Note) and action.peer == PEERS[2] for action in actions)
    assert not sent(machine.collect(1, signed(1)), Attestations)
    assert len(sent(machine.collect(3, signed(3, OTHER)), Attestations)) == 3


def turn(actions):
    (timer,) = [each for each in actions if isinstance(each, SetTimer) and each.key[0] == "checkpoint turn"]
    return timer


def test_its_turn_comes_with_its_place_in_the_order(machine):
    machine.adopt(HEADER)
    machine.collect(1, signed(1))
    timer = turn(machine.collect(2, signed(2)))
    place = ELECTORATE.leaders(HEADER).index(ELECTORATE.addresses[0])
    assert timer.delay == TAKE_OVER * place
    submit, again = machine.timeout(timer.key)
    assert submit.intent.header == HEADER and submit.intent.bitmap == 0b111
    assert submit.intent.signatures() == {k: signed(k).signature for k in range(3)}
    assert again == SetTimer(timer.key, 4 * TAKE_OVER)
    machine.withdraw()
    assert machine.timeout(timer.key) == []


def test_a_quorum_for_another_header_is_not_submitted(machine):
    machine.adopt(HEADER)
    for index in (1, 2):
        machine.collect(index, signed(index, OTHER))
    actions = machine.collect(3, signed(3, OTHER))
    assert any(isinstance(each, Note) and "a quorum signed another" in each.text for each in actions)
    assert not any(isinstance(each, SetTimer) for each in actions)
    assert machine.signed is None


def test_a_restart_signs_at_once_what_was_promised(machine, guard):
    guard.promise(DOMAIN, HEADER)
    assert len(sent(machine.adopt(HEADER), Attestations)) == 3


def test_a_place_that_is_spent_is_left_alone(machine, guard):
    guard.promise(DOMAIN, OTHER)
    actions = machine.adopt(HEADER)
    for index in (1, 2, 3):
        actions += machine.status(PEERS[index], index, status())
    actions += machine.timeout(("checkpoint ask", 1, 0))
    shown = {message for _, message in sent(actions, Attestations)}
    assert shown == {Attestations(OTHER.encode(), (signed(0, OTHER).signature,))}  # so that others know why
    again = [sent(machine.timeout(("checkpoint ask", 1, 0)), Attestations) for _ in range(2)]
    assert {message for each in again for _, message in each} == shown
    assert [len(each) for each in again] == [2, 2] and {to for each in again for to, _ in each} == {1, 2, 3}
    assert not sent(actions, CheckpointStatus)
    actions = [action for index in (1, 2, 3) for action in machine.collect(index, signed(index))]
    assert turn(actions)  # it may still submit what the others signed


@pytest.mark.parametrize(
    ("place", "refusal"), [((0, 0), Refusal.STALE), ((0, 2), Refusal.UNEXPECTED), ((1, 1), Refusal.UNEXPECTED)]
)
def test_statuses_of_other_places_are_refused(machine, place, refusal):
    check_place(status(), machine)
    with pytest.raises(ProtocolError) as refused:
        check_place(replace(status(), fork_nonce=place[0], epoch=place[1]), machine)
    assert refused.value.refusal is refusal


NET = Net(3)
NET.run(34)  # epoch 1 is being signed
STATUSES = messages(CheckpointStatus)
GOOD = NET.nodes[0].attestor.current.own
ROOTS = st.sampled_from((b"1" * 32, b"2" * 32))
HEADERS = st.builds(replace, st.just(GOOD), epoch=st.integers(0, 3), fork_nonce=st.integers(0, 2), model_root=ROOTS)
SIGNED = st.builds(
    lambda head, keys: Attestations(head.encode(), tuple(sign(key, head.digest(DOMAIN)) for key in keys)),
    HEADERS,
    st.lists(st.sampled_from(KEYS[:1] + NET.identities), min_size=1, max_size=4),
)

HERE = st.builds(replace, STATUSES, fork_nonce=st.just(0), epoch=st.just(1))


@given(STATUSES | HERE | messages(Attestations) | SIGNED)
def test_whatever_an_attestor_says_is_taken_or_refused_by_number(message):
    node, sender = NET.nodes[0], NET.nodes[1]
    with suppress(ProtocolError):  # any other error is a bug
        node.attestor.receive(sender.peer, message)
    assert node.attestor.current.own == GOOD
