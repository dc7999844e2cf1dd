"""Step R3: one survivor set. What a leader may propose, what gets a vote, and what t votes certify."""

from __future__ import annotations

from dataclasses import replace

import pytest

from averaging.messages import Manifest, Receipt, Survivors, Vote
from averaging.params import threshold
from averaging.survivors import Certified, SurvivorCertificate, bitmap, bits, name_of, vote_digest
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal
from dht.wire import digest, encode
from tests.averaging.cohort_net import RUN, CohortNet

N, T = 5, threshold(5)
NET = CohortNet(N)
SID = NET.roster.sid
ALL = tuple(range(N))


def frame(i: int, message: object, round_: int = 1) -> bytes:
    return encode(seal(NET.nodes[i].identity, RUN, round_, message))


def receipt(members=ALL, sid: bytes = SID) -> Receipt:
    return Receipt(sid, bitmap(set(members)), tuple(name_of(manifest(i)) for i in sorted(members)))


def manifest(i: int) -> Manifest:
    return Manifest(SID, 100 + i, (digest("chunk", bytes([i])),))


def view(receipts=None, manifests=ALL) -> SurvivorCertificate:
    """What a member knows that got these receipts (member -> whom it confirms) and manifests."""
    r3 = SurvivorCertificate(RUN, NET.roster, T)
    for i in manifests:
        r3.add_manifest(i, manifest(i), frame(i, manifest(i)))
    for i, confirmed in (receipts if receipts is not None else dict.fromkeys(ALL, ALL)).items():
        r3.add_receipt(i, receipt(confirmed), frame(i, receipt(confirmed)))
    return r3


def proposal(leader=0, receipts=None, survivors=None, **changes) -> Survivors:
    receipts = receipts if receipts is not None else dict.fromkeys(ALL, ALL)
    common = set.intersection(*(set(confirmed) for confirmed in receipts.values()))
    chosen = survivors if survivors is not None else common
    frames = tuple(frame(i, receipt(confirmed)) for i, confirmed in receipts.items())
    return replace(Survivors(SID, leader, bitmap(set(chosen)), bitmap(set(receipts)), frames), **changes)


def refusal(call) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.refusal


def test_bitmaps():
    assert bits(bitmap({0, 3, 63})) == (0, 3, 63)
    assert bitmap(()) == 0 and bits(0) == ()


def test_the_survivors_are_what_all_live_reducers_hold():
    receipts = {0: ALL, 1: (0, 1, 2, 3), 2: ALL, 3: ALL}  # member 4's packet to 1 was lost; 4 itself is silent
    found = view(receipts).propose(0)
    assert found is not None
    assert bits(found.survivors) == (0, 1, 2, 3)
    assert bits(found.reducers) == (0, 1, 2, 3)


def test_one_liars_empty_receipt_does_not_void_the_round():
    found = view({**dict.fromkeys(ALL, ALL), 3: ()}).propose(0)
    assert found is not None
    assert bits(found.survivors) == ALL
    assert bits(found.reducers) == (0, 1, 2, 4)


def test_who_showed_two_manifests_is_in_no_survivor_set_and_costs_nobody_else_a_place():
    other = name_of(replace(manifest(2), tokens=7))
    r3 = view()
    for i in (1, 3):
        names = tuple(other if m == 2 else name_of(manifest(m)) for m in ALL)
        r3.receipts[i] = (replace(receipt(), manifests=names), frame(i, replace(receipt(), manifests=names)))
    found = r3.propose(0)
    assert found is not None
    assert (bits(found.survivors), bits(found.reducers)) == ((0, 1, 3, 4), ALL)
    voter = view()
    voter.add_proposal(0, found)
    assert voter.vote() is not None
    assert refusal(lambda: view().add_proposal(0, replace(found, survivors=bitmap(ALL)))) is Refusal.UNEXPECTED


@pytest.mark.parametrize("liar", [0, 4])
def test_one_liar_who_confirms_manifests_that_nobody_sent_does_not_void_the_round(liar):
    r3 = view()
    false = replace(receipt(), manifests=(bytes(16),) * N)
    r3.receipts[liar] = (false, frame(liar, false))
    found = r3.propose(0)
    assert found is not None
    assert (bits(found.survivors), bits(found.reducers)) == (ALL, tuple(i for i in ALL if i != liar))


def test_nobody_votes_for_a_set_with_a_manifest_that_it_does_not_hold():
    r3 = view(manifests=(0, 1, 3, 4))
    mine = replace(manifest(2), tokens=7)
    r3.add_manifest(2, mine, frame(2, mine))
    r3.add_proposal(0, proposal())
    assert r3.vote() is None


def test_a_receipt_names_a_manifest_for_each_member_that_it_confirms():
    assert refusal(lambda: view({}).add_receipt(0, replace(receipt(), manifests=()), b"")) is Refusal.OUT_OF_BOUNDS


@pytest.mark.parametrize("receipts", [dict.fromkeys((0, 1, 2), ALL), dict.fromkeys(ALL, (0, 1, 2))])
def test_nothing_is_proposed_below_the_threshold(receipts):
    assert view(receipts).propose(0) is None


