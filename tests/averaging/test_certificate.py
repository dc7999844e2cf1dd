"""Certificates: a quorum of one committee's precommits for one record in one view, and nothing less."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.ballots import NIL, PRECOMMIT, PREVOTE, Ballot, Certificate, ProofOfLock
from averaging.certificate import draw_committee, faulty, proposers, quorum, verify, verify_proof
from averaging.record import Record, found, void_record
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, encode

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "record.json").read_text())
RUN = hashlib.sha256(b"certificate run").digest()
KEYS = sorted((Identity(bytes([0, *[7] * 30, i + 1])) for i in range(5)), key=lambda key: key.peer_id)
COMMITTEE = tuple(key.peer_id for key in KEYS[:4])
RECORD = void_record(found(KEYS[0], RUN, COMMITTEE, b"s" * 32, b"n" * 32).message().record())


def sign(ballot: Ballot, signers: tuple[int, ...], *, run: bytes = RUN, round_: int = 1) -> tuple[bytes, ...]:
    return tuple(seal(KEYS[i], run, round_, ballot).signature for i in signers)


def certificate(signers: tuple[int, ...] = (0, 1, 3), view: int = 2) -> Certificate:
    ballot = Ballot(1, view, PRECOMMIT, RECORD.hash())
    return Certificate(1, view, RECORD.hash(), signers, sign(ballot, signers))


def test_a_quorum_certifies():
    verify(certificate(), RECORD, COMMITTEE, RUN)
    verify(certificate((0, 1, 2, 3)), RECORD, COMMITTEE, RUN)


def test_the_vector_holds():
    vector = decode_as(Certificate, bytes.fromhex(VECTORS["certificate"]))
    record = decode_as(Record, bytes.fromhex(VECTORS["record"]))
    verify(vector, record, record.members(), record.run)
    envelope = decode_as(Envelope, bytes.fromhex(VECTORS["ballot_envelope"]))
    assert envelope.body.hex() == VECTORS["ballot"]
    assert envelope.signature == vector.signatures[0]
    assert [peer.hex() for peer in proposers(record.members(), record.parent)] == VECTORS["proposers"]


def altered() -> dict[str, Certificate]:
    good, value = certificate(), RECORD.hash()
    return {
        "too few": certificate((0, 1)),
        "none": certificate(()),
        "repeated": certificate((0, 1, 1)),
        "out of order": certificate((1, 0, 3)),
        "outside": certificate((0, 1, 4)),
        "missing signature": replace(good, signatures=good.signatures[:2]),
        "one signature twice": replace(good, signatures=good.signatures[:1] * 3),
        "another view": replace(good, view=1),
        "another round": replace(good, round=2),
        "another value": replace(good, value=b"\x01" * 32),
        "nil": replace(good, value=NIL, signatures=sign(Ballot(1, 2, PRECOMMIT, NIL), (0, 1, 3))),
        "prevotes": replace(good, signatures=sign(Ballot(1, 2, PREVOTE, value), (0, 1, 3))),
        "another run's": replace(good, signatures=sign(Ballot(1, 2, PRECOMMIT, value), (0, 1, 3), run=bytes(32))),
        "another round's": replace(good, signatures=sign(Ballot(1, 2, PRECOMMIT, value), (0, 1, 3), round_=2)),
        "zeros": replace(good, signatures=(bytes(64),) * 3),
    }


@pytest.mark.parametrize("what", altered())
def test_anything_less_is_refused(what: str):
    with pytest.raises(ProtocolError) as caught:
        verify(altered()[what], RECORD, COMMITTEE, RUN)
    assert caught.value.refusal is Refusal.BAD_CERTIFICATE


def test_it_certifies_one_record_for_one_committee_of_one_run():
    other = replace(RECORD, attempt=1)
    for record, committee, run in [(other, COMMITTEE, RUN), (RECORD, COMMITTEE[::-1], RUN), (RECORD, COMMITTEE, NIL)]:
        with pytest.raises(ProtocolError) as caught:
            verify(certificate(), record, committee, run)
        assert caught.value.refusal is Refusal.BAD_CERTIFICATE


def test_a_proof_of_lock_is_made_of_prevotes():
    value, signers = RECORD.hash(), (1, 2, 3)
    prevotes = sign(Ballot(1, 0, PREVOTE, value), signers)
    proof = ProofOfLock(1, 0, value, encode(RECORD), signers, prevotes)
    assert verify_proof(proof, COMMITTEE, RUN) == RECORD
    precommits = replace(proof, signatures=sign(Ballot(1, 0, PRECOMMIT, value), signers))
    for bad, refusal in [
        (precommits, Refusal.BAD_CERTIFICATE),
        (replace(proof, signers=(1, 2), signatures=prevotes[:2]), Refusal.BAD_CERTIFICATE),
        (replace(proof, record=encode(replace(RECORD, attempt=1))), Refusal.BAD_HASH),
    ]:
        with pytest.raises(ProtocolError) as caught:
            verify_proof(bad, COMMITTEE, RUN)
        assert caught.value.refusal is refusal


@given(st.integers(1, 64))
def test_two_quorums_share_an_honest_member_and_the_honest_are_a_quorum(n: int):
    assert 2 * quorum(n) - n > faulty(n)
    assert n - faulty(n) >= quorum(n)
    assert 3 * faulty(n) < n
    assert 3 * quorum(n) > 2 * n


def test_committees_are_drawn_by_the_beacon_only_when_there_are_too_many():
    peers = [PeerId(COMMITTEE[0][:7] + i.to_bytes(32, "big")) for i in range(80)]
    assert draw_committee(peers[:64], b"a" * 32) == tuple(peers[:64])
    first, second = draw_committee(peers, b"a" * 32), draw_committee(peers[::-1], b"b" * 32)
    assert len(first) == len(set(first)) == len(second) == 64
    assert first != second
    assert first == draw_committee(peers[::-1], b"a" * 32) == tuple(sorted(first))
    assert sorted(proposers(first, b"c" * 32)) == list(first) != proposers(first, b"d" * 32)
