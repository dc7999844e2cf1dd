"""Signed envelopes: bound to run, round, sender and body; nothing can be moved from one to another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht import wire
from dht.envelope import BODY_CAP, Envelope, seal, signed_digest
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity
from dht.wire import U64, decode, encode, message

RUN, OTHER_RUN = bytes(range(32)), bytes(32)
ALICE, BOB = Identity(b"\x01" * 32), Identity(b"\x02" * 32)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(frozen=True, slots=True)
class Vote:
    number: U64


@pytest.fixture(autouse=True, scope="module")
def _vote_tag() -> Iterator[None]:
    message(tag=0xEC, cap=64)(Vote)
    yield
    del wire.REGISTRY[0xEC], wire._BY_CLASS[Vote]


def refused(envelope: Envelope, run: bytes = RUN) -> Refusal | None:
    try:
        envelope.check(run)
    except ProtocolError as error:
        return error.refusal
    return None


@given(round_=st.integers(0, 2**64 - 1), number=st.integers(0, 2**64 - 1))
def test_sealed_sent_and_checked(round_: int, number: int):
    arrived = decode(encode(seal(ALICE, RUN, round_, Vote(number))))
    assert arrived.check(RUN) == ALICE.peer_id
    assert arrived.round == round_
    assert arrived.message() == Vote(number)


def test_another_run_is_refused_before_the_signature_is_looked_at():
    envelope = seal(ALICE, RUN, 3, Vote(1))
    assert refused(envelope, OTHER_RUN) == Refusal.WRONG_RUN
    assert refused(replace(envelope, signature=bytes(64)), OTHER_RUN) == Refusal.WRONG_RUN


def test_moved_to_another_run_round_sender_or_body():
    envelope = seal(ALICE, RUN, 3, Vote(1))
    moved = {
        "run": replace(envelope, run=OTHER_RUN),
        "round": replace(envelope, round=4),
        "sender": replace(envelope, sender=bytes(BOB.peer_id)),
        "body": replace(envelope, body=encode(Vote(2))),
        "signature": replace(envelope, signature=seal(BOB, RUN, 3, Vote(1)).signature),
    }
    assert refused(envelope) is None
    for part, forged in moved.items():
        assert refused(forged, forged.run) == Refusal.BAD_SIGNATURE, part


@given(data=st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject):
    envelope = seal(ALICE, RUN, 3, Vote(1))
    name = data.draw(st.sampled_from(["run", "round", "sender", "body", "signature"]))
    if name == "round":
        forged = replace(envelope, round=3 ^ (1 << data.draw(st.integers(0, 63))))
    else:
        content = bytearray(getattr(envelope, name))
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        forged = replace(envelope, **{name: bytes(content)})
    expected = {"run": {Refusal.WRONG_RUN}, "sender": {Refusal.BAD_SIGNATURE, Refusal.OUT_OF_BOUNDS}}
    assert refused(forged) in expected.get(name, {Refusal.BAD_SIGNATURE})


def test_the_high_s_twin_is_refused():
    envelope = seal(ALICE, RUN, 3, Vote(1))
    twin = (ORDER - int.from_bytes(envelope.signature[32:], "big")).to_bytes(32, "big")
    assert refused(replace(envelope, signature=envelope.signature[:32] + twin)) == Refusal.BAD_SIGNATURE


def test_a_sender_that_is_no_secp256k1_peer_is_refused():
    envelope = seal(ALICE, RUN, 3, Vote(1))
    assert refused(replace(envelope, sender=bytes(39))) == Refusal.OUT_OF_BOUNDS


def test_a_signature_of_the_bare_body_is_not_enough():
    frame = encode(Vote(1))
    bare = Envelope(RUN, 3, bytes(ALICE.peer_id), frame, ALICE.sign(wire.digest("vote", frame)))
    assert refused(bare) == Refusal.BAD_SIGNATURE


def test_one_message_has_one_sealed_form_and_a_digest_of_its_own():
    envelope = seal(ALICE, RUN, 3, Vote(1))
    assert encode(envelope) == encode(seal(ALICE, RUN, 3, Vote(1)))
    assert envelope.signed_digest() == signed_digest(RUN, 3, ALICE.peer_id, encode(Vote(1)))
    others = {
        seal(who, RUN, round_, Vote(number)).signed_digest()
        for who in (ALICE, BOB)
        for round_ in (3, 4)
        for number in (1, 2)
    }
    assert len(others) == 8


def test_a_body_that_is_no_message_is_refused_when_opened():
    frame = b"\x00\x80"
    envelope = Envelope(RUN, 3, bytes(ALICE.peer_id), frame, ALICE.sign(signed_digest(RUN, 3, ALICE.peer_id, frame)))
    assert envelope.check(RUN) == ALICE.peer_id
    with pytest.raises(ProtocolError) as caught:
        envelope.message()
    assert caught.value.refusal == Refusal.UNKNOWN_TAG


def test_bodies_up_to_the_cap_fit():
    frame = bytes(BODY_CAP)
    envelope = Envelope(RUN, 2**64 - 1, bytes(ALICE.peer_id), frame, bytes(64))
    assert decode(encode(envelope)) == envelope
    with pytest.raises(ProtocolError) as caught:
        encode(replace(envelope, body=frame + b"\0"))
    assert caught.value.refusal == Refusal.OUT_OF_BOUNDS
