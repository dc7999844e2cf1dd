"""What a participant holds: the chain's head and its state, the round's cohorts and sums by their sid, bulk frames."""

from __future__ import annotations

from averaging.across import Across
from averaging.aggregate import Aggregate
from averaging.attempt import Attempt
from averaging.bulk import BulkKind, Chunk
from averaging.chain import Chain
from averaging.cohort import Cohort
from averaging.current_round import CurrentRound
from averaging.record import Record
from dht.identity import PeerId


class Holdings:
    """The chain, the current round's work, and what is left of the one before. Questions only: nothing changes here."""

    chain: Chain | None
    state_round: int | None
    current: CurrentRound | None
    previous: Attempt | None
    """Of the round before: sums and totals of it can still be had."""

    def _attempts(self) -> list[Attempt]:
        return [a for a in (self.current.attempt if self.current else None, self.previous) if a is not None]

    def across(self, sid: bytes) -> Across | None:
        """The current or the previous round's summing across cohorts, by the round's sid."""
        return next((a.across for a in self._attempts() if a.across is not None and a.across.sid == sid), None)

    def aggregate(self, sid: bytes) -> Aggregate | None:
        """What the current round came to, by its sid, once complete."""
        found = self.current.aggregate if self.current else None
        return found if found is not None and found.sid == sid else None

    def works_on(self, sid: bytes, kind: BulkKind) -> bool:
        """Whether a bulk frame of this sid can still be of use to anybody."""
        if kind in (BulkKind.PART, BulkKind.TOTAL):
            return self.across(sid) is not None
        cohort = self.cohort(sid)
        return cohort is not None and cohort.failed is None

    def payload(self, sid: bytes, kind: BulkKind, chunk: int) -> Chunk | None:
        """The frame of a `Transfer`; None when the round of its sid is over."""
        owner = self.across(sid) if kind in (BulkKind.PART, BulkKind.TOTAL) else self.cohort(sid)
        return owner.payload(kind, chunk) if owner is not None else None

    def cohort(self, sid: bytes) -> Cohort | None:
        """The current or the previous round's cohort, by sid."""
        return next((a.cohort for a in self._attempts() if a.cohort.sid == sid), None)

    @property
    def round(self) -> int:
        """The round that is being decided; 0 before the founding."""
        return self.chain.head.round + 1 if self.chain else 0

    @property
    def settled(self) -> bool:
        """Whether I hold the state of the chain's head."""
        return self.chain is not None and self.state_round is not None and self._state_is(self.chain.head)

    def _state_is(self, head: Record) -> bool:
        """Whether the state I hold is the head's; void rounds in between change nothing."""
        assert self.chain is not None
        assert self.state_round is not None
        return self.chain.record(min(self.state_round, head.round)).state_root == head.state_root

    def _source(self, head: Record) -> Record:
        """The record whose survivors computed the head's state."""
        assert self.chain is not None
        return self.chain.tip.electors if head.void else head

    def _concerned(self) -> set[PeerId]:
        """Who should hear of it when one of them lies: committee and cohort."""
        cohort = self.current.cohort if self.current else None
        return {*(self.chain.committee() if self.chain else ()), *(cohort.peers if cohort else ())}
