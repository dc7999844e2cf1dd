"""Wishes and signatures for rollbacks at one attestor, event by event; and when a rollback is fulfilled."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.actions import CancelTimer, Note, Send, SetTimer
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity
from dht.wire import decode, digest, encode
from ledger.chain_view import Head, RollBack
from ledger.checkpoint import NOTHING, Rollback
from ledger.electorate import Electorate
from ledger.messages import RollbackSignatures, RollbackStatus
from ledger.quorum import ASK_EVERY, TAKE_OVER, Submit
from ledger.rollbacks import FRESH, PATIENCE, RollbackQuorum
from ledger.signatures import key_address, pack, recover, sign
from tests.ledger.attestor_net import Net
from tests.ledger.headers import DOMAIN, RUN, header
from tests.strategies import messages

KEYS = [Identity(digest("rollbacks", bytes([k]))) for k in range(4)]
PEERS = [key.peer_id for key in KEYS]
ELECTORATE = Electorate(tuple(map(key_address, PEERS)), (1, 1, 1, 1))
PATIENCE_KEY, ASK, TURN = ((f"rollback {what}", 0, 0) for what in ("patience", "ask", "turn"))


def hub(last: int = 5, active: int = 2, fork_nonce: int = 0, root: bytes = b"m" * 32) -> Head:
    """A hub with so many checkpoints; each one's parent is not right, which nothing here reads."""
    standing = [header(epoch, fork_nonce, root) for epoch in range(max(1, active), last + 1)]
    return Head(standing[-1], fork_nonce, active, ELECTORATE, (0,) * (last + 1), tuple(standing[:-1]))


HUB = hub()


@pytest.fixture
def machine(guard):
    directory = dict(zip(ELECTORATE.addresses, PEERS, strict=True))
    return RollbackQuorum(KEYS[0], DOMAIN, RUN, HUB, guard, directory)


def declared(machine, epoch):
    """The attestor wants this, and has waited."""
    assert machine.wish(HUB, epoch) == [SetTimer(PATIENCE_KEY, PATIENCE)]
    return machine.timeout(PATIENCE_KEY)


def says(machine, who, epoch, chosen=0, have=0):
    return machine.status(PEERS[who], who, RollbackStatus(0, epoch, chosen, have))


def signatures(epoch, *who):
    rollback = Rollback(RUN, 0, epoch).digest(DOMAIN)
    return RollbackSignatures(0, epoch, tuple(sign(KEYS[each], rollback) for each in who))


def sent(actions, kind):
    sends = [action for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]
    return [(PEERS.index(send.to), send.message) for send in sends]


def test_nothing_is_said_before_the_wish_has_lasted(machine, guard):
    assert machine.wish(HUB, 4) == [SetTimer(PATIENCE_KEY, PATIENCE)]
    assert machine.wish(HUB, 4) == []  # it goes on lasting
    assert says(machine, 1, 4) == says(machine, 2, 4) == says(machine, 3, 4) == []
    assert machine.signatures(signatures(4, 1, 2, 3)) == []
    assert guard.rollbacks(DOMAIN, RUN, 0) == set()
    gone = machine.wish(HUB, None)
    assert CancelTimer(PATIENCE_KEY) in gone and machine.timeout(PATIENCE_KEY) == []
    assert machine.wish(HUB, 3) == [SetTimer(PATIENCE_KEY, PATIENCE)]
    assert SetTimer(PATIENCE_KEY, PATIENCE) in machine.wish(HUB, 4)  # another wish waits anew


@pytest.mark.parametrize(("tried", "waits"), [(0, 1), (1, 2), (3, 8), (6, 64), (40, 64)])
def test_new_places_that_do_not_help_come_ever_more_rarely(guard, tried, waits):
    key = ("rollback patience", tried, 0)
    head = replace(HUB, fork_nonce=tried)  # its last checkpoint has fork nonce 0
    machine = RollbackQuorum(KEYS[0], DOMAIN, RUN, head, guard, {})
    assert machine.wish(head, 6) == [SetTimer(key, waits * PATIENCE)]
    assert SetTimer(key, PATIENCE) in machine.wish(head, 5)  # what stands on the hub waits for nothing


def test_it_is_signed_once_more_than_two_thirds_want_it(machine, guard):
    status = RollbackStatus(0, 4, 0, 0)
    assert sent(declared(machine, 4), RollbackStatus) == [(k, status) for k in (1, 2, 3)]
    assert says(machine, 1, 4) == []
    ((to, mine), *rest) = sent(says(machine, 2, 4), RollbackSignatures)
    assert guard.rollbacks(DOMAIN, RUN, 0) == {4}
    assert to == 1 and len(rest) == 3 and mine.epoch == 4  # to all, and in answer
    assert recover(Rollback(RUN, 0, 4).digest(DOMAIN), mine.signatures[0]) == ELECTORATE.addresses[0]


