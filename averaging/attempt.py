"""One roster that a member is in: its cohort and, where there are several, its part in adding up their sums.

The round asks one attempt how far it is and need not know whether a cohort stands alone: alone, its sums are the
round's and its failure ends the attempt; among others it may fail, be left out, and follow the others' totals.
"""

from __future__ import annotations

from collections.abc import Iterable

from averaging import aggregate as aggregates
from averaging.across import Across
from averaging.actions import TimerKey
from averaging.aggregate import Aggregate
from averaging.cohort import Cohort
from averaging.collecting import Failed
from averaging.evidence import Proof
from averaging.witness import Witness
from averaging.work import CohortAction
from dht.envelope import Envelope
from dht.identity import PeerId


class Attempt:
    """`cohort` is mine; `across` is None if it is the roster's only one."""

    def __init__(self, cohort: Cohort, across: Across | None, witness: Witness) -> None:
        """`witness` compares what is signed in all attempts of the round."""
        self.cohort, self.across, self._witness = cohort, across, witness
        self.params, self.roster = cohort.params, cohort.roster
        self._lost: set[PeerId] = set()

    # --- inputs -------------------------------------------------------------------------------------------------

    def start(self) -> list[CohortAction]:
        """Deal shares, set the clocks."""
        return [*(self.across.start() if self.across is not None else []), *self.cohort.start()]

    def has(self, sid: bytes) -> bool:
        """Whether messages of this sid belong here."""
        return sid == self.cohort.sid or (self.across is not None and sid == self.across.sid)

    def receive(self, sender: PeerId, envelope: Envelope, message: object, frame: bytes) -> list[CohortAction]:
        """A checked envelope with one of my sids. Raises ProtocolError when its content is refused."""
        if self.across is not None and getattr(message, "sid", b"") == self.across.sid:
            self._witness.compare(sender, message, frame)
            return self.across.receive(sender, message, envelope)
        return self.cohort.receive(sender, message, frame)

    def timeout(self, key: TimerKey) -> list[CohortAction]:
        """A timer of this attempt fired."""
        if self.across is not None and key[0] in Across.TIMERS:
            return self.across.timeout(key)
        return self.cohort.timeout(key)

    def advance(self, *, deserted: bool) -> list[CohortAction]:
        """Take what follows from my cohort's progress. `deserted`: too few of the committee are in this roster."""
        if self.across is None:
            return []
        return [*self.across.advance(), *(self.across.abandon() if deserted else [])]

    def suspect(self, peer: PeerId, *, lost: bool = False) -> list[CohortAction]:
        """A peer cannot be reached. `lost`: whatever is heard of it, it has no part in this any more."""
        if lost:
            self._lost.add(peer)
        return [*self.cohort.suspect(peer), *(self.across.suspect(peer) if self.across is not None else [])]

    def lost_by(self, peer: PeerId, nonce: bytes) -> bool:
        """Whether a Knock with this nonce shows that a member restarted.

        Of my cohort's members I know the nonce of the Join; of others' only that they knock instead of answering.
        """
        if peer in self.cohort.peers:
            return self.roster.members[self.cohort.peers.index(peer)].join.nonce != nonce
        return self.across is not None and self.across.asked(peer)

    def trust(self, peer: PeerId) -> None:
        """The peer was heard again."""
        if peer in self._lost:
            return
        self.cohort.trust(peer)
        if self.across is not None:
            self.across.trust(peer)

    def refute(self, proof: Proof) -> list[CohortAction]:
        """A sum or a total is proven wrong: nothing good can come of what it is in."""
        actions: list[CohortAction] = []
        if self.across is not None and self.rests_on(proof.sid):
            actions += self.across.give_up(proof.text)
        if self.cohort.sid == proof.sid:
            actions += self.cohort.give_up(proof.text)
        return actions

    # --- how far it is --------------------------------------------------------------------------------------------

    @property
    def failed(self) -> Failed | None:
        """Why it gives no sum. A cohort that fails among others is left out; the attempt goes on."""
        return self.cohort.failed if self.across is None else self.across.failed

    @property
    def released(self) -> bool:
        """Whether it failed too late for another one: shares were released, or, among several cohorts, my update left
        (one cohort may have opened its sum although the attempt failed).
        """
        opened = self.failed is not None and self.failed.opened
        return opened or (self.across is not None and self.cohort.uploads)

    def rests_on(self, sid: bytes) -> bool:
        """Whether a sum or total of this sid is part of what it comes to."""
        return sid == self.cohort.sid if self.across is None else self.across.names(sid)

    @property
    def missing(self) -> int:
        """Chunks whose sum, or total, is not here yet."""
        return len(self.cohort.sums.missing if self.across is None else self.across.totals.missing)

    @property
    def audited(self) -> bool:
        """Whether all sums or totals that I audit were found right. Only audited cohorts are among several."""
        return self.cohort.audited if self.across is None else self.across.audited

    def aggregate(self) -> Aggregate | None:
        """What it came to, once all sums or totals are here."""
        if self.across is not None:
            return self.across.aggregate() if self.across.complete else None
        complete = self.cohort.certified is not None and self.cohort.sums.complete
        return aggregates.of_cohort(self.cohort) if complete else None

    def recounters(self, committee: Iterable[PeerId]) -> frozenset[PeerId]:
        """Who may recount totals, and attests last then. Nobody knows who does, so all of these are waited for."""
        return self.roster.present.intersection(committee) if self.across is not None else frozenset()

    # --- how long it may take -------------------------------------------------------------------------------------

    @property
    def longest(self) -> float:
        """Seconds from the roster to when the round is given up."""
        limits = self.params.deadlines
        if self.across is None:
            return limits.total(len(self.roster.peers))
        return limits.across(self.roster.largest) + limits.commit

    @property
    def patience(self) -> float:
        """Seconds from my attestation to when the round is given up: totals reach some later than others, by about the
        time that they take.
        """
        limits = self.params.deadlines
        return 2 * limits.commit + (limits.sums if self.across is not None else 0)
