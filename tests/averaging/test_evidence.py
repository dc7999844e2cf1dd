"""Evidence proves what happened, to anybody, and nothing else: no altered byte, no honest peer, no other run."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging.ballots import PRECOMMIT, PREVOTE, Ballot, Proposal
from averaging.dealing import Seed
from averaging.evidence import WRONG_SEED, WRONG_SUM, CohortIndex, Evidence, claims, contradiction, name_of, verify
from averaging.messages import (
    Attest,
    AuditShares,
    Manifest,
    Missing,
    Ready,
    Receipt,
    Roster,
    Seat,
    Shares,
    SumHashes,
    Survivors,
    Unmask,
    Vote,
)
from averaging.statements import Statements
from averaging.survivors import bitmap
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.wire import REGISTRY, decode_as, digest, encode
from tests.averaging.cohort_net import RUN, CohortNet, identity
from tests.averaging.lies import two, wrong_seed, wrong_sum, wrong_sum_net

SID, HEAD = digest("sid"), digest("head")
A, B = digest("a"), digest("b")


def seat(i: int) -> Seat:
    return Seat(bytes(identity(i).peer_id), A, 100)


PAIRS: dict[str, tuple[Any, Any]] = {
    "two manifests": (Manifest(SID, 5, (A, B)), Manifest(SID, 5, (A, A))),
    "two receipts": (Receipt(SID, 1, (A[:16],)), Receipt(SID, 2, (A[:16],))),
    "two readys": (Ready(SID, (A, A, A)), Ready(SID, (A, A, B))),
    "two votes": (Vote(SID, 7, 7, A), Vote(SID, 7, 7, B)),
    "two unmasks": (Unmask(SID, 7, (A, A, A)), Unmask(SID, 3, (A, A, B))),
    "two sets of shares": (Shares(SID, bytes(100), (A, A, A)), Shares(SID, bytes(100), (A, A, B))),
    "two survivor sets": (Survivors(SID, 1, 7, 7, (bytes(64),)), Survivors(SID, 1, 3, 7, (bytes(64),))),
    "two sums": (SumHashes(SID, (3, 4), (A, A)), SumHashes(SID, (4, 5), (B, A))),
    "two rosters": (Roster(1, 2, HEAD, (seat(0),)), Roster(1, 2, HEAD, (seat(1),))),
    "two attestations": (Attest(1, A, b""), Attest(1, B, b"")),
    "two proposals": (Proposal(1, 2, A, 0, b"\x41\x80", (), ()), Proposal(1, 2, B, 0, b"\x41\x80", (), ())),
    "two prevotes": (Ballot(1, 3, PREVOTE, A), Ballot(1, 3, PREVOTE, B)),
    "two precommits": (Ballot(1, 3, PRECOMMIT, A), Ballot(1, 3, PRECOMMIT, B)),
}
COMPATIBLE: list[tuple[Any, Any]] = [
    (Manifest(SID, 5, (A,)), Manifest(digest("other sid"), 5, (B,))),
    (Ballot(1, 3, PREVOTE, A), Ballot(1, 4, PREVOTE, B)),
    (Ballot(1, 3, PREVOTE, A), Ballot(1, 3, PRECOMMIT, B)),
    (SumHashes(SID, (3,), (A,)), SumHashes(SID, (4,), (B,))),
    (SumHashes(SID, (3,), (A,)), SumHashes(SID, (3, 4), (A, B))),
    (Shares(SID, bytes(100), (A, A, A)), Shares(SID, bytes(101), (A, A, A))),
    (Survivors(SID, 1, 7, 7, (bytes(64),)), Survivors(SID, 2, 3, 7, (bytes(64),))),
    (Roster(1, 2, HEAD, (seat(0),)), Roster(1, 3, HEAD, (seat(1),))),
    (Missing(SID, (1,)), Missing(SID, (2,))),
    (AuditShares(SID, (A, A, A)), AuditShares(SID, (B, B, B))),
]


def refused(frame: bytes, refusal: Refusal | None = None, **facts: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        verify(frame, **facts)
    assert refusal is None or caught.value.refusal is refusal


# --- contradictions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PAIRS)
def test_two_messages_for_one_place_prove_their_signer_a_liar(kind):
    evidence = two(*PAIRS[kind])
    proof = verify(encode(evidence))
    assert (proof.kind, proof.accused, proof.run, proof.round) == (kind, identity(0).peer_id, RUN, 1)
    assert contradiction(evidence.second, evidence.first) == evidence


@pytest.mark.parametrize("kind", PAIRS)
def test_a_statement_book_finds_the_contradiction(kind):
    one, other = PAIRS[kind]
    frames = [encode(seal(identity(0), RUN, 1, message)) for message in (one, other)]
    book = Statements()
    assert book.contradicted(identity(0).peer_id, one, frames[0]) is None
    book.keep(identity(0).peer_id, one, frames[0])
    assert book.contradicted(identity(0).peer_id, one, frames[0]) is None
    assert book.contradicted(identity(1).peer_id, other, frames[1]) is None
    assert book.contradicted(identity(0).peer_id, other, frames[1]) == two(one, other)


@pytest.mark.parametrize(("one", "other"), COMPATIBLE)
def test_what_may_both_be_signed_proves_nothing(one, other):
    refused(encode(two(one, other)), Refusal.UNEXPECTED)


def test_a_contradiction_needs_one_signer_one_round_one_run_and_its_order():
    one, other = PAIRS["two votes"]
    good = two(one, other)
    refused(encode(replace(good, first=good.second, second=good.first)))
    refused(encode(replace(good, second=good.first)))
    refused(encode(replace(good, second=seal(identity(1), RUN, 1, good.second.message()))))
    refused(encode(replace(good, second=seal(identity(0), RUN, 2, good.second.message()))))
    refused(encode(replace(good, second=seal(identity(0), digest("other run"), 1, good.second.message()))))
    refused(encode(replace(good, second=replace(good.second, signature=good.first.signature))), Refusal.BAD_SIGNATURE)
    refused(encode(good), Refusal.WRONG_RUN, run=digest("other run"))


def test_every_claim_belongs_to_a_message_that_an_honest_peer_signs_once():
    """A message that may be said twice must make no claim; the list is short and read with care."""
    claiming = {type(message).__name__ for pair in PAIRS.values() for message in pair}
    assert claiming <= {row.cls.__name__ for row in REGISTRY.values()}
    for one, _ in COMPATIBLE[-2:]:
        assert claims(b"", one) == {}


# --- wrong sums -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "liar", "dead"), [(3, 0, None), (5, 2, None), (5, 2, 4), (8, 7, 1)])
def test_a_wrong_sum_is_proven_from_its_file_alone(n, liar, dead):
    evidence = wrong_sum(n, liar, dead)
    proof = verify(encode(evidence))
    roster = CohortNet(n).roster
    assert (proof.kind, proof.accused, proof.run) == (WRONG_SUM, roster.peers[liar], RUN)
    assert proof == verify(encode(evidence), RUN, 16)
    assert len(evidence.manifests) == n - (dead is not None)


def test_a_right_sum_proves_nothing():
    """The same evidence with the hash that the reducer should have signed: it is honest then."""
    net = wrong_sum_net()
    evidence = wrong_sum()
    honest = next(node.cohort for node in net.nodes if evidence.chunk in node.cohort.checks.truth)
    right = SumHashes(honest.sid, (evidence.chunk,), (honest.checks.truth[evidence.chunk],))
    signer = next(node.identity for node in net.nodes if bytes(node.identity.peer_id) == evidence.hashes.sender)
    refused(encode(replace(evidence, hashes=seal(signer, RUN, 1, right))), Refusal.UNEXPECTED)
    for index, node in enumerate(net.nodes):  # and nobody else's sums are any worse
        others = [item for item in net.messages(SumHashes, index)]
        if node.identity is not signer and others:
            shown = replace(evidence, hashes=seal(node.identity, RUN, 1, others[0]))
            refused(encode(shown), Refusal.UNEXPECTED)


def altered(evidence: Any) -> dict[str, Any]:
    """What somebody who wants to blame an honest reducer could change, each by itself."""
    signer = {bytes(identity(i).peer_id): identity(i) for i in range(64)}
    flipped = bytes([evidence.inputs[0][0] ^ 1]) + evidence.inputs[0][1:]
    manifest = decode_as(Manifest, evidence.manifests[0].body)
    wrong_hashes = list(manifest.hashes)
    wrong_hashes[evidence.chunk] = sha256(flipped).digest()
    other_manifest = seal(signer[evidence.manifests[0].sender], RUN, 1, replace(manifest, hashes=tuple(wrong_hashes)))
    vote = decode_as(Vote, evidence.votes[0].body)
    fewer = [
        seal(signer[envelope.sender], RUN, 1, replace(vote, survivors=bitmap({0, 1, 2}))) for envelope in evidence.votes
    ]
    return {
        "an input": replace(evidence, inputs=(flipped, *evidence.inputs[1:])),
        "an input and its manifest": replace(
            evidence, inputs=(flipped, *evidence.inputs[1:]), manifests=(other_manifest, *evidence.manifests[1:])
        ),
        "the order of inputs": replace(evidence, inputs=evidence.inputs[::-1]),
        "one input less": replace(evidence, inputs=evidence.inputs[1:], manifests=evidence.manifests[1:]),
        "another seed": replace(evidence, seeds=(bytes(31), *evidence.seeds[1:])),
        "one seed less": replace(evidence, seeds=evidence.seeds[1:]),
        "one vote less": replace(evidence, votes=evidence.votes[1:]),
        "one vote twice": replace(evidence, votes=(evidence.votes[0], *evidence.votes[:-1])),
        "votes for others": replace(evidence, votes=tuple(fewer)),
        "another chunk": replace(evidence, chunk=evidence.chunk + 1),
        "a chunk that does not exist": replace(evidence, chunk=10_000),
        "another cohort": replace(evidence, cohort=CohortIndex(0, 2)),
        "no cohort": replace(evidence, cohort=CohortIndex(1, 1)),
        "a roster without a Join": replace(
            evidence, seating=replace(evidence.seating, joins=evidence.seating.joins[1:])
        ),
        "another author": replace(evidence, hashes=replace(evidence.hashes, sender=evidence.votes[-1].sender)),
    }


@pytest.mark.parametrize("change", list(altered(wrong_sum())))
def test_evidence_of_a_wrong_sum_with_anything_changed_is_refused(change):
    refused(encode(altered(wrong_sum())[change]))


def test_a_sum_in_another_ring_is_judged_by_the_runs_own():
    """Without the run's manifest a sum is wrong only if it is so in every ring; who knows the ring sees through it."""
    net = CohortNet(5, audit_share=1.0)
    for i, node in enumerate(net.nodes):
        node.cohort = net.make_cohort(i)
    liar = net.nodes[2].cohort
    honest = liar.sums.computed
    first = liar.duties.of(2)[0]

    def in_bytes(chunk: int, author: int, ring: Any) -> None:
        if chunk == first:  # the right sum of the wrong ring: no carry from one byte to the next
            survivors = liar.certified.survivors
            inputs = [bytes(liar._input(i, chunk)) for i in survivors]
            from averaging.evidence import recompute
            from averaging.reducing import mask_keys

            keys = mask_keys(liar.roster, survivors, liar.opening.seeds)
            ring = recompute(chunk, tuple(inputs), 8, *keys).view(ring.dtype)
        honest(chunk, author, ring)

    liar.sums.computed = in_bytes
    net.run()
    (frame, *_) = [frame for node in net.nodes for frame in node.cohort.proofs]
    assert verify(frame, RUN, 16).kind == WRONG_SUM
    refused(frame, Refusal.UNEXPECTED)


