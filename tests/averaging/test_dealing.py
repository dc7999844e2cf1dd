"""Step R1: shares that a holder can check, and seeds that a dealer cannot fake."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from averaging.dealing import Dealing, Seed
from averaging.params import threshold
from dht.errors import ProtocolError, Refusal
from tests.averaging.cohort_net import CohortNet

N, T = 5, threshold(5)
NET = CohortNet(N)
SECRETS = [node.secrets for node in NET.nodes]


def dealing(i: int, *, secrets=None) -> Dealing:
    return Dealing(NET.roster, i, secrets or SECRETS[i], T, random.Random(i).randbytes)


def exchanged(**changed) -> list[Dealing]:
    all_ = [dealing(i, secrets=changed.get(f"m{i}")) for i in range(N)]
    for i, dealer in enumerate(all_):
        for j, holder in enumerate(all_):
            if i != j:
                holder.receive(i, dealer.deal(j))
    return all_


def refused(call) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value


def test_t_holders_open_every_seed_and_all_agree_on_the_hashes():
    members = exchanged()
    assert [member.missing for member in members] == [()] * N
    assert len({member.digests() for member in members}) == 1
    for dealer in range(N):
        for seed, value in zip(Seed, (SECRETS[dealer].a, SECRETS[dealer].b, SECRETS[dealer].r), strict=True):
            shares = {holder: members[holder].share(seed, dealer) for holder in range(1, 1 + T)}
            assert all(members[0].is_share(seed, dealer, holder, share) for holder, share in shares.items())
            assert members[0].open(seed, dealer, shares) == value


def test_fewer_than_t_open_nothing():
    members = exchanged()
    few = {holder: members[holder].share(Seed.SELF, 0) for holder in range(T - 1)}
    assert refused(lambda: members[1].open(Seed.SELF, 0, few)).refusal is Refusal.BAD_SHARE


def test_a_share_belongs_to_one_seed_dealer_and_holder():
    members = exchanged()
    share = members[2].share(Seed.SELF, 1)
    for seed, dealer, holder in ((Seed.MASK, 1, 2), (Seed.SELF, 0, 2), (Seed.SELF, 1, 3)):
        assert not members[0].is_share(seed, dealer, holder, share)


@pytest.mark.parametrize("field", ["a", "b", "r"])
def test_a_dealer_whose_seed_is_not_the_published_one_is_named(field):
    false = replace(SECRETS[3], **{field: bytes(31)})
    members = exchanged(m3=false)
    seed = {"a": Seed.MASK, "b": Seed.SELF, "r": Seed.AUDIT}[field]
    shares = {holder: members[holder].share(seed, 3) for holder in range(T)}
    error = refused(lambda: members[0].open(seed, 3, shares))
    assert error.refusal is Refusal.BAD_SHARE
    assert "member 3 dealt" in error.message


def test_a_share_that_differs_from_its_hash_is_refused_at_once():
    dealer, holder = dealing(0), dealing(1)
    good = dealer.deal(1)
    wrong = replace(good, commitments=(bytes(32),) * (3 * N))
    assert refused(lambda: holder.receive(0, wrong)).refusal is Refusal.BAD_SHARE
    assert 0 in holder.missing
    holder.receive(0, good)
    assert 0 not in holder.missing


def test_shares_sealed_to_another_or_altered_do_not_open():
    dealer, holder = dealing(0), dealing(1)
    other = dealer.deal(2)
    flipped = replace(dealer.deal(1), sealed=bytes([dealer.deal(1).sealed[0] ^ 1]) + dealer.deal(1).sealed[1:])
    for message in (other, flipped):
        assert refused(lambda m=message: holder.receive(0, m)).refusal is Refusal.BAD_SHARE


def test_a_hash_list_of_the_wrong_length_is_refused():
    message = dealing(0).deal(1)
    short = replace(message, commitments=message.commitments[:-1])
    assert refused(lambda: dealing(1).receive(0, short)).refusal is Refusal.BAD_SHARE


def test_dealing_twice_is_equivocation_and_repeating_is_not():
    holder, dealer = dealing(1), dealing(0)
    holder.receive(0, dealer.deal(1))
    before = holder.share(Seed.SELF, 0)
    holder.receive(0, dealer.deal(1))
    second = Dealing(NET.roster, 0, SECRETS[0], T, random.Random(99).randbytes)
    assert refused(lambda: holder.receive(0, second.deal(1))).refusal is Refusal.EQUIVOCATION
    assert holder.share(Seed.SELF, 0) == before


def test_two_stories_of_one_dealer_show_in_the_digests():
    members = exchanged()
    liar = Dealing(NET.roster, 0, SECRETS[0], T, random.Random(99).randbytes)
    told_otherwise = dealing(4)
    for i in range(4):
        told_otherwise.receive(i, (liar if i == 0 else members[i]).deal(4))
    assert told_otherwise.digests() != members[1].digests()
