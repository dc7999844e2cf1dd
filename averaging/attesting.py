"""What a member thinks of a proposed record: its own result, others' attestations, or nothing yet.

A committee member that took part in the aggregation trusts what it computed. One that did not (restarted, late)
accepts a record that so many committee members attest that one of them is honest and computed it. A void record
is acceptable only to who has given the round up, and never to who knows of such an attested record.
"""

from __future__ import annotations

from averaging.agreement import Verdict
from averaging.messages import Attest
from averaging.params import honest_witness
from averaging.record import Record, check_successor, void_record
from averaging.tally import Tally
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId


class Attestations:
    """Who attests which record in one round, and what follows for agreement."""

    def __init__(self, head: Record, tally: Tally, committee: tuple[PeerId, ...]) -> None:
        self._head, self._tally, self._committee = head, tally, set(committee)
        self._needed = honest_witness(len(committee))
        self._of: dict[PeerId, bytes] = {}
        self.mine: Record | None = None
        self.given_up = False

    def add(self, sender: PeerId, attest: Attest) -> None:
        """Count a member's one attestation. Raises ProtocolError (EQUIVOCATION)."""
        if self._of.setdefault(sender, attest.record) != attest.record:
            raise ProtocolError(Refusal.EQUIVOCATION, "two attestations in one round")

    def witnessed(self, value: bytes) -> bool:
        """Whether so many committee members attest this record that one of them is honest."""
        return sum(self._of.get(peer) == value for peer in self._committee) >= self._needed

    @property
    def any_witnessed(self) -> bool:
        """Whether some record of this round is witnessed."""
        return any(self.witnessed(value) for value in set(self._of.values()))

    def judge(self, record: Record) -> Verdict:
        """The verdict that agreement asks for."""
        if record.void:
            if record != void_record(self._head) or self.any_witnessed:
                return Verdict.INVALID
            return Verdict.VALID if self.given_up else Verdict.UNKNOWN_YET
        try:
            check_successor(record, self._head, self._tally)
        except ProtocolError:
            return Verdict.INVALID
        if record == self.mine or self.witnessed(record.hash()):
            return Verdict.VALID
        return Verdict.UNKNOWN_YET

    def propose(self) -> Record | None:
        """What I would propose now: my record, unless I gave it up for lack of witnesses; then a void one."""
        if self.mine is not None and (not self.given_up or self.witnessed(self.mine.hash())):
            return self.mine
        return void_record(self._head) if self.given_up and not self.any_witnessed else None