# --- wrong seeds ----------------------------------------------------------------------------------------------------


def test_a_dealer_of_another_seed_is_proven_from_its_file_alone():
    evidence = wrong_seed()
    proof = verify(encode(evidence))
    assert (proof.kind, proof.accused) == (WRONG_SEED, CohortNet(5).roster.peers[2])
    assert evidence.seed == Seed.SELF


def test_a_dealers_right_shares_prove_nothing():
    net = CohortNet(5).run()
    cohort = net.nodes[0].cohort
    dealt = net.nodes[2].cohort._dealing
    held = tuple(
        replace(wrong_seed().held[k], holder=k, share=dealt._dealt[Seed.SELF][k]) for k in range(cohort.threshold)
    )
    shares = decode_as(Envelope, cohort.said.find(cohort.peers[2], "Shares", cohort.sid))
    refused(encode(replace(wrong_seed(), seating=cohort.seating, shares=shares, held=held)), Refusal.UNEXPECTED)


def test_shares_that_were_never_dealt_prove_nothing():
    evidence = wrong_seed()
    spoiled = replace(evidence.held[0], share=bytes(32))
    refused(encode(replace(evidence, held=(spoiled, *evidence.held[1:]))), Refusal.BAD_SHARE)
    refused(encode(replace(evidence, held=evidence.held[1:])), Refusal.OUT_OF_BOUNDS)
    refused(encode(replace(evidence, held=(evidence.held[0], *evidence.held[:-1]))), Refusal.OUT_OF_BOUNDS)
    refused(encode(replace(evidence, seed=Seed.AUDIT)), Refusal.BAD_SHARE)


