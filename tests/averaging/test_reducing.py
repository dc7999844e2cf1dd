"""Who reduces what, what a reducer takes, and the opening of seeds at it."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.dealing import Seed
from averaging.layout import Layout
from averaging.messages import Manifest
from averaging.reducing import Duties, Inputs, Opening
from dht.errors import ProtocolError, Refusal
from tests.averaging.test_dealing import NET, N, T, exchanged

LAYOUT = Layout(9 * 4096, 16, 4096)
DUTIES = Duties(LAYOUT.reducers(4), 4, 1)


def refusal(call) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.refusal


def piece(chunk: int, fill: int = 1) -> bytes:
    return bytes([fill]) * LAYOUT.chunk_bytes(chunk)


def manifest(fill: int = 1) -> Manifest:
    return Manifest(bytes(32), 1, tuple(sha256(piece(c, fill)).digest() for c in range(LAYOUT.total_chunks)))


@given(st.integers(3, 64), st.integers(1, 200), st.integers(0, 3))
def test_every_chunk_has_one_reducer_and_copies_elsewhere(members, chunks, copies):
    layout = Layout(chunks * 4096, 8, 4096)
    duties = Duties(layout.reducers(members), members, copies)
    owned = [chunk for member in range(members) for chunk in duties.of(member)]
    assert sorted(owned) == list(range(layout.total_chunks))
    for member in range(members):
        holders = duties.copy_holders(member)
        assert len(holders) == copies
        assert member not in holders or copies >= members


def test_stand_ins_come_in_order_and_are_live():
    duties = Duties(LAYOUT.reducers(8), 8, 1)
    live = (0, 1, 2, 4, 5, 6, 7)
    assert duties.stand_in(2, live, {2}, 0) == 4  # 3 is no certified reducer
    assert duties.stand_in(2, live, {2, 4}, 0) == 5
    assert duties.stand_in(2, live, {2}, 1) == 5
    assert duties.stand_in(7, live, {7}, 0) == 0
    assert duties.stand_in(2, live, set(range(8)), 0) is None


def test_a_reducer_takes_its_range_and_copies_of_its_neighbours():
    inputs = Inputs(LAYOUT, DUTIES, 1)
    for uploader in range(4):
        for chunk in range(LAYOUT.total_chunks):
            due = chunk in DUTIES.of(1) or (uploader == 0 and chunk in DUTIES.of(0))
            assert inputs.expected(uploader, chunk) == due
    assert not inputs.expected(0, LAYOUT.total_chunks)
    assert not inputs.expected(0, -1)
    assert set(inputs.owed(0)) == {*DUTIES.of(1), *DUTIES.of(0)}
    assert set(inputs.owed(2)) == set(DUTIES.of(1))


@pytest.mark.parametrize(("chunk", "data"), [(0, b"x"), (0, piece(0) + b"x"), (99, piece(0)), (-1, piece(0))])
def test_chunks_of_another_size_or_place_are_refused(chunk, data):
    assert refusal(lambda: Inputs(LAYOUT, DUTIES, 0).add(1, chunk, data)) is Refusal.OUT_OF_BOUNDS


def test_two_versions_of_a_chunk_are_equivocation():
    inputs = Inputs(LAYOUT, DUTIES, 0)
    inputs.add(1, 0, piece(0))
    inputs.add(1, 0, piece(0))
    assert refusal(lambda: inputs.add(1, 0, piece(0, 2))) is Refusal.EQUIVOCATION


def test_held_means_all_of_it_and_as_in_the_manifest():
    inputs = Inputs(LAYOUT, DUTIES, 0)
    owed = inputs.owed(1)
    for chunk in owed[:-1]:
        inputs.add(1, chunk, piece(chunk))
    assert not inputs.holds(1, owed, manifest())
    inputs.add(1, owed[-1], piece(owed[-1], 2))
    assert not inputs.holds(1, owed, manifest())
    assert inputs.holds(1, owed[:-1], manifest())
    assert not inputs.holds(1, owed[:-1], manifest(2))


def test_sums_wrap_in_the_ring_and_leave_the_inputs_alone():
    inputs = Inputs(LAYOUT, DUTIES, 0)
    words = [np.full(4096, value, "<u2") for value in (65535, 3, 40000)]
    for i, word in enumerate(words):
        inputs.add(i, 0, memoryview(word).cast("B"))
    assert set(inputs.sum(0, (0, 1))) == {2}
    assert set(inputs.sum(0, (0, 1, 2))) == {40002}
    assert [int(word[0]) for word in words] == [65535, 3, 40000]
    with pytest.raises(KeyError):
        inputs.sum(0, (0, 3))
    inputs.clear()
    with pytest.raises(KeyError):
        inputs.sum(0, (0, 1))


def shares_of(members, holder: int, survivors: tuple[int, ...]) -> tuple[bytes, ...]:
    return tuple(members[holder].share(Seed.SELF if i in survivors else Seed.MASK, i) for i in range(N))


def test_an_opening_needs_t_good_answers():
    members, survivors = exchanged(), (0, 1, 2, 3)
    opening = Opening(NET.roster, members[0], survivors, T)
    for holder in range(T - 1):
        opening.add(holder, shares_of(members, holder, survivors))
    assert not opening.try_open()
    wrong = (bytes(32), *shares_of(members, 3, survivors)[1:])
    assert refusal(lambda: opening.add(3, wrong)) is Refusal.BAD_SHARE
    assert refusal(lambda: opening.add(3, wrong[1:])) is Refusal.BAD_SHARE
    assert not opening.try_open(), "a bad answer counted"
    opening.add(4, shares_of(members, 4, survivors))
    assert opening.try_open() and opening.ready


def test_shares_of_the_other_seed_are_bad():
    members = exchanged()
    opening = Opening(NET.roster, members[0], (0, 1, 2, 3), T)
    assert refusal(lambda: opening.add(1, shares_of(members, 1, (0, 1, 2, 3, 4)))) is Refusal.BAD_SHARE
