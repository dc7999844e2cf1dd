"""Mail that came early: kept for its round, bounded per sender and in senders."""

from __future__ import annotations

import pytest

from averaging import mailbox
from averaging.mailbox import Mailbox
from dht.envelope import Envelope
from tests.averaging.cohort_net import RUN, identity

ALICE, BOB = identity(1).peer_id, identity(2).peer_id


def letter(round_: int, sender=ALICE, text: bytes = b"hi") -> Envelope:
    return Envelope(RUN, round_, bytes(sender), text, bytes(64))


def test_letters_come_out_in_their_round_and_in_order():
    box = Mailbox()
    assert box.keep(ALICE, letter(6), b"1", 5)
    assert box.keep(BOB, letter(5, BOB), b"2", 5)
    assert box.keep(ALICE, letter(6, text=b"ho"), b"3", 5)
    assert [frame for *_, frame in box.take(5)] == [b"2"]
    assert [frame for *_, frame in box.take(6)] == [b"1", b"3"]
    assert box.take(6) == []


@pytest.mark.parametrize("round_", [4, 8])
def test_what_is_past_or_too_far_ahead_is_not_kept(round_):
    box = Mailbox()
    assert not box.keep(ALICE, letter(round_), b"1", 5)
    assert box.take(round_) == []


def test_a_flood_of_one_sender_leaves_room_for_the_others():
    box = Mailbox()
    kept = [box.keep(ALICE, letter(5), b"x", 5) for _ in range(1000)]
    assert sum(kept) == mailbox._PER_SENDER
    assert box.keep(BOB, letter(5, BOB), b"y", 5)


def test_bytes_are_bounded_per_sender():
    box = Mailbox()
    half = bytes(mailbox._BYTES_PER_SENDER // 2)
    assert [box.keep(ALICE, letter(5), half, 5) for _ in range(3)] == [True, True, False]


def test_senders_are_bounded():
    box = Mailbox()
    kept = [box.keep(identity(i).peer_id, letter(5), b"x", 5) for i in range(mailbox._SENDERS + 5)]
    assert sum(kept) == mailbox._SENDERS


def test_taking_a_round_gives_its_room_back_and_drops_older_ones():
    box = Mailbox()
    for _ in range(mailbox._PER_SENDER):
        assert box.keep(ALICE, letter(5), b"x", 5)
    assert not box.keep(ALICE, letter(7), b"x", 5)
    box.take(6)
    assert box.take(5) == []
    assert box.keep(ALICE, letter(7), b"x", 6)


def test_strangers_do_not_crowd_out_the_committee():
    box = Mailbox()
    kept = [box.keep(peer, letter(5, peer), b"x", 5) for peer in (identity(100 + k).peer_id for k in range(200))]
    assert sum(kept) == mailbox._SENDERS
    assert not box.keep(ALICE, letter(5), b"x", 5)
    assert box.keep(ALICE, letter(5), b"x", 5, trusted=True)