# --- any change -----------------------------------------------------------------------------------------------------

PIECES: dict[str, Evidence] = {
    "contradiction": two(*PAIRS["two sums"]),
    "wrong sum": wrong_sum(3, 0),
    "wrong seed": wrong_seed(),
}


@pytest.mark.parametrize("kind", PIECES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_evidence_with_any_bit_changed_is_refused(kind, data):
    """Nothing in a piece of evidence is there for nothing: no single bit of it can be another."""
    frame = bytearray(encode(PIECES[kind]))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    refused(bytes(frame))


@pytest.mark.parametrize("kind", PIECES)
def test_truncated_evidence_is_refused(kind):
    frame = encode(PIECES[kind])
    for size in (0, 1, 2, len(frame) // 2, len(frame) - 1):
        refused(frame[:size])
    refused(frame + b"\0")


def test_a_name_is_of_one_piece():
    names = {name_of(encode(piece)) for piece in PIECES.values()}
    assert len(names) == 3


def test_other_messages_are_no_evidence():
    refused(encode(Missing(SID, (1,))), Refusal.UNEXPECTED)


# --- golden files ---------------------------------------------------------------------------------------------------

VECTORS = Path(__file__).parents[1] / "vectors" / "evidence.json"


@pytest.mark.parametrize("row", json.loads(VECTORS.read_text()), ids=lambda row: row["kind"])
def test_golden_evidence_still_proves_what_it_proved(row):
    """Files that somebody kept must stay verifiable: a change here is a change of the format."""
    frame = bytes.fromhex(row["frame"])
    proof = verify(frame)
    assert (proof.kind, str(proof.accused), proof.round) == (row["kind"], row["accused"], row["round"])
    assert (proof.run.hex(), proof.sid.hex()) == (row["run"], row["sid"])
    assert name_of(frame).hex() == row["name"]
