"""What a member thinks of a proposed record: its own result, others' attestations, or nothing yet.

A committee member that took part in the aggregation trusts what it computed. One that did not (restarted, late)
accepts a record that a quorum of the committee attests: then more than a third are honest, computed it, and have
its state on disk, so that a certified state can be fetched even if everybody loses power at once. A void record is
acceptable only to who has given the round up, and never to who knows of such an attested record.
"""

from __future__ import annotations

from collections import Counter

from averaging.agreement import Verdict
from averaging.certificate import quorum
from averaging.committee import helps
from averaging.messages import Attest
from averaging.record import Record, check_successor, record_hash, void_record
from averaging.tally import Tally
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as


class Attestations:
    """Who attests which record in one round, and what follows for agreement."""

    def __init__(self, head: Record, tally: Tally, committee: tuple[PeerId, ...]) -> None:
        self._head, self._tally, self._committee = head, tally, set(committee)
        self._needed = quorum(len(committee))
        self._members = committee
        self._helped: dict[PeerId, int] = {}
        self._of: dict[PeerId, bytes] = {}
        self._counts: Counter[bytes] = Counter()
        self._records: dict[bytes, Record] = {}
        self._envelopes: dict[PeerId, Envelope] = {}
        self._follows: dict[bytes, bool] = {}
        self.mine: Record | None = None
        self.given_up = False
        self.refuted: set[bytes] = set()
        """Sids of which a sum is proven wrong."""

    def add(self, sender: PeerId, attest: Attest, envelope: Envelope) -> None:
        """Count a member's one attestation, which `envelope` signs. Raises ProtocolError (EQUIVOCATION, codec)."""
        if sender not in self._committee:
            return  # survivors who are not in the committee attest, too; only its word counts
        value = attest.value
        if attest.record and record_hash(attest.record) != value:
            raise ProtocolError(Refusal.BAD_HASH, "an attestation of another record than it shows")
        if self._of.setdefault(sender, value) != value:
            raise ProtocolError(Refusal.EQUIVOCATION, "two attestations in one round")
        self._counts[value] += sender not in self._envelopes
        if attest.record and value not in self._records:
            self._records[value] = decode_as(Record, attest.record)
        self._envelopes[sender] = envelope

    @property
    def by(self) -> set[PeerId]:
        """Who has attested anything."""
        return set(self._of)

    @property
    def attested(self) -> bool:
        """Whether a quorum of the committee attests one record, known or not: then it is time to decide."""
        return any(count >= self._needed for count in self._counts.values())

    def witnessed(self) -> Record | None:
        """The record that a quorum of the committee attests, if there is one and I know it."""
        for value, record in self._records.items():
            if record.sid not in self.refuted and self._counts[value] >= self._needed:
                return record
        return None

    def proof(self) -> tuple[Envelope, ...]:
        """The attestations that make a record witnessed, for members that restarted and lost them; else none."""
        record = self.witnessed()
        value = record.hash() if record is not None else b""
        return tuple(envelope for peer, envelope in self._envelopes.items() if self._of[peer] == value)[: self._needed]

    def help(self, undecided: PeerId, me: PeerId, view: int) -> tuple[Envelope, ...]:
        """What I show a member that repeats itself: it may have lost what it once knew. Once per view."""
        if self._helped.get(undecided) == view or not helps(me, undecided, self._members, view):
            return ()
        proof = self.proof()
        if proof:
            self._helped[undecided] = view
        return proof

    def judge(self, record: Record) -> Verdict:
        """The verdict that agreement asks for."""
        if record.void:
            if record != void_record(self._head) or self.witnessed() is not None:
                return Verdict.INVALID
            return Verdict.VALID if self.given_up else Verdict.UNKNOWN_YET
        if not self._is_successor(record):
            return Verdict.INVALID
        if record.hash() in self._of.values():
            self._records.setdefault(record.hash(), record)  # a long one comes with a proposal only
        if record.sid in self.refuted:
            return Verdict.UNKNOWN_YET  # not invalid: if a quorum prevoted it before it knew, all must follow
        if record in (self.mine, self.witnessed()):
            return Verdict.VALID
        return Verdict.UNKNOWN_YET

    def _is_successor(self, record: Record) -> bool:
        """Checked once per record: agreement asks again after each attestation, and a thousand survivors take long."""
        name = record.hash()
        if name not in self._follows:
            try:
                check_successor(record, self._head, self._tally)
                self._follows[name] = True
            except ProtocolError:
                self._follows[name] = False
        return self._follows[name]

    def propose(self) -> Record | None:
        """What I would propose now: a witnessed record, mine while there is hope for it, or a void one."""
        witnessed = self.witnessed()
        if witnessed is not None:
            return witnessed
        return void_record(self._head) if self.given_up else self.mine
