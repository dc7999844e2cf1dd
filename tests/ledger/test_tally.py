"""Tallies over epochs: cumulative, capped, and with fees that wait for somebody who earns them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.identity import Identity
from dht.wire import digest
from ledger.points import Points, Row
from ledger.rewards import Constants
from ledger.signatures import key_address
from ledger.standard_merkle import EMPTY_ROOT, verify
from ledger.tally import Account, EpochTally

PEERS = sorted(Identity(digest("tally", bytes([k]))).peer_id for k in range(6))
CONSTANTS = Constants(2, 1000, 2500, 8000, 100)
ROWS = st.lists(
    st.builds(Row, st.sampled_from([bytes(peer) for peer in PEERS]), st.integers(0, 2**40), st.integers(0, 4)),
    max_size=6,
    unique_by=lambda row: row.peer,
)
EPOCHS = st.lists(st.tuples(st.lists(ROWS, max_size=3), st.integers(0, 10**6)), max_size=6)


def tallies(epochs, constants=CONSTANTS):
    found = [EpochTally()]
    for rounds, fees in epochs:
        found.append(found[-1].following(rounds, fees, constants))
    return found


@given(EPOCHS)
def test_cumulative_rewards_never_fall_and_sum_up(epochs):
    history = tallies(epochs)
    for before, after in pairwise(history):
        assert after.epoch == before.epoch + 1
        assert set(before.accounts) <= set(after.accounts)
        for peer, account in before.accounts.items():
            assert after.accounts[peer] == account + after.added.get(peer, Account())
            assert after.accounts[peer].earned >= account.earned
        assert after.cumulative_reward == before.cumulative_reward + after.paid
        assert sum(account.earned for account in after.added.values()) == after.paid
        assert after.tokens == before.tokens + sum(account.points.tokens for account in after.added.values())
        assert list(after.accounts) == sorted(after.accounts) and list(after.added) == sorted(after.added)


@given(EPOCHS)
def test_the_cap_holds_and_no_fee_is_lost(epochs):
    for k, tally in enumerate(tallies(epochs)):
        fees = sum(fee for _, fee in epochs[:k])
        assert tally.emitted <= min(k * CONSTANTS.emission, CONSTANTS.emission_cap)
        assert tally.cumulative_reward + tally.carried == tally.emitted + fees


@given(EPOCHS)
def test_leaves_are_who_earned_something(epochs):
    tally = tallies(epochs)[-1]
    assert sum(tally.leaves.values()) == tally.cumulative_reward
    assert 0 not in tally.leaves.values() and len(tally.tree) == len(tally.leaves)
    for account, amount in tally.leaves.items():
        assert verify(tally.tree.root, account, amount, tally.tree.proof(account))
    if not tally.leaves:
        assert tally.tree.root == EMPTY_ROOT


def test_an_epoch_without_points_pays_nothing_and_keeps_the_fees():
    peer = bytes(PEERS[0])
    idle = EpochTally().following([[Row(peer, 0, 0)]], 70, CONSTANTS)
    assert (idle.paid, idle.emitted, idle.carried, idle.leaves) == (0, 0, 70, {})
    assert idle.accounts[peer] == Account(Points(rounds=1))
    busy = idle.following([[Row(peer, 5, 0)]], 30, CONSTANTS)
    assert (busy.paid, busy.emitted, busy.carried) == (1100, 1000, 0)
    assert busy.leaves == {key_address(PEERS[0]): 1100}


def test_the_last_emission_is_what_the_cap_leaves():
    rounds = [[Row(bytes(PEERS[0]), 1, 0)]]
    assert [tally.paid for tally in tallies([(rounds, 0)] * 4)] == [0, 1000, 1000, 500, 0]


def test_tallies_cannot_be_changed():
    tally = EpochTally().following([[Row(bytes(PEERS[0]), 1, 0)]], 0, CONSTANTS)
    with pytest.raises(TypeError):
        tally.accounts[bytes(PEERS[1])] = Account()
    with pytest.raises(TypeError):
        tally.leaves[b""] = 1
    with pytest.raises(AttributeError):
        tally.paid = 3
    with pytest.raises(ValueError):
        tally.following([], -1, CONSTANTS)
