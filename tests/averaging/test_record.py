"""Records: one encoding, one hash, one void record, tallies that add up."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.params import MAX_COHORTS
from averaging.record import (
    MAX_LOST_CHUNKS,
    MAX_SURVIVORS,
    RECORD_CAP,
    Founding,
    Record,
    Survivor,
    check_founding,
    check_successor,
    found,
    record_hash,
    void_record,
)
from averaging.tally import Share, Tally
from dht import merkle
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, encode

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "record.json").read_text())
RUN = hashlib.sha256(b"vector run").digest()
KEYS = [Identity(hashlib.sha256(b"vector %d" % i).digest()) for i in range(4)]
FOUNDER = KEYS[0].peer_id
MEMBERS = tuple(sorted(key.peer_id for key in KEYS))


def genesis() -> Record:
    return found(KEYS[0], RUN, MEMBERS, b"\x01" * 32, b"\x02" * 32).message().record()


def successor(head: Record, tally: Tally) -> Record:
    survivors = tuple(Survivor(member, 100, 2) for member in MEMBERS)
    record = replace(void_record(head), void=False, survivors=survivors, state_root=b"\x07" * 32)
    return replace(record, tally_root=tally.apply(record).root())


def test_the_vectors_hold():
    founding = decode_as(Envelope, bytes.fromhex(VECTORS["founding_envelope"]))
    start = check_founding(founding, RUN, FOUNDER).record()
    assert encode(start).hex() == VECTORS["founding_record"]
    assert start.hash().hex() == VECTORS["founding_hash"]
    record = decode_as(Record, bytes.fromhex(VECTORS["record"]))
    assert record.hash().hex() == VECTORS["record_hash"] == record_hash(encode(record)).hex()
    assert encode(void_record(record)).hex() == VECTORS["void_record"]
    assert void_record(record).hash().hex() == VECTORS["void_hash"]
    tally = check_successor(record, start, Tally())
    assert [tally.shares[peer].leaf(peer).hex() for peer in tally.peers()] == VECTORS["tally_leaves"]
    assert tally.root().hex() == VECTORS["tally_root"]
    again = found(KEYS[0], RUN, tuple(reversed(MEMBERS)), b"\x01" * 32, b"\x02" * 32)
    assert encode(again).hex() == VECTORS["founding_envelope"]


def test_the_void_record_follows_from_its_parent_alone():
    head = genesis()
    void = void_record(head)
    assert (void.round, void.parent, void.state_root, void.tally_root) == (
        1,
        head.hash(),
        head.state_root,
        head.tally_root,
    )
    assert check_successor(void, head, Tally()) == Tally()
    assert void_record(void).hash() != void.hash()


def test_the_largest_record_fits_its_cap():
    top = 2**32 - 1
    survivors = tuple(Survivor(bytes(MEMBERS[0]), 2**64 - 1, top) for _ in range(MAX_SURVIVORS))
    lost = (top,) * MAX_LOST_CHUNKS
    out = (2**16 - 1,) * MAX_COHORTS
    full = replace(
        genesis(), round=2**64 - 1, survivors=survivors, lost_chunks=lost, left_out=out, attempt=top, loss=top
    )
    assert len(encode(full)) <= RECORD_CAP


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"run": b"\x09" * 32}, Refusal.WRONG_RUN),
        ({"round": 2}, Refusal.STALE),
        ({"round": 0}, Refusal.STALE),
        ({"parent": b"\x09" * 32}, Refusal.BAD_HASH),
        ({"tally_root": b"\x09" * 32}, Refusal.BAD_HASH),
        ({"survivors": ()}, Refusal.OUT_OF_BOUNDS),
        ({"survivors": (Survivor(MEMBERS[1], 1, 1), Survivor(MEMBERS[0], 1, 1))}, Refusal.OUT_OF_BOUNDS),
        ({"survivors": (Survivor(MEMBERS[0], 1, 1), Survivor(MEMBERS[0], 2, 1))}, Refusal.OUT_OF_BOUNDS),
        ({"survivors": (Survivor(b"\x00" * 39, 1, 1),)}, Refusal.OUT_OF_BOUNDS),
        ({"lost_chunks": (3, 3)}, Refusal.OUT_OF_BOUNDS),
        ({"left_out": (2, 1)}, Refusal.OUT_OF_BOUNDS),
        ({"void": True}, Refusal.BAD_HASH),
    ],
)
def test_what_does_not_follow_from_the_head_is_refused(change: dict[str, object], refusal: Refusal):
    head = genesis()
    record = successor(head, Tally())
    assert check_successor(record, head, Tally()).root() == record.tally_root
    with pytest.raises(ProtocolError) as caught:
        check_successor(replace(record, **change), head, Tally())
    assert caught.value.refusal is refusal


@pytest.mark.parametrize(
    ("envelope", "refusal"),
    [
        (found(KEYS[1], RUN, MEMBERS, b"s" * 32, b"n" * 32), Refusal.NOT_A_MEMBER),
        (found(KEYS[0], b"\x09" * 32, MEMBERS, b"s" * 32, b"n" * 32), Refusal.WRONG_RUN),
        (seal(KEYS[0], RUN, 0, Founding(b"\x09" * 32, MEMBERS, b"s" * 32, b"n" * 32)), Refusal.WRONG_RUN),
        (seal(KEYS[0], RUN, 1, Founding(RUN, MEMBERS, b"s" * 32, b"n" * 32)), Refusal.STALE),
        (seal(KEYS[0], RUN, 0, Founding(RUN, MEMBERS[::-1], b"s" * 32, b"n" * 32)), Refusal.OUT_OF_BOUNDS),
        (seal(KEYS[0], RUN, 0, Founding(RUN, MEMBERS[:1] * 2, b"s" * 32, b"n" * 32)), Refusal.OUT_OF_BOUNDS),
        (seal(KEYS[0], RUN, 0, genesis()), Refusal.UNEXPECTED),
        (replace(found(KEYS[0], RUN, MEMBERS, b"s" * 32, b"n" * 32), signature=bytes(64)), Refusal.BAD_SIGNATURE),
    ],
)
def test_a_founding_counts_only_from_the_founder_and_in_one_form(envelope: Envelope, refusal: Refusal):
    with pytest.raises(ProtocolError) as caught:
        check_founding(envelope, RUN, FOUNDER)
    assert caught.value.refusal is refusal


def test_another_founding_is_another_chain():
    first, second = (found(KEYS[0], RUN, MEMBERS, b"s" * 32, nonce * 32).message().record() for nonce in (b"a", b"b"))
    assert first.hash() != second.hash()


contributions = st.lists(
    st.dictionaries(
        st.sampled_from(MEMBERS), st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=4
    ),
    max_size=5,
)


def record_of(share: dict[PeerId, tuple[int, int]]) -> Record:
    survivors = tuple(Survivor(peer, *share[peer]) for peer in sorted(share))
    return replace(void_record(genesis()), void=not survivors, survivors=survivors)


@given(contributions, st.randoms())
def test_tallies_add_up_in_any_order_and_prove_each_share(rounds: list[dict[PeerId, tuple[int, int]]], random):
    tally = Tally()
    for share in rounds:
        tally = tally.apply(record_of(share))
    shuffled = Tally()
    for share in random.sample(rounds, len(rounds)):
        shuffled = shuffled.apply(record_of(share))
    assert shuffled.root() == tally.root()
    for peer in MEMBERS:
        tokens = sum(share[peer][0] for share in rounds if peer in share)
        chunks = sum(share[peer][1] for share in rounds if peer in share)
        seen = sum(peer in share for share in rounds)
        assert tally.shares.get(peer, Share()) == Share(tokens, seen, chunks)
        if seen:
            index, path = tally.proof(peer)
            leaf = merkle.leaf_hash(tally.shares[peer].leaf(peer))
            assert merkle.root_from_proof(leaf, index, len(tally.shares), path) == tally.root()


def test_a_share_that_nobody_has_cannot_be_proved():
    with pytest.raises(KeyError):
        Tally().proof(bytes(FOUNDER))


def test_founding_and_void_rounds_give_nobody_anything():
    head = genesis()
    tally = Tally().apply(successor(head, Tally()))
    assert tally.apply(head) is tally
    assert tally.apply(void_record(head)) is tally