def test_who_wants_nothing_signs_and_submits_nothing(machine, guard):
    machine.wish(HUB, None)
    for who in (1, 2, 3):
        assert says(machine, who, 3) == [] and machine.signatures(signatures(3, who)) == []
    for key in (PATIENCE_KEY, ASK, TURN):
        assert machine.timeout(key) == []
    assert guard.rollbacks(DOMAIN, RUN, 0) == set()


@pytest.mark.parametrize(
    ("mine", "others", "signed"),
    [
        (4, (4, 4, 4), 4),
        (5, (5, 4, 3), 4),  # the latest that three of four include
        (5, (3, 3, 3), 3),
        (5, (5, 3, 0), None),  # one alone could be a liar that would take along what is good
        (5, (3, 3, 0), 3),
        (5, (5, 5, 3), 5),  # the others' wish for more is their own
        (3, (5, 5, 5), None),  # theirs does not serve mine, and they need me not
        (6, (6, 6, 0), 6),  # the epoch after the head: only the nonce moves
    ],
)
def test_wishes_meet_in_the_latest_epoch_that_serves_enough(machine, guard, mine, others, signed):
    declared(machine, mine)
    for who, epoch in enumerate(others, 1):
        if epoch:
            says(machine, who, epoch)
    final = machine._chosen()
    assert final == signed
    promised = guard.rollbacks(DOMAIN, RUN, 0)
    assert (final in promised) == (signed is not None)
    assert max(promised, default=0) <= mine  # never one that does not serve me


def test_what_is_not_said_again_is_forgotten(machine, guard):
    declared(machine, 4)
    says(machine, 1, 4)
    for _ in range(FRESH):
        actions = machine.timeout(ASK)
        assert len(sent(actions, RollbackStatus)) == 3 and SetTimer(ASK, ASK_EVERY) in actions
    assert machine._consenting(4) == {0, 1}
    machine.timeout(ASK)
    assert machine._consenting(4) == {0}
    assert not sent(says(machine, 2, 4), RollbackSignatures)
    assert sent(says(machine, 1, 4), RollbackSignatures)


def test_a_status_is_answered_with_what_it_lacks(machine):
    declared(machine, 4)
    assert machine._complete() is None
    machine.signatures(signatures(4, 1, 2))
    assert machine._complete() == 4  # with mine
    ((to, answer),) = sent(says(machine, 3, 4, chosen=4, have=0b0010), RollbackSignatures)
    signers = [recover(Rollback(RUN, 0, 4).digest(DOMAIN), each) for each in answer.signatures]
    assert to == 3 and signers == [ELECTORATE.addresses[0], ELECTORATE.addresses[2]]
    ((_, answer),) = sent(says(machine, 3, 4, chosen=5, have=0b0111), RollbackSignatures)
    assert len(answer.signatures) == 3  # what it has is of another epoch
    assert not sent(says(machine, 3, 4, chosen=4, have=0b0111), RollbackSignatures)
    assert not sent(machine.timeout(ASK), RollbackStatus)  # nothing to ask for


def test_its_turn_comes_with_its_place_in_the_order(machine):
    declared(machine, 4)
    actions = machine.signatures(signatures(4, 1, 2))
    (timer,) = [each for each in actions if isinstance(each, SetTimer)]
    assert timer == SetTimer(
        TURN, TAKE_OVER * ELECTORATE.rollback_leaders(Rollback(RUN, 0, 4)).index(key_address(PEERS[0]))
    )
    submit, again = machine.timeout(TURN)
    assert isinstance(submit, Submit) and again == SetTimer(TURN, 4 * TAKE_OVER)
    intent = submit.intent
    assert intent.abi()[:2] == (4, 0b0111) and intent.removes == header(4).hash()
    assert set(intent.signatures()) == {0, 1, 2}
    other = hub(root=b"x" * 32)  # another checkpoint came to stand there, which is not mine either
    assert SetTimer(TURN, timer.delay) in machine.wish(other, 4)
    assert machine.timeout(TURN)[0].intent.removes == header(4, root=b"x" * 32).hash()
    machine.wish(HUB, None)
    assert machine.timeout(TURN) == []


