"""What a peer does with the hub's head, whether it is an attestor or not, and whether its files work or not."""

from __future__ import annotations

from contextlib import closing

import pytest

from averaging.actions import Note, Send
from dht.errors import ProtocolError, Refusal
from ledger.attestation_log import SqliteAttestationLog
from ledger.attestor import Attestor, Finalize
from ledger.attestor_guard import SqliteAttestorGuard
from ledger.books import Books
from ledger.chain_view import Head
from ledger.checkpoint import NOTHING
from ledger.electorate import Electorate
from ledger.messages import CheckpointStatus
from ledger.rollbacks import Alarm
from ledger.signatures import key_address
from tests.ledger.attestor_net import CONSTANTS
from tests.ledger.fake_hub import DOMAIN
from tests.ledger.records import KEYS, add_round, new_chain

ELECTORATE = Electorate(tuple(key_address(key.peer_id) for key in KEYS[:3]), (1, 1, 1))


@pytest.fixture
def chain():
    chain = new_chain(4)
    for _ in range(6):
        add_round(chain)
    return chain


def attestor(chain, key, guard, log):
    return Attestor(key, DOMAIN, Books(CONSTANTS), lambda: chain, guard, log)


def head(chain, epoch=0, active=0, **change):
    books, checkpoint = Books(CONSTANTS), None
    for each in range(1, epoch + 1):
        contents = books.contents(chain, each, [0] * each)
        checkpoint = contents.checkpoint(0, checkpoint.hash() if checkpoint else NOTHING)
    fields = {"fork_nonce": 0, "active_epoch": active, "electorate": ELECTORATE, "fees": (0,) * (epoch + 1)}
    return Head(checkpoint, **fields | change)


@pytest.fixture
def files():
    with closing(SqliteAttestorGuard(":memory:")) as guard, closing(SqliteAttestationLog(":memory:")) as log:
        yield guard, log


def test_who_is_no_attestor_follows_and_signs_nothing(chain, files):
    peer = attestor(chain, KEYS[5], *files)
    assert peer.head(head(chain)) == []
    assert peer.head(head(chain, 2, 1)) == [Finalize(3)]
    assert peer.head(head(chain, 2, 1)) == []
    assert peer.head(head(chain, 2, 2)) == [Finalize(6)]
    with pytest.raises(ProtocolError) as refused:
        peer.receive(KEYS[0].peer_id, CheckpointStatus(0, 3, bytes(32), 0, 0))
    assert refused.value.refusal is Refusal.UNEXPECTED


def test_a_head_that_is_not_what_the_records_give_makes_nothing_final(chain, files):
    other = new_chain(4)
    for _ in range(6):
        add_round(other, salt=b"other")
    peer = attestor(chain, KEYS[0], *files)
    actions = peer.head(head(other, 1, 1))
    assert [type(action) for action in actions] == [Alarm] and "not what my records give" in actions[0].text
    assert peer.head(head(other, 1, 1)) == []  # said once
    assert Finalize(3) in peer.head(head(chain, 1, 1))


def test_a_head_beyond_the_records_is_waited_for(chain, files):
    short = chain.branch(2)
    peer = attestor(short, KEYS[0], *files)
    assert peer.head(head(chain, 1, 1)) == []
    peer = attestor(chain, KEYS[0], *files)
    assert Finalize(3) in peer.head(head(chain, 1, 1))


def test_a_full_disk_is_said_and_tried_again(chain, files):
    guard, log = files
    guard._db.execute("PRAGMA query_only = 1")
    alone = Electorate(ELECTORATE.addresses[:1], (1,))
    peer = attestor(chain, KEYS[0], guard, log)
    actions = peer.head(head(chain, electorate=alone))
    assert peer.current.signed is None
    assert any(isinstance(action, Note) and "MUR-500" in action.text for action in actions)
    guard._db.execute("PRAGMA query_only = 0")
    peer.head(head(chain, electorate=alone))
    assert peer.current.signed is not None


def test_without_its_log_it_still_attests(chain, files):
    guard, log = files
    log.close()
    peer = attestor(chain, KEYS[0], guard, log)
    actions = peer.head(head(chain))
    assert any(isinstance(action, Note) and "log of attestations" in action.text for action in actions)
    assert sum(isinstance(action, Send) for action in actions) == 2


def test_a_head_holds_the_fees_of_the_next_epoch(chain):
    with pytest.raises(ValueError):
        head(chain, 1, fees=(0,))
