"""Chains: only certified successors of the head, whoever sent them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from averaging import chain as chains
from averaging.ballots import PRECOMMIT, Ballot, Certificate
from averaging.certificate import quorum
from averaging.chain import Chain, ChainRequest, ChainSegment, unpack, verify_segment
from averaging.record import MAX_LOST_CHUNKS, Record, Survivor, found, void_record
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, encode

RUN = b"c" * 32
_IDENTITIES = [Identity(bytes([*[3] * 31, i + 1])) for i in range(6)]
KEYS = {key.peer_id: key for key in _IDENTITIES}
PEERS = tuple(sorted(KEYS))
FOUNDER = _IDENTITIES[0].peer_id
FOUNDING = found(_IDENTITIES[0], RUN, PEERS[:4], b"s" * 32, b"n" * 32)


def certify(record: Record, committee: tuple[PeerId, ...], signers: Iterable[int] | None = None) -> Certificate:
    chosen = tuple(range(quorum(len(committee))) if signers is None else signers)
    ballot = Ballot(record.round, 0, PRECOMMIT, record.hash())
    signatures = tuple(seal(KEYS[committee[i]], RUN, record.round, ballot).signature for i in chosen)
    return Certificate(record.round, 0, record.hash(), chosen, signatures)


def successor(chain: Chain, survivors: tuple[PeerId, ...] = PEERS[:4], **change: object) -> Record:
    rows = tuple(Survivor(peer, 10 + i, 1) for i, peer in enumerate(survivors))
    record = replace(void_record(chain.head), void=False, survivors=rows, **change)
    return replace(record, tally_root=chain.tally.apply(record).root())


def grow(chain: Chain, record: Record) -> None:
    chain.append(record, certify(record, chain.committee()))


@pytest.fixture
def chain() -> Chain:
    return Chain(RUN, FOUNDER, FOUNDING)


def test_it_starts_with_the_founding(chain: Chain):
    assert chain.head == FOUNDING.message().record() == chain.record(0)
    assert chain.committee() == PEERS[:4]
    assert chain.beacon == chain.head.hash()
    assert chain.decision(0) is None is chain.decision(1)


def test_survivors_become_the_committee_and_void_rounds_keep_it(chain: Chain):
    grow(chain, successor(chain, PEERS[1:6], state_root=b"1" * 32))
    assert chain.committee() == PEERS[1:6]
    beacon = chain.beacon
    grow(chain, void_record(chain.head))
    assert chain.committee() == PEERS[1:6]
    assert chain.head.state_root == b"1" * 32
    assert chain.beacon != beacon
    grow(chain, successor(chain, PEERS[2:5]))
    assert chain.committee() == PEERS[2:5]
    assert chain.tally.shares[bytes(PEERS[2])].rounds == 2
    assert [chain.record(i).round for i in range(4)] == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        chain.record(4)


def test_what_is_not_certified_by_the_committee_changes_nothing(chain: Chain):
    record = successor(chain)
    before = chain.tip
    strangers = (*PEERS[2:6],)
    for bad in (
        certify(record, PEERS[:4], (0, 1)),
        certify(record, strangers),
        certify(void_record(chain.head), PEERS[:4]),
    ):
        with pytest.raises(ProtocolError) as caught:
            chain.append(record, bad)
        assert caught.value.refusal is Refusal.BAD_CERTIFICATE
    assert chain.tip == before
    assert chain.decision(1) is None


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"parent": b"x" * 32}, Refusal.BAD_HASH),
        ({"round": 2}, Refusal.STALE),
        ({"run": b"x" * 32}, Refusal.WRONG_RUN),
        ({"tally_root": b"x" * 32}, Refusal.BAD_HASH),
    ],
)
def test_even_a_certified_record_must_follow_from_the_head(chain: Chain, change: dict, refusal: Refusal):
    record = replace(successor(chain), **change)
    with pytest.raises(ProtocolError) as caught:
        grow(chain, record)
    assert caught.value.refusal is refusal
    assert chain.head.round == 0


def history(chain: Chain, rounds: int) -> Chain:
    for number in range(rounds):
        grow(chain, void_record(chain.head) if number % 3 == 2 else successor(chain, PEERS[number % 2 : 5]))
    return chain


def test_a_joiner_checks_everything_from_run_id_and_founder(chain: Chain):
    history(chain, 7)
    frame = encode(chain.segment(0))
    segment = decode_as(ChainSegment, frame)
    joined = verify_segment(RUN, FOUNDER, segment.founding, [unpack(link) for link in segment.links])
    assert joined.tip == chain.tip
    assert segment.head_round == 7
    for founder, run in [(PEERS[5], RUN), (FOUNDER, b"x" * 32)]:
        with pytest.raises(ProtocolError):
            verify_segment(run, founder, segment.founding, [])


@pytest.mark.parametrize("tamper", ["drop", "swap", "forge", "repeat"])
def test_a_tampered_segment_is_refused_and_leaves_the_chain_alone(chain: Chain, tamper: str):
    donor = history(Chain(RUN, FOUNDER, FOUNDING), 4)
    links = [donor.link(i) for i in range(1, 5)]
    if tamper == "drop":
        del links[1]
    elif tamper == "swap":
        links[1], links[2] = links[2], links[1]
    elif tamper == "repeat":
        links.insert(1, links[0])
    else:
        links[3] = (replace(links[3][0], state_root=b"x" * 32), links[3][1])
    before = chain.tip
    with pytest.raises(ProtocolError):
        chain.verify_segment(links)
    assert chain.tip == before
    assert chain.verify_segment([donor.link(i) for i in range(1, 5)]) == donor.tip


def test_extending_takes_what_is_new_and_notices_another_history(chain: Chain):
    donor = history(Chain(RUN, FOUNDER, FOUNDING), 5)
    half = replace(donor.segment(0), links=donor.segment(0).links[:2])
    assert chain.extend(half) == 2
    assert chain.extend(donor.segment(0)) == 3
    assert chain.extend(donor.segment(2)) == 0
    assert chain.tip == donor.tip
    other = Chain(RUN, FOUNDER, FOUNDING)
    grow(other, successor(other, PEERS[:3]))
    with pytest.raises(ProtocolError) as caught:
        chain.extend(other.segment(0))
    assert caught.value.refusal is Refusal.EQUIVOCATION
    elsewhere = Chain(RUN, FOUNDER, found(_IDENTITIES[0], RUN, PEERS[:4], b"s" * 32, b"m" * 32))
    with pytest.raises(ProtocolError) as caught:
        chain.extend(elsewhere.segment(0))
    assert caught.value.refusal is Refusal.BAD_HASH
    assert chain.tip == donor.tip


def test_the_good_links_before_a_bad_one_stay(chain: Chain):
    donor = history(Chain(RUN, FOUNDER, FOUNDING), 3)
    segment = donor.segment(0)
    bad = replace(
        segment, links=(*segment.links[:2], segment.links[0], replace(segment.links[2], certificate=b"\x46\x80"))
    )
    with pytest.raises(ProtocolError):
        chain.extend(bad)
    assert chain.head == donor.record(2)


def test_long_histories_come_in_segments_under_a_mebibyte(chain: Chain):
    lost = tuple(range(2**31, 2**31 + MAX_LOST_CHUNKS))
    for _ in range(52):
        grow(chain, successor(chain, lost_chunks=lost))
    joined, segments = Chain(RUN, FOUNDER, FOUNDING), 0
    while joined.head.round < chain.head.round:
        segment = chain.segment(joined.head.round)
        assert len(encode(segment)) <= 1 << 20
        assert joined.extend(segment) > 0
        segments += 1
    assert segments > 1
    assert joined.tip == chain.tip
    assert chain.segment(10**9).links == ()


def test_many_small_links_are_bounded_by_number(chain: Chain, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chains, "MAX_LINKS", 3)
    history(chain, 5)
    assert len(chain.segment(0).links) == 3
    assert decode_as(ChainRequest, encode(ChainRequest(3))).after_round == 3


def test_a_decision_answers_who_still_asks_about_an_old_round(chain: Chain):
    history(chain, 2)
    decision = chain.decision(1)
    assert decision is not None
    assert unpack(decision) == chain.link(1)