def test_a_proposal_gets_the_vote_of_who_holds_its_manifests():
    r3 = view(manifests=(0, 1, 2, 3))
    r3.add_proposal(0, proposal())
    assert r3.vote() is None
    r3.add_manifest(4, manifest(4), b"")
    vote = r3.vote()
    assert vote is not None and bits(vote.survivors) == ALL


def test_who_voted_proposes_that_and_nothing_else_when_its_own_turn_comes():
    r3 = view(receipts=dict.fromkeys(ALL, ALL))
    r3.add_proposal(0, proposal(receipts=dict.fromkeys((0, 1, 2, 3), ALL)))
    vote = r3.vote()
    mine = r3.propose(1)
    assert vote is not None and mine is not None
    assert (mine.view, mine.survivors, mine.reducers) == (1, vote.survivors, vote.reducers)
    other = view()
    other.add_proposal(1, mine)
    assert other.vote() == vote


BAD = {
    "not its turn": (1, proposal(), Refusal.WRONG_SENDER),
    "more than the intersection": (
        0,
        proposal(receipts={**dict.fromkeys(ALL, ALL), 1: (0, 1, 2, 3)}, survivors=ALL),
        13,
    ),
    "less than the intersection": (0, proposal(survivors=(0, 1, 2, 3)), Refusal.UNEXPECTED),
    "too few survivors": (0, proposal(receipts=dict.fromkeys(ALL, (0, 1, 2))), Refusal.OUT_OF_BOUNDS),
    "too few reducers": (0, proposal(receipts=dict.fromkeys((0, 1, 2), ALL)), Refusal.OUT_OF_BOUNDS),
    "other reducers than shown": (0, proposal(reducers=bitmap({0, 1, 2, 3})), Refusal.UNEXPECTED),
    "a receipt of another sid": (
        0,
        replace(proposal(), receipts=(frame(0, receipt(sid=bytes(32))), *proposal().receipts[1:])),
        Refusal.NOT_A_MEMBER,
    ),
    "a receipt of another round": (
        0,
        replace(proposal(), receipts=(frame(0, receipt(), round_=2), *proposal().receipts[1:])),
        Refusal.NOT_A_MEMBER,
    ),
    "a forged receipt": (
        0,
        replace(proposal(), receipts=(proposal().receipts[0][:-1] + b"\x00", *proposal().receipts[1:])),
        Refusal.BAD_SIGNATURE,
    ),
    "something that is no receipt": (
        0,
        replace(proposal(), receipts=(frame(0, manifest(0)), *proposal().receipts[1:])),
        Refusal.UNEXPECTED,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_proposals_are_refused_and_get_no_vote(name):
    sender, bad, expected = BAD[name]
    r3 = view()
    assert refusal(lambda: r3.add_proposal(sender, bad)) == expected
    assert r3.vote() is None


def test_contradictions_are_equivocation_and_repeats_are_not():
    r3 = view()
    r3.add_proposal(0, proposal())
    r3.add_proposal(0, proposal())
    assert (
        refusal(lambda: r3.add_proposal(0, proposal(receipts=dict.fromkeys((0, 1, 2, 3), ALL)))) is Refusal.EQUIVOCATION
    )
    r3.add_manifest(1, manifest(1), b"")
    assert refusal(lambda: r3.add_manifest(1, replace(manifest(1), tokens=7), b"")) is Refusal.EQUIVOCATION
    assert refusal(lambda: r3.add_receipt(1, receipt((0, 1)), b"")) is Refusal.EQUIVOCATION
    vote = Vote(SID, bitmap(ALL), bitmap(ALL), bytes(32))
    r3.add_vote(2, vote)
    r3.add_vote(2, vote)
    assert refusal(lambda: r3.add_vote(2, replace(vote, survivors=bitmap({0, 1, 2, 3})))) is Refusal.EQUIVOCATION


def test_a_receipt_for_members_that_do_not_exist():
    assert refusal(lambda: view().add_receipt(1, receipt((0, 7)), b"")) is Refusal.OUT_OF_BOUNDS


def test_t_votes_for_one_thing_certify_it():
    r3 = view()
    r3.add_proposal(0, proposal())
    vote = r3.vote()
    assert vote is not None
    for voter in range(T - 1):
        r3.add_vote(voter, vote)
    assert r3.certified() is None
    r3.add_vote(4, replace(vote, reducers=bitmap({0, 1, 2, 3})))
    assert r3.certified() is None, "votes for two things were added up"
    r3.add_vote(3, vote)
    assert r3.certified() == Certified(ALL, ALL, (0, 1, 2, 3))


def test_votes_for_too_small_a_set_certify_nothing():
    r3 = view()
    few = {0, 1, 2}
    for voter in ALL:
        r3.add_vote(voter, Vote(SID, bitmap(few), bitmap(ALL), r3._manifests(few)))
    assert r3.certified() is None


def test_votes_over_other_manifests_than_mine_certify_nothing_here():
    """A member that sent two manifests: who holds the other one must not open on this certificate."""
    r3 = view(manifests=(0, 1, 2, 3))
    r3.add_manifest(4, replace(manifest(4), tokens=1), b"")
    vote = Vote(SID, bitmap(ALL), bitmap(ALL), view()._manifests(set(ALL)))
    for voter in ALL:
        r3.add_vote(voter, vote)
    assert r3.certified() is None
    assert vote_digest(vote) != vote_digest(replace(vote, manifests=bytes(32)))
