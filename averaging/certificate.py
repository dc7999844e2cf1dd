"""Quorums: how many ballots decide, and how a set of signatures proves that they were cast."""

from __future__ import annotations

from collections.abc import Sequence

from averaging.ballots import MAX_COMMITTEE, PRECOMMIT, PREVOTE, Ballot, Certificate, ProofOfLock
from averaging.record import Record, record_hash
from dht import identity
from dht.envelope import signed_digest
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as, digest, encode


def quorum(n: int) -> int:
    """Ballots that decide in a committee of `n`: more than two thirds, so that any two quorums share a member
    that does not lie while fewer than a third do.
    """
    return 2 * n // 3 + 1


def faulty(n: int) -> int:
    """How many members of a committee of `n` may lie or be gone: fewer than a third."""
    return (n - 1) // 3


def draw_committee(members: Sequence[PeerId], beacon: bytes) -> tuple[PeerId, ...]:
    """The committee out of the last round's members: all, or 64 drawn by the beacon; sorted by peer id."""
    drawn = sorted(members, key=lambda peer: digest("committee", beacon, peer))[:MAX_COMMITTEE]
    return tuple(sorted(drawn))


def proposers(committee: Sequence[PeerId], beacon: bytes) -> tuple[PeerId, ...]:
    """The order in which members propose: view v belongs to entry v mod n."""
    return tuple(sorted(committee, key=lambda peer: digest("proposer", beacon, peer)))


def verify(certificate: Certificate, record: Record, committee: Sequence[PeerId], run: bytes) -> None:
    """Raises ProtocolError (BAD_CERTIFICATE) unless a quorum of `committee` precommitted `record` in one view."""
    if record.run != run or certificate.round != record.round:
        raise ProtocolError(Refusal.BAD_CERTIFICATE, f"a certificate of round {certificate.round} for another round")
    if certificate.value != record.hash():
        raise ProtocolError(Refusal.BAD_CERTIFICATE, "the certificate is for another record")
    ballot = Ballot(certificate.round, certificate.view, PRECOMMIT, certificate.value)
    verify_quorum(ballot, certificate.signers, certificate.signatures, committee, run)


def verify_proof(proof: ProofOfLock, committee: Sequence[PeerId], run: bytes) -> Record:
    """The record that a quorum prevoted. Raises ProtocolError (BAD_HASH, BAD_CERTIFICATE, or of the codec)."""
    record = open_record(proof.record, proof.value)
    ballot = Ballot(proof.round, proof.view, PREVOTE, proof.value)
    verify_quorum(ballot, proof.signers, proof.signatures, committee, run)
    return record


def verify_quorum(
    ballot: Ballot, signers: Sequence[int], signatures: Sequence[bytes], committee: Sequence[PeerId], run: bytes
) -> None:
    """Raises ProtocolError (BAD_CERTIFICATE) unless a quorum of `committee` signed an envelope of `ballot`."""
    check_signatures(run, ballot.round, encode(ballot), committee, signers, signatures, quorum(len(committee)))


def check_signatures(
    run: bytes,
    round_: int,
    frame: bytes,
    members: Sequence[PeerId],
    signers: Sequence[int],
    signatures: Sequence[bytes],
    needed: int,
) -> None:
    """Raises ProtocolError (BAD_CERTIFICATE) unless at least `needed` of `members` signed an envelope of `frame`.

    `signers` are indices into the members, strictly increasing; `signatures` are theirs in the same order.
    """
    if len(signers) != len(signatures) or list(signers) != sorted(set(signers)):
        raise ProtocolError(Refusal.BAD_CERTIFICATE, "signers are repeated or out of order")
    if signers and not 0 <= signers[0] <= signers[-1] < len(members):
        raise ProtocolError(Refusal.BAD_CERTIFICATE, "a signer is no member")
    if len(signers) < needed:
        raise ProtocolError(Refusal.BAD_CERTIFICATE, f"{len(signers)} of {needed} signatures")
    for index, signature in zip(signers, signatures, strict=True):
        member = members[index]
        if not identity.verify(member, signed_digest(run, round_, member, frame), signature):
            raise ProtocolError(Refusal.BAD_CERTIFICATE, f"the signature of {member.short} does not verify")


def open_record(frame: bytes, value: bytes) -> Record:
    """The record of a frame whose hash must be `value`. Raises ProtocolError (BAD_HASH, or of the codec)."""
    if record_hash(frame) != value:
        raise ProtocolError(Refusal.BAD_HASH, "the record is not the one that its hash names")
    return decode_as(Record, frame)
