"""The committee of one round: who is in it, whose turn it is, and whether what arrives is really from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from averaging import certificate as certificates
from averaging.ballots import Ballot, Certificate, Decision, ProofOfLock, Proposal
from averaging.record import Record
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as


class Committee:
    """The members that decide one round, in the order in which certificates index them.

    All checks raise ProtocolError and keep nothing. `beacon` (32 bytes) ranks the proposers.
    """

    def __init__(self, run: bytes, round_: int, members: Sequence[PeerId], beacon: bytes) -> None:
        if not members or len(set(members)) != len(members):
            raise ValueError("a committee needs members, each once")
        self.run, self.round, self.members = run, round_, tuple(members)
        self.quorum = certificates.quorum(len(members))
        self.faulty = certificates.faulty(len(members))
        self.proposers = certificates.proposers(members, beacon)
        self._index = {member: index for index, member in enumerate(members)}

    def proposer(self, view: int) -> PeerId:
        """Whose turn it is in `view`."""
        return self.proposers[view % len(self.proposers)]

    def index(self, peer: bytes) -> int | None:
        """A member's index, None for anybody else."""
        return self._index.get(PeerId(peer))

    def check_vote(self, envelope: Envelope, body: Ballot | Proposal) -> None:
        """The envelope is signed by its sender, for this run and round, and `body` is of this round."""
        envelope.check(self.run)
        if envelope.round != self.round or body.round != self.round:
            raise ProtocolError(Refusal.STALE, f"a vote of round {body.round} in the agreement on round {self.round}")

    def check_proposal(self, proposal: Proposal, sender: bytes) -> tuple[Record, ProofOfLock | None]:
        """The proposed record and, when the proposal carries one, its checked proof of lock."""
        if self.proposer(proposal.view) != sender:
            raise ProtocolError(Refusal.UNEXPECTED, f"it is not the sender's turn in view {proposal.view}")
        if proposal.valid_view > proposal.view:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a proof of lock from a view that is not earlier")
        if proposal.valid_view == 0:
            if proposal.signers or proposal.signatures:
                raise ProtocolError(Refusal.MALFORMED, "signatures of no view")
            return self._open(proposal.record, proposal.value), None
        proof = ProofOfLock(
            round=self.round,
            view=proposal.valid_view - 1,
            value=proposal.value,
            record=proposal.record,
            signers=proposal.signers,
            signatures=proposal.signatures,
        )
        return self.check_proof(proof), proof

    def check_proof(self, proof: ProofOfLock) -> Record:
        """The record that a quorum of this committee prevoted."""
        if proof.round != self.round:
            raise ProtocolError(Refusal.STALE, f"a proof of lock of round {proof.round}")
        record = self._open(proof.record, proof.value)
        certificates.verify_proof(proof, self.members, self.run)
        return record

    def check_decision(self, decision: Decision) -> tuple[Record, Certificate]:
        """A decision of this round, from whoever sent it."""
        record = decode_as(Record, decision.record)
        certificate = decode_as(Certificate, decision.certificate)
        if record.round != self.round:
            raise ProtocolError(Refusal.STALE, f"a decision of round {record.round}")
        certificates.verify(certificate, record, self.members, self.run)
        return record, certificate

    def _open(self, frame: bytes, value: bytes) -> Record:
        record = certificates.open_record(frame, value)
        if record.run != self.run:
            raise ProtocolError(Refusal.WRONG_RUN, "a record of another run")
        if record.round != self.round:
            raise ProtocolError(Refusal.STALE, f"a record of round {record.round}")
        return record


def audience(
    me: PeerId, committee: Sequence[PeerId], everybody: Sequence[PeerId], knockers: Collection[PeerId]
) -> set[PeerId]:
    """Whom I tell a decision: of the roster outside the committee everybody hears it from two members, and of those
    who knocked at me who hears it from nobody else.
    """
    members, mine = set(committee), set(knockers) - {*committee, *everybody}
    if me in members:
        place = committee.index(me)
        others = [peer for peer in everybody if peer not in members]
        mine |= {peer for i, peer in enumerate(others) if (i - place) % len(committee) in (0, 1)}
    return mine


def helps(me: PeerId, undecided: PeerId, committee: Sequence[PeerId], view: int) -> bool:
    """Whether I show an undecided member the attestations that it may lack.

    All do in a small committee. Of a large one a few, others in other views: a proof is as long as the committee.
    """
    if me not in committee or undecided not in committee:
        return False
    return (committee.index(me) - committee.index(undecided) - view) % max(1, len(committee) // 8) == 0
