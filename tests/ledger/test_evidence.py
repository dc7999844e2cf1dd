"""Evidence proves itself, and an honest attestor's signatures never make any."""

from dataclasses import replace

import pytest

from dht.errors import ProtocolError, Refusal
from dht.identity import Identity
from dht.wire import decode, digest, encode
from ledger.evidence import SignedCheckpoint, equivocation, verify
from ledger.signatures import key_address, recover, sign
from tests.ledger.headers import DOMAIN, OTHER_DOMAIN, header

LIAR, OTHER = (Identity(digest("evidence", name)) for name in (b"liar", b"other"))


def signed(head, key=LIAR, domain=DOMAIN):
    return SignedCheckpoint(head, sign(key, head.digest(domain)))


ONE, TWO = signed(header()), signed(header(root=b"x" * 32))


def test_two_headers_for_one_place():
    frame = equivocation(DOMAIN, ONE, TWO)
    assert frame == equivocation(DOMAIN, TWO, ONE)  # one form
    proof = verify(frame)
    assert proof.accused == key_address(LIAR.peer_id)
    assert {proof.first, proof.second} == {ONE, TWO} and proof.domain == DOMAIN
    for at, each in ((0, proof.first), (2, proof.second)):
        assert recover(each.header.digest(DOMAIN), proof.rvs[at] + proof.rvs[at + 1]) == proof.accused


@pytest.mark.parametrize(
    "second",
    [
        ONE,
        signed(header(epoch=2, root=b"x" * 32)),
        signed(header(fork_nonce=1, root=b"x" * 32)),
        signed(header(run=b"q" * 32, root=b"x" * 32)),
        signed(header(root=b"x" * 32), OTHER),
        signed(header(root=b"x" * 32), domain=OTHER_DOMAIN),
        SignedCheckpoint(header(root=b"x" * 32), bytes(64)),
    ],
    ids=["same", "epoch", "fork", "run", "key", "domain", "no signature"],
)
def test_what_may_both_stand_is_no_evidence(second):
    assert equivocation(DOMAIN, ONE, second) is None


def test_forged_files_prove_nothing():
    evidence = decode(equivocation(DOMAIN, ONE, TWO))
    swapped = replace(
        evidence,
        first=evidence.second,
        first_signature=evidence.second_signature,
        second=evidence.first,
        second_signature=evidence.first_signature,
    )
    for bad, refusal in (
        (swapped, Refusal.UNEXPECTED),
        (replace(evidence, chain_id=1), Refusal.BAD_SIGNATURE),
        (replace(evidence, hub=b"h" * 20), Refusal.BAD_SIGNATURE),
        (replace(evidence, second_signature=evidence.first_signature), Refusal.BAD_SIGNATURE),
        (replace(evidence, first=b"\xff" * 384), Refusal.OUT_OF_BOUNDS),
    ):
        with pytest.raises(ProtocolError) as refused:
            verify(encode(bad))
        assert refused.value.refusal is refusal
    frame = encode(evidence)
    for data in (b"", frame[:-1], frame + b"\0", b"\x60" + frame[1:]):
        with pytest.raises(ProtocolError):
            verify(data)
