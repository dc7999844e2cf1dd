"""What a member thinks of a record: its own, a quorum's, or none yet; and void only for who gave up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from averaging.agreement import Verdict
from averaging.attesting import Attestations
from averaging.certificate import quorum
from averaging.messages import Attest
from averaging.record import Record, Survivor, found, void_record
from averaging.tally import Tally
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.wire import digest, encode
from tests.averaging.cohort_net import RUN, identity

N = 8
FOUNDING = found(identity(0), RUN, tuple(identity(i).peer_id for i in range(N)), digest("state"), bytes(32))
HEAD = FOUNDING.message().record()
COMMITTEE = HEAD.members()
KEYS = {identity(i).peer_id: identity(i) for i in range(20)}


def record(state: str = "next") -> Record:
    survivors = tuple(Survivor(peer, 5, 1) for peer in COMMITTEE)
    draft = Record(
        RUN, 1, HEAD.hash(), False, 0, bytes(32), bytes(32), bytes(32), survivors, (), (), 0, digest(state), bytes(32)
    )
    return replace(draft, tally_root=Tally().apply(draft).root())


def attest(box: Attestations, peer, value: Record) -> Envelope:
    message = Attest(1, value.hash(), encode(value))
    envelope = seal(KEYS[peer], RUN, 1, message)
    box.add(peer, message, envelope)
    return envelope


@pytest.fixture
def box() -> Attestations:
    return Attestations(HEAD, Tally(), COMMITTEE)


def test_my_own_record_is_valid_and_anothers_is_not_known_yet(box):
    assert box.judge(record()) is Verdict.UNKNOWN_YET
    box.mine = record()
    assert box.judge(record()) is Verdict.VALID
    assert box.judge(record("other")) is Verdict.UNKNOWN_YET
    assert box.propose() == record()


def test_a_quorum_makes_a_record_valid_for_who_did_not_compute_it(box):
    for peer in COMMITTEE[: quorum(N) - 1]:
        attest(box, peer, record())
    assert box.witnessed() is None
    assert box.judge(record()) is Verdict.UNKNOWN_YET
    attest(box, COMMITTEE[-1], record())
    assert box.witnessed() == record() == box.propose()
    assert box.judge(record()) is Verdict.VALID


def test_only_the_committees_word_counts(box):
    strangers = [identity(i).peer_id for i in range(N, 20)]
    for peer in (*COMMITTEE[: quorum(N) - 1], *strangers):
        attest(box, peer, record())
    assert box.witnessed() is None


def test_attestations_of_two_records_are_not_added_up(box):
    for k, peer in enumerate(COMMITTEE):
        attest(box, peer, record(str(k % 2)))
    assert box.witnessed() is None


def test_a_second_attestation_is_equivocation_and_does_not_count(box):
    attest(box, COMMITTEE[0], record())
    attest(box, COMMITTEE[0], record())
    with pytest.raises(ProtocolError) as caught:
        attest(box, COMMITTEE[0], record("other"))
    assert caught.value.refusal is Refusal.EQUIVOCATION


def test_void_is_valid_for_who_gave_up_and_never_against_a_quorum(box):
    void = void_record(HEAD)
    assert box.judge(void) is Verdict.UNKNOWN_YET
    box.given_up = True
    assert box.judge(void) is Verdict.VALID
    assert box.propose() == void
    assert box.judge(replace(void, state_root=bytes(32))) is Verdict.INVALID
    for peer in COMMITTEE[: quorum(N)]:
        attest(box, peer, record())
    assert box.judge(void) is Verdict.INVALID
    assert box.propose() == record()


@pytest.mark.parametrize(
    "change",
    [{"round": 2}, {"parent": bytes(32)}, {"run": bytes(32)}, {"tally_root": bytes(32)}, {"survivors": ()}],
    ids=str,
)
def test_what_does_not_follow_from_the_head_is_invalid_whoever_attests_it(box, change):
    bad = replace(record(), **change)
    for peer in COMMITTEE:
        attest(box, peer, bad)
    assert box.judge(bad) is Verdict.INVALID


def test_the_proof_for_who_restarted_is_a_quorum_of_signed_attestations(box):
    sent = [attest(box, peer, record()) for peer in COMMITTEE[: quorum(N) - 1]]
    assert box.proof() == ()
    attest(box, COMMITTEE[-2], record("other"))
    sent.append(attest(box, COMMITTEE[-1], record()))
    assert box.proof() == tuple(sent)
    other = Attestations(HEAD, Tally(), COMMITTEE)
    for envelope in box.proof():
        other.add(envelope.check(RUN), envelope.message(), envelope)
    assert other.judge(record()) is Verdict.VALID
