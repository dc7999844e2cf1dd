"""Rosters: who convenes, in which order, and every way in which one is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from averaging.messages import Roster
from averaging.roster import check_join, check_roster, cohort_order, convener, decisive, ranking
from dht.envelope import seal
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


def refusal(envelope, *, params=PARAMS, round_=1, head=HEAD, committee=COMMITTEE, mine=JOINS[0]) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        check_roster(envelope, params, round_, head, committee, encode(mine))
    return caught.value.refusal


def forged(joins, *, signer=CONVENER, round_=1, attempt=0, head=HEAD):
    return seal(signer, RUN, round_, Roster(round_, attempt, head, tuple(encode(join) for join in joins)))


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
        (replace(GOOD, signature=bytes(64)), Refusal.BAD_SIGNATURE),
        (replace(GOOD, run=bytes(32)), Refusal.WRONG_RUN),
    ],
    ids=["turn", "stranger", "round", "head", "without me", "order", "twice", "few", "signature", "run"],
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


def test_keys_of_low_order_are_refused():
    weak = seal(identity(3), RUN, 1, replace(JOINS[3].message(), mask_key=bytes(32)))
    assert refusal(sign_roster(PARAMS, {**JOINS, 3: weak}.values())) is Refusal.BAD_SHARE


def test_below_the_minimum_and_below_a_quorum_of_the_committee():
    some = [join for i, join in JOINS.items() if i < 4]
    assert refusal(forged(in_order(some)), params=params_of(N, minimum=5)) is Refusal.OUT_OF_BOUNDS
    assert refusal(forged(in_order(some))) is Refusal.OUT_OF_BOUNDS  # 4 of 6 are no quorum
    assert check_roster(forged(in_order([*some, JOINS[4]])), PARAMS, 1, HEAD, COMMITTEE, encode(JOINS[0]))


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
    assert refusal(JOINS[0]) is Refusal.UNEXPECTED
    assert decode_as(Roster, GOOD.body).joins
