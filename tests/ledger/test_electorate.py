import pytest

from ledger.checkpoint import Checkpoint, Rollback
from ledger.electorate import Electorate

ADDRESSES = tuple(bytes([k]) * 20 for k in range(7))


def header(epoch=1, parent=b"p" * 32):
    zero = bytes(32)
    return Checkpoint(zero, 0, epoch, parent, 1, 2, zero, zero, zero, 0, 0, 0)


@pytest.mark.parametrize(
    ("weights", "signers", "enough"),
    [
        ((1, 1, 1), (0, 1), False),  # exactly two thirds are not more than two thirds
        ((1, 1, 1), (0, 1, 2), True),
        ((1, 1, 1, 1), (0, 1, 3), True),
        ((5, 1, 1), (0,), True),
        ((4, 1, 1), (0,), False),
        ((4, 1, 1), (0, 0, 0), False),  # one signs once
        ((1,), (0,), True),
        ((1,), (), False),
        ((65535,) * 64, range(43), True),
        ((65535,) * 64, range(42), False),
    ],
)
def test_quorum_is_more_than_two_thirds_of_the_weight(weights, signers, enough):
    assert Electorate(ADDRESSES[: len(weights)], weights).enough(signers) is enough


@pytest.mark.parametrize(
    ("weights", "indices", "needed"),
    [
        ((1, 1, 1), (2,), True),
        ((1,) * 4, (1,), False),
        ((1,) * 4, (1, 3), True),
        ((5, 1, 1), (1, 2, 2), False),
        ((1,), (), False),
    ],
)
def test_nothing_is_enough_without_a_third(weights, indices, needed):
    electorate = Electorate(ADDRESSES[: len(weights)], weights)
    assert electorate.needed(indices) is needed
    assert electorate.enough(set(range(len(weights))) - set(indices)) is not needed


def test_as_few_as_are_enough():
    electorate = Electorate(ADDRESSES, (1, 5, 1, 9, 1, 1, 1))
    assert electorate.fewest(range(7)) == (1, 3)
    assert electorate.fewest((0, 3, 4, 5, 6)) == (0, 3, 4, 5, 6)
    assert electorate.index(ADDRESSES[3]) == 3 and electorate.index(b"x" * 20) is None


def test_leaders_of_a_rollback_are_a_permutation_that_nonce_and_epoch_choose():
    electorate = Electorate(ADDRESSES, (1,) * 7)
    rollbacks = [Rollback(b"r" * 32, nonce, epoch) for nonce in range(4) for epoch in range(1, 6)]
    orders = {electorate.rollback_leaders(each) for each in rollbacks}
    assert len(orders) > 15
    assert all(sorted(order) == list(ADDRESSES) for order in orders)


def test_leaders_are_a_permutation_that_epoch_and_parent_choose():
    electorate = Electorate(ADDRESSES, (1,) * 7)
    orders = {electorate.leaders(header(epoch, bytes([parent]) * 32)) for epoch in range(1, 6) for parent in range(4)}
    assert len(orders) > 15  # of twenty draws out of 5040 two may be the same
    assert all(sorted(order) == list(ADDRESSES) for order in orders)
    assert {order[0] for order in orders} >= set(ADDRESSES[:3])
