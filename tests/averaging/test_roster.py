"""Rosters: who convenes, in which order, and every way in which one is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.messages import Roster, Seat, Seating
from averaging.roster import (
    check_join,
    check_roster,
    cohort_order,
    convener,
    cut,
    decisive,
    join_digest,
    make_roster,
    make_seatings,
    ranking,
)
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.wire import decode_as, digest, encode
from tests.averaging.cohort_net import HEAD, RUN, accept_roster, identity, make_secrets, sign_joins, sign_roster
from tests.averaging.cohort_net import small_params as params_of

N = 6
PARAMS = params_of(N)
JOINS = sign_joins(dict(enumerate(make_secrets(N, 1))))
PEERS = {identity(i).peer_id: identity(i) for i in range(64)}
COMMITTEE = tuple(sorted(identity(i).peer_id for i in range(N)))
CONVENER = PEERS[convener(HEAD, COMMITTEE, 0)]
GOOD = sign_roster(PARAMS, JOINS.values())


def refusal(seating, *, params=PARAMS, round_=1, head=HEAD, committee=COMMITTEE, mine=JOINS[0]) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        check_roster(seating, params, round_, head, committee, mine)
    return caught.value.refusal


def forged(joins, *, signer=CONVENER, round_=1, attempt=0, head=HEAD, shown=None):
    seats = [Seat(join.sender, join_digest(encode(join)), join.message().capacity) for join in joins]
    roster = seal(signer, RUN, round_, Roster(round_, attempt, head, tuple(seats)))
    return Seating(encode(roster), tuple(encode(join) for join in (joins if shown is None else shown)))


def altered(seating, **changes):
    return replace(seating, roster=encode(replace(decode_as(Envelope, seating.roster), **changes)))


def in_order(joins):
    by_peer = {join.check(RUN): join for join in joins}
    return [by_peer[peer] for peer in cohort_order(HEAD, 1, by_peer)]


def test_a_good_roster_is_the_same_for_all_members():
    checked = {accept_roster(PARAMS, GOOD, join) for join in JOINS.values()}
    (roster,) = checked
    assert set(roster.peers) == set(COMMITTEE)
    assert roster.peers == cohort_order(HEAD, 1, COMMITTEE)


def test_the_sid_depends_on_every_join_and_on_the_attempt():
    other = sign_joins(dict(enumerate(make_secrets(N, 2))))
    again = sign_joins(dict(enumerate(make_secrets(N, 1))), attempt=1)
    sids = {
        accept_roster(PARAMS, GOOD, JOINS[0]).sid,
        accept_roster(PARAMS, sign_roster(PARAMS, {**JOINS, 3: other[3]}.values()), JOINS[0]).sid,
        accept_roster(PARAMS, sign_roster(PARAMS, again.values(), 1), again[0]).sid,
    }
    assert len(sids) == 3


def test_conveners_take_turns_and_nobody_can_choose_a_place():
    assert [convener(HEAD, COMMITTEE, k) for k in range(2 * N)] == 2 * list(ranking(HEAD, COMMITTEE))
    orders = {ranking(digest("beacon", bytes([k])), COMMITTEE) for k in range(20)}
    assert len(orders) > 10
    assert {order[0] for order in orders} > {COMMITTEE[0]}


def test_the_order_of_a_cohort_changes_with_round_and_beacon():
    assert len({cohort_order(HEAD, r, COMMITTEE) for r in range(20)}) > 10


@pytest.mark.parametrize(
    ("envelope", "expected"),
    [
        (forged(in_order(JOINS.values()), signer=PEERS[convener(HEAD, COMMITTEE, 1)]), Refusal.WRONG_SENDER),
        (forged(in_order(JOINS.values()), signer=identity(40)), Refusal.WRONG_SENDER),
        (forged(in_order(JOINS.values()), round_=2), Refusal.STALE),
        (forged(in_order(JOINS.values()), head=bytes(32)), Refusal.STALE),
        (forged(in_order([j for i, j in JOINS.items() if i])), Refusal.NOT_A_MEMBER),
        (forged([*in_order(JOINS.values())][::-1]), Refusal.UNEXPECTED),
        (forged([in_order(JOINS.values())[0], *in_order(JOINS.values())]), Refusal.UNEXPECTED),
        (forged(in_order([JOINS[0], JOINS[1]])), Refusal.OUT_OF_BOUNDS),
        (altered(GOOD, signature=bytes(64)), Refusal.BAD_SIGNATURE),
        (altered(GOOD, run=bytes(32)), Refusal.WRONG_RUN),
        (forged(in_order(JOINS.values()), shown=in_order(JOINS.values())[:-1]), Refusal.NOT_A_MEMBER),
        (forged(in_order(JOINS.values()), shown=in_order(JOINS.values())[::-1]), Refusal.BAD_HASH),
    ],
    ids=[
        *[
            "turn",
            "stranger",
            "round",
            "head",
            "without-me",
            "order",
            "twice",
            "few",
            "signature",
            "run",
            "joins-short",
            "joins-swapped",
        ]
    ],
)
def test_refused_rosters(envelope, expected):
    assert refusal(envelope) is expected


def test_my_own_keys_must_be_in_it_unchanged():
    other = sign_joins(dict(enumerate(make_secrets(N, 9))))
    assert refusal(sign_roster(PARAMS, {**JOINS, 0: other[0]}.values())) is Refusal.NOT_A_MEMBER


def test_a_join_of_another_attempt_or_with_a_forged_key_is_refused():
    again = sign_joins(dict(enumerate(make_secrets(N, 1))), attempt=1)
    assert refusal(forged(in_order({**JOINS, 2: again[2]}.values()))) is Refusal.STALE
    mitm = replace(JOINS[2], body=JOINS[2].body.replace(JOINS[2].message().mask_key, bytes(range(32))))
    order = [mitm if join == JOINS[2] else join for join in in_order(JOINS.values())]
    assert refusal(forged(order)) is Refusal.BAD_SIGNATURE


def test_two_members_with_one_key_are_refused():
    copied = replace(JOINS[3].message(), mask_key=JOINS[2].message().mask_key)
    twin = seal(identity(3), RUN, 1, copied)
    assert refusal(sign_roster(PARAMS, {**JOINS, 3: twin}.values())) is Refusal.EQUIVOCATION


def test_a_data_domain_that_the_run_does_not_have_is_refused():
    message = replace(JOINS[3].message(), domain=2)
    seating = sign_roster(PARAMS, {**JOINS, 3: seal(identity(3), RUN, 1, message)}.values())
    assert refusal(seating) is Refusal.OUT_OF_BOUNDS
    two, three = (replace(PARAMS, layout=replace(PARAMS.layout, domains=domains)) for domains in (1, 2))
    assert refusal(seating, params=two) is Refusal.OUT_OF_BOUNDS
    roster = check_roster(seating, three, 1, HEAD, COMMITTEE, JOINS[0])
    assert dict(zip(roster.peers, roster.domains, strict=True))[identity(3).peer_id] == 2
    assert sum(roster.domains) == 2


def test_keys_of_low_order_are_refused():
    weak = seal(identity(3), RUN, 1, replace(JOINS[3].message(), mask_key=bytes(32)))
    assert refusal(sign_roster(PARAMS, {**JOINS, 3: weak}.values())) is Refusal.BAD_SHARE


def test_below_the_minimum_and_below_a_quorum_of_the_committee():
    some = [join for i, join in JOINS.items() if i < 4]
    assert refusal(forged(in_order(some)), params=params_of(N, minimum=5)) is Refusal.OUT_OF_BOUNDS
    assert refusal(forged(in_order(some))) is Refusal.OUT_OF_BOUNDS  # 4 of 6 are no quorum
    assert check_roster(forged(in_order([*some, JOINS[4]])), PARAMS, 1, HEAD, COMMITTEE, JOINS[0])


def test_newcomers_do_not_make_a_quorum():
    strangers = [identity(i).peer_id for i in range(20, 40)]
    assert not decisive([*COMMITTEE[:4], *strangers], COMMITTEE)
    assert decisive(COMMITTEE[:5], COMMITTEE)


@pytest.mark.parametrize(("round_", "attempt", "expected"), [(2, 0, Refusal.STALE), (1, 1, Refusal.STALE)])
def test_a_replayed_join_is_stale(round_, attempt, expected):
    with pytest.raises(ProtocolError) as caught:
        check_join(JOINS[0], RUN, round_, attempt, HEAD)
    assert caught.value.refusal is expected


def test_a_join_on_another_head_is_refused():
    with pytest.raises(ProtocolError) as caught:
        check_join(JOINS[0], RUN, 1, 0, bytes(32))
    assert caught.value.refusal is Refusal.UNEXPECTED


def test_a_roster_that_is_no_roster_is_refused():
    assert refusal(replace(GOOD, roster=encode(JOINS[0]))) is Refusal.UNEXPECTED
    assert refusal(replace(GOOD, joins=(GOOD.roster, *GOOD.joins[1:]))) is Refusal.UNEXPECTED


@given(st.integers(3, 4096), st.integers(3, 64), st.integers(3, 16))
def test_cuts_cover_everybody_evenly_and_keep_the_bounds(members, target, minimum):
    parts = cut(members, target, minimum)
    sizes = [len(part) for part in parts]
    assert [part.start for part in parts] == [0, *[part.stop for part in parts][:-1]]
    assert parts[-1].stop == members
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 64
    if members > 64:
        return
    assert len(parts) == 1 or min(sizes) >= minimum


def test_cuts_stay_near_the_target():
    assert [len(cut(n, 8, 5)) for n in (5, 8, 11, 12, 16, 20, 64, 1000)] == [1, 1, 1, 2, 2, 3, 8, 125]
    assert len(cut(9, 8, 5)) == 1  # two would be below the minimum
    assert len(cut(15, 8, 5)) == 2


def test_several_cohorts_have_sids_and_reducers_of_their_own():
    params = params_of(12, target=6)
    joins = sign_joins(dict(enumerate(make_secrets(12, 5))))
    by_peer = {join.check(RUN): join for join in joins.values()}
    committee = tuple(sorted(by_peer))
    signed = seal(PEERS[convener(HEAD, committee, 0)], RUN, 1, make_roster(1, 0, HEAD, by_peer))
    views = [
        check_roster(seating, params, 1, HEAD, committee, by_peer[peer])
        for members, seating in make_seatings(params, signed, by_peer)
        for peer in members
    ]
    assert len({view.round_sid for view in views}) == 1
    assert len({view.sid for view in views}) == 2
    assert {view.round_sid for view in views}.isdisjoint(view.sid for view in views)
    first, last = views[0], views[-1]
    assert (first.index, last.index) == (0, 1)
    assert first.cohort(1) == last.peers
    assert first.cohort_sid(1) == last.sid
    assert first.reducers(params.layout, 1) == last.reducers(params.layout, 1)


def test_a_member_without_capacity_reduces_nothing_unless_nobody_has_any():
    params = params_of(6)

    def with_capacities(*capacities):
        joins = {
            i: seal(identity(i), RUN, 1, replace(JOINS[i].message(), capacity=c)) for i, c in enumerate(capacities)
        }
        roster = accept_roster(params, sign_roster(params, joins.values()), joins[0])
        client = roster.peers.index(identity(0).peer_id)
        return roster.reducers(params.layout, 0).count(client)

    assert with_capacities(0, 100, 100, 100, 100, 100) == 0
    assert with_capacities(0, 0, 0, 0, 0, 0) > 0
    assert with_capacities(300, 100, 100, 100, 100, 100) > with_capacities(100, 100, 100, 100, 100, 100)