def test_a_restart_says_at_once_what_was_promised(machine, guard):
    guard.promise_rollback(DOMAIN, Rollback(RUN, 0, 4))
    assert len(sent(machine.wish(HUB, 4), RollbackStatus)) == 3 and machine.declared


def test_a_full_disk_gives_no_signature(machine, guard):
    declared(machine, 4)
    guard._db.execute("PRAGMA query_only = 1")
    actions = machine.signatures(signatures(4, 1, 2))
    assert any(isinstance(each, Note) and "MUR-500" in each.text for each in actions)
    assert 0 not in machine._signers(4) and not sent(actions, RollbackSignatures)
    guard._db.execute("PRAGMA query_only = 0")
    assert sent(machine.wish(HUB, 4), RollbackSignatures)


@pytest.mark.parametrize(
    ("fork_nonce", "epoch", "refusal"),
    [
        (0, 2, Refusal.STALE),  # active
        (0, 0, Refusal.STALE),
        (0, 7, Refusal.UNEXPECTED),
        (1, 4, Refusal.UNEXPECTED),
    ],
)
def test_other_places_are_refused(machine, fork_nonce, epoch, refusal):
    for take in (
        lambda: machine.status(PEERS[1], 1, RollbackStatus(fork_nonce, epoch, 0, 0)),
        lambda: machine.signatures(replace(signatures(4, 1), fork_nonce=fork_nonce, epoch=epoch)),
    ):
        with pytest.raises(ProtocolError) as refused:
            take()
        assert refused.value.refusal is refusal


def test_an_older_nonce_is_stale(guard):
    machine = RollbackQuorum(KEYS[0], DOMAIN, RUN, hub(fork_nonce=1), guard, {})
    with pytest.raises(ProtocolError) as refused:
        machine.signatures(signatures(4, 1))
    assert refused.value.refusal is Refusal.STALE


def test_signatures_of_strangers_and_of_nobody_are_refused(machine):
    stranger = sign(Identity(digest("stranger")), Rollback(RUN, 0, 4).digest(DOMAIN))
    for bad, refusal in ((bytes(64), Refusal.BAD_SIGNATURE), (stranger, Refusal.NOT_A_MEMBER)):
        message = signatures(4, 1)
        with pytest.raises(ProtocolError) as refused:
            machine.signatures(replace(message, signatures=(*message.signatures, bad)))
        assert refused.value.refusal is refusal
    assert machine._signers(4) == {}


def test_what_became_active_is_no_longer_kept(machine):
    machine.signatures(signatures(3, 1))
    machine.signatures(signatures(4, 1))
    machine.wish(hub(active=3), None)
    assert machine._signers(3) == {} and machine._signers(4).keys() == {1}


def test_a_rollback_is_fulfilled_once_it_can_do_no_good():
    def intent(epoch, removes):
        rollback = Rollback(RUN, 0, epoch)
        return RollBack(rollback, *pack({0: sign(KEYS[0], rollback.digest(DOMAIN))}), removes)

    removal, fresh = intent(4, header(4).hash()), intent(6, NOTHING)
    assert not removal.fulfilled(HUB) and not fresh.fulfilled(HUB)
    assert removal.fulfilled(hub(fork_nonce=1)) and fresh.fulfilled(hub(fork_nonce=1))
    assert removal.fulfilled(hub(active=4)) and not removal.fulfilled(hub(active=3))
    assert removal.fulfilled(hub(root=b"x" * 32))  # another checkpoint than the one that should go
    assert removal.fulfilled(hub(last=3))  # a reorganisation took it
    assert fresh.fulfilled(hub(last=6))  # the epoch got its checkpoint after all
    assert removal.key != fresh.key and removal.about == "the rollback of epoch 4"


NET = Net(3)
NET.run(34)
WILD = st.one_of(messages(RollbackStatus), messages(RollbackSignatures))
NEAR = st.builds(RollbackStatus, st.integers(0, 1), st.integers(0, 3), st.integers(0, 3), st.integers(0, 15))
OTHERS = [node.peer for node in NET.nodes[1:]]


@given(st.lists(st.tuples(st.sampled_from(OTHERS), st.one_of(WILD, NEAR)), max_size=10))
def test_whatever_comes_is_refused_or_leads_to_no_rollback(events):
    attestor = NET.nodes[0].attestor
    for sender, message in events:
        with suppress(ProtocolError):
            actions = attestor.receive(sender, decode(encode(message)))
            assert not sent(actions, RollbackSignatures)
            assert not any(isinstance(action, Submit) for action in actions)
    assert NET.nodes[0].guard.rollbacks(DOMAIN, RUN, 0) == set()
