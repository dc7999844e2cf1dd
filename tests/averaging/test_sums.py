"""Step R5: sums are bound by hashes signed before, and count only from who owes them."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from averaging.layout import Layout
from averaging.messages import SumHashes
from averaging.reducing import Duties
from averaging.sums import Sums
from dht import merkle
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal
from dht.wire import encode
from tests.averaging.cohort_net import RUN, identity

LAYOUT = Layout(4 * 4096, 8, 4096)
DUTIES = Duties(LAYOUT.reducers(4), 4, 1)  # chunks 0, 1, 2 and (3, 4) belong to members 0, 1, 2 and 3
SID = bytes(32)


def data(chunk: int, fill: int = 7) -> bytes:
    return bytes([fill]) * LAYOUT.chunk_bytes(chunk)


def hashes(chunks, fill: int = 7) -> SumHashes:
    return SumHashes(SID, tuple(chunks), tuple(sha256(data(c, fill)).digest() for c in chunks))


def frame(author: int, message: SumHashes) -> bytes:
    return encode(seal(identity(author), RUN, 1, message))


def signed(sums: Sums, author: int, chunks=None, fill: int = 7) -> None:
    message = hashes(DUTIES.of(author) if chunks is None else chunks, fill)
    sums.add_hashes(author, message, frame(author, message))


def due(author: int, chunk: int) -> bool:
    return DUTIES.reducers[chunk] == author


def refusal(call) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.refusal


def test_a_sum_must_be_what_its_author_signed():
    sums = Sums(LAYOUT, DUTIES, due)
    signed(sums, 1)
    assert refusal(lambda: sums.add(1, 1, data(1, 8), from_author=True)) is Refusal.BAD_HASH
    assert 1 in sums.missing
    sums.add(1, 1, data(1), from_author=True)
    assert 1 not in sums.missing
    assert set(sums.ring(1)) == {7}


def test_hash_and_sum_may_come_in_any_order():
    sums = Sums(LAYOUT, DUTIES, due)
    sums.add(1, 1, data(1), from_author=True)
    assert 1 in sums.missing
    signed(sums, 1)
    sums.settle()
    assert 1 not in sums.missing


def test_an_early_sum_that_was_not_signed_is_dropped():
    sums = Sums(LAYOUT, DUTIES, due)
    sums.add(1, 1, data(1, 8), from_author=True)
    signed(sums, 1)
    sums.settle()
    assert 1 in sums.missing
    sums.add(1, 1, data(1), from_author=True)
    assert 1 not in sums.missing


def test_a_sum_from_who_does_not_owe_it_waits_until_it_counts():
    late: set[int] = set()
    sums = Sums(LAYOUT, DUTIES, lambda author, chunk: due(author, chunk) or chunk in late)
    signed(sums, 2, [1])
    sums.add(1, 2, data(1), from_author=True)
    sums.settle()
    assert 1 in sums.missing and not sums.all_signed
    late.add(1)
    sums.settle()
    assert sums.get(1)[0] == 2


def test_relayed_sums_are_taken_when_they_were_asked_for():
    sums = Sums(LAYOUT, DUTIES, due)
    assert refusal(lambda: sums.add(1, 1, data(1), from_author=False)) is Refusal.UNEXPECTED
    sums.asked = True
    sums.add(1, 1, data(1), from_author=False)
    sums.add(1, 1, data(1, 9), from_author=False)  # whoever relays second cannot push the first out
    signed(sums, 1)
    sums.settle()
    assert set(sums.ring(1)) == {7}


def test_early_sums_are_bounded():
    sums = Sums(LAYOUT, DUTIES, due)
    room = 2 * LAYOUT.total_chunks
    for k in range(room):
        sums.add(k % LAYOUT.total_chunks, 4 + k, data(k % LAYOUT.total_chunks), from_author=True)
    assert refusal(lambda: sums.add(1, 3, data(1), from_author=True)) is Refusal.UNEXPECTED
    sums.add(1, 1, data(1), from_author=True)  # room for the one that is due is always there


@pytest.mark.parametrize(
    "call",
    [
        lambda sums: sums.add(9, 1, data(1), from_author=True),
        lambda sums: sums.add(-1, 1, data(1), from_author=True),
        lambda sums: sums.add(1, 1, data(1)[:-1], from_author=True),
        lambda sums: sums.add_hashes(1, SumHashes(SID, (1,), ()), b""),
        lambda sums: sums.add_hashes(1, SumHashes(SID, (9,), (bytes(32),)), b""),
    ],
)
def test_out_of_bounds(call):
    assert refusal(lambda: call(Sums(LAYOUT, DUTIES, due))) is Refusal.OUT_OF_BOUNDS


def test_two_hashes_of_one_sum_are_equivocation():
    sums = Sums(LAYOUT, DUTIES, due)
    signed(sums, 1)
    signed(sums, 1)
    assert refusal(lambda: signed(sums, 1, fill=8)) is Refusal.EQUIVOCATION
    sums.add(1, 1, data(1), from_author=True)
    assert set(sums.ring(1)) == {7}


def test_signed_means_all_that_is_owed():
    sums = Sums(LAYOUT, DUTIES, due)
    signed(sums, 3, [3])
    assert not sums.signed_by(3)
    signed(sums, 3, [4])
    assert sums.signed_by(3)
    assert not sums.signed_by(0)
    for author in range(3):
        signed(sums, author)
    assert sums.all_signed


def test_who_has_no_sum_to_make_is_not_waited_for():
    sums = Sums(LAYOUT, replace(DUTIES, members=DUTIES.members + 1), due)
    assert sums.signed_by(DUTIES.members)


def test_a_liar_cannot_sign_for_the_others():
    sums = Sums(LAYOUT, DUTIES, due)
    signed(sums, 0, range(LAYOUT.total_chunks))
    assert not sums.all_signed


def test_what_is_given_up_is_zero_and_stays_so():
    sums = Sums(LAYOUT, DUTIES, due)
    for author in (0, 2, 3):
        signed(sums, author)
        for chunk in DUTIES.of(author):
            sums.add(chunk, author, data(chunk), from_author=True)
    assert sums.missing == (1,) and not sums.complete
    sums.give_up()
    assert sums.lost == (1,) and sums.complete
    before = sums.root()
    signed(sums, 1)
    sums.add(1, 1, data(1), from_author=True)
    assert not sums.ring(1).any() and sums.complete
    assert sums.root() == before
    leaves = [merkle.leaf_hash(b"" if c == 1 else sha256(data(c)).digest()) for c in range(LAYOUT.total_chunks)]
    assert before == merkle.root(leaves)


def test_my_own_sums_are_given_out_once_and_can_be_passed_on_with_their_signatures():
    sums = Sums(LAYOUT, DUTIES, due)
    sums.computed(1, 1, np.full(LAYOUT.words(1), 7, "u1"))
    assert not sums.provable(1)
    assert not sums.published
    assert sums.take_unpublished(1) == (1,)
    assert sums.published and sums.take_unpublished(1) == ()
    signed(sums, 1)
    assert sums.provable(1)
    (envelope,) = sums.frames_for((1,))
    assert envelope.check(RUN) == identity(1).peer_id
