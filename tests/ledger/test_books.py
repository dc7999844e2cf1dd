"""Contents of checkpoints follow from the records up to the epoch's last round, and from nothing else."""

import pytest

from dht import merkle
from ledger.books import Books, rows
from ledger.checkpoint import NOTHING
from ledger.points import add_up
from ledger.rewards import Constants
from tests.ledger.records import add_recovery, add_round, new_chain, some_work

CONSTANTS = Constants(2, 10**18, 10**21, 7000, 131072)


def grown(rounds=6, **change):
    chain = new_chain()
    for _ in range(rounds):
        add_round(chain, **change)
    return chain


def test_the_contents_of_an_epoch():
    chain = grown()
    books = Books(CONSTANTS)
    contents = books.contents(chain, 2, [0, 5, 7])
    records = [chain.record(3), chain.record(4)]
    assert (contents.first_round, contents.last_round) == (3, 4)
    assert contents.model_root == chain.record(4).state_root
    assert contents.data_root == merkle.root([merkle.leaf_hash(record.hash()) for record in records])
    assert {peer: account.points for peer, account in contents.tally.added.items()} == add_up(map(rows, records))
    header = contents.checkpoint(3, b"p" * 32)
    assert (header.fork_nonce, header.parent, header.epoch) == (3, b"p" * 32, 2)
    assert header.cumulative_reward == 2 * 10**18 + 5 and header.peers == 4
    assert header.tokens == sum(share.tokens for share in chain.branch(4).tally.shares.values())
    assert contents.agrees(header)
    assert not books.contents(chain, 2, [0, 6]).agrees(header)
    assert not books.contents(chain, 1, [0, 6]).agrees(header)


def test_points_are_those_of_the_tally_in_the_records():
    chain = grown(4)
    tally = Books(CONSTANTS).tally(chain, 2, [])
    for peer, share in chain.tally.shares.items():
        points = tally.accounts[peer].points
        assert (points.tokens, points.rounds, points.chunks) == (share.tokens, share.rounds, share.chunks)


def test_later_records_do_not_matter():
    early, late = grown(4), grown(6)
    assert Books(CONSTANTS).contents(early, 2, [0, 0]) == Books(CONSTANTS).contents(late, 2, [0, 0])


def test_an_epoch_that_is_not_over_has_no_contents():
    with pytest.raises(KeyError):
        Books(CONSTANTS).contents(grown(3), 2, [])


def test_void_rounds_recoveries_and_the_founding_give_nothing():
    chain = new_chain()
    add_round(chain, void=True)
    record = add_recovery(chain)
    assert rows(chain.record(0)) == rows(chain.record(1)) == rows(record) == ()
    assert record.survivors
    contents = Books(CONSTANTS).contents(chain, 1, [9])
    assert contents.tally.paid == 0 and contents.tally.carried == 9 and contents.tally.accounts == {}
    assert contents.checkpoint(0, NOTHING).tally_root == bytes(32)
    assert contents.model_root == chain.record(0).state_root
    add_round(chain)
    add_round(chain, void=True)
    assert Books(CONSTANTS).contents(chain, 2, [9, 1]).tally.paid == 10**18 + 10
    assert set(Books(CONSTANTS).tally(chain, 2, []).accounts) == {bytes(peer) for peer in record.members()}


def test_a_branch_that_wins_is_noticed():
    chain = grown(6)
    other = chain.branch(3)
    for _ in range(3):
        add_round(other, lambda round_, number: (7 * number + 1, 1), salt=b"other")
    books = Books(CONSTANTS)
    assert books.contents(chain, 3, []) != books.contents(other, 3, [])
    assert books.contents(other, 3, []) == Books(CONSTANTS).contents(other, 3, [])
    assert books.contents(chain, 3, []) == Books(CONSTANTS).contents(chain, 3, [])
    assert books.tally(chain, 1, []) == books.tally(other, 1, [])


def test_other_fees_are_noticed():
    chain, books = grown(6), Books(CONSTANTS)
    for fees in ([0, 0, 0], [0, 4, 0], [1, 4, 0], [1], []):
        assert books.tally(chain, 3, fees) == Books(CONSTANTS).tally(chain, 3, fees)


def test_an_epoch_is_computed_once():
    calls = []

    def counted(round_, number):
        calls.append(round_)
        return some_work(round_, number)

    chain, books = grown(6, work=counted), Books(CONSTANTS)
    first = books.tally(chain, 3, [])
    assert books.tally(chain, 3, []) is first
    assert books.tally(chain, 2, []) is books.tally(chain, 2, [])
