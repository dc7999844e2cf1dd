"""Agreement messages fit their caps at their bounds, and what a member stores of them is bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from averaging.ballot_box import VIEWS_AHEAD, VIEWS_BEHIND, BallotBox, Pair
from averaging.ballots import (
    MAX_COMMITTEE,
    MAX_VIEW,
    NIL,
    PRECOMMIT,
    PREVOTE,
    Ballot,
    Certificate,
    Decision,
    Gossip,
    Memory,
    ProofOfLock,
    Proposal,
)
from averaging.chain import ChainSegment
from averaging.record import RECORD_CAP, Record, found, void_record
from dht.envelope import BODY_CAP, Envelope, seal
from dht.errors import ProtocolError
from dht.identity import Identity
from dht.wire import encode, message_type

RUN = b"r" * 32
KEYS = [Identity(bytes([*[9] * 31, i + 1])) for i in range(4)]
MEMBERS = tuple(key.peer_id for key in KEYS)
RECORD = void_record(found(KEYS[0], RUN, MEMBERS, b"s" * 32, b"n" * 32).message().record())
OTHER = replace(RECORD, attempt=1)
TOP = 2**64 - 1


def largest() -> dict[str, object]:
    frame, value = b"\xff" * RECORD_CAP, b"\xff" * 32
    signers = (2**16 - 1,) * MAX_COMMITTEE
    signatures = (b"\xff" * 64,) * MAX_COMMITTEE
    proof = ProofOfLock(TOP, MAX_VIEW, value, frame, signers, signatures)
    proposal = Proposal(TOP, MAX_VIEW, value, MAX_VIEW + 1, frame, signers, signatures)
    ballot = Ballot(TOP, MAX_VIEW, PRECOMMIT, value)
    ballots = (seal(KEYS[0], RUN, TOP, ballot),) * (2 * MAX_COMMITTEE)
    proposed = (seal(KEYS[0], RUN, TOP, proposal),)
    certificate = Certificate(TOP, MAX_VIEW, value, signers, signatures)
    own = (*proposed, *ballots[:2])
    return {
        "ballot": ballot,
        "proposal": proposal,
        "proof": proof,
        "certificate": certificate,
        "decision": Decision(frame, encode(certificate)),
        "gossip": Gossip(TOP, ballots, proposed, (proof,)),
        "memory": Memory(TOP, MAX_VIEW, 2, own, ballots[:MAX_COMMITTEE], MAX_VIEW + 1, value, (proof,)),
    }


@pytest.mark.parametrize("what", largest())
def test_the_largest_message_fits_its_cap_and_an_envelope(what: str):
    body = largest()[what]
    frame = encode(body)
    assert len(frame) <= message_type(type(body)).cap <= BODY_CAP


def test_a_chain_segment_fits_an_envelope():
    assert message_type(ChainSegment).cap <= BODY_CAP


@pytest.mark.parametrize("bad", [Ballot(1, MAX_VIEW + 1, 0, NIL), Ballot(1, 0, 2, NIL), Ballot(1, 0, 0, b"")])
def test_ballots_out_of_bounds_are_refused(bad: Ballot):
    with pytest.raises(ProtocolError):
        encode(bad)


def cast(box: BallotBox, index: int, view: int, kind: int, value: bytes) -> Pair | None:
    ballot = Ballot(1, view, kind, value)
    return box.add_ballot(index, ballot, seal(KEYS[index], RUN, 1, ballot))


def propose(box: BallotBox, view: int, record: Record) -> Pair | None:
    proposal = Proposal(1, view, record.hash(), 0, encode(record), (), ())
    return box.add_proposal(0, proposal, seal(KEYS[0], RUN, 1, proposal), record)


def test_only_the_first_ballot_counts_and_two_are_evidence_once():
    box = BallotBox(1, 4)
    value, other = RECORD.hash(), OTHER.hash()
    assert cast(box, 2, 0, PREVOTE, value) is None
    assert cast(box, 2, 0, PREVOTE, value) is None
    pair = cast(box, 2, 0, PREVOTE, other)
    assert pair is not None
    assert [envelope.message().value for envelope in pair] == [value, other]
    assert cast(box, 2, 0, PREVOTE, NIL) is None
    assert cast(box, 2, 1, PREVOTE, other) is None
    assert cast(box, 2, 0, PRECOMMIT, other) is None
    assert list(box.log(0).votes[PREVOTE]) == [value]
    assert len(box.contradictions) == 1


def test_two_proposals_of_one_view_are_evidence_and_the_first_stays():
    box = BallotBox(1, 4)
    assert propose(box, 0, RECORD) is None
    assert propose(box, 0, RECORD) is None
    assert propose(box, 0, OTHER) is not None
    held = box.log(0).proposal
    assert held is not None and held[0].value == RECORD.hash()
    assert box.record(OTHER.hash()) is None


def test_a_quorum_of_a_known_record_makes_proof_and_certificate():
    box = BallotBox(1, 4)
    for index in range(3):
        cast(box, index, 1, PREVOTE, RECORD.hash())
        cast(box, index, 1, PRECOMMIT, RECORD.hash())
        assert box.proof(-1) is None and box.certificate() is None
    propose(box, 1, RECORD)
    proven, certified = box.proof(0), box.certificate()
    assert proven is not None and proven[1] == RECORD and proven[0].signers == (0, 1, 2)
    assert certified is not None and certified[1] == RECORD and certified[0].view == 1
    assert box.proof(1) is None


def test_far_views_are_not_stored_but_tell_where_their_senders_are():
    box = BallotBox(1, 4)
    box.move_to(10)
    for view in (10 - VIEWS_BEHIND - 1, 10 + VIEWS_AHEAD + 1, MAX_VIEW):
        cast(box, 1, view, PREVOTE, NIL)
        propose(box, view, RECORD)
    assert box.logs() == []
    assert box.record(RECORD.hash()) is None
    cast(box, 2, 500, PREVOTE, NIL)
    reached = box.reached(2)
    assert reached is not None and reached[0] == 500
    assert {envelope.sender for envelope in reached[1]} == {bytes(MEMBERS[1]), bytes(MEMBERS[2])}
    assert box.reached(3) is None


def test_a_liar_cannot_make_the_box_grow():
    box = BallotBox(1, 4)
    for view in range(300):
        box.move_to(view)
        for offset in (-2, 0, 5, 100):
            record = replace(RECORD, attempt=view * 200 + offset + 2)
            propose(box, max(view + offset, 0), record)
            for value in (record.hash(), NIL):
                cast(box, 3, max(view + offset, 0), PREVOTE, value)
    kept = VIEWS_BEHIND + VIEWS_AHEAD + 1
    assert len(box.logs()) <= kept
    assert len(box._records) <= kept
    assert len(box._stored) <= 2 * kept
    assert len(box.contradictions) <= 2
    assert all(isinstance(envelope, Envelope) for envelope in box._stored)
