"""What one peer saw others sign in one round, over all its attempts, and the evidence that came of it."""

from __future__ import annotations

from averaging.cohort import Cohort
from averaging.evidence import contradiction
from averaging.messages import Roster, Seating, Shares
from averaging.params import MAX_MEMBERS
from averaging.roster import convener
from averaging.statements import Statements
from dht.envelope import Envelope
from dht.identity import PeerId
from dht.wire import decode_as, encode


class Witness:
    """Compares what is signed, and sees to it that what contradicts each other meets."""

    def __init__(self, run: bytes, round_: int, head: bytes, committee: tuple[PeerId, ...]) -> None:
        self._run, self._round, self._head, self._committee = run, round_, head, committee
        self.said = Statements()
        """Shared by the round's cohorts: a dealer's second list may come when the attempt has failed of it."""
        self._past: set[bytes] = set()
        self._answered: set[tuple[PeerId, bytes]] = set()
        self._proofs: list[bytes] = []

    def take(self, cohort: Cohort | None) -> list[bytes]:
        """Evidence found since the last call, here and in the current cohort."""
        found, self._proofs = self._proofs, []
        if cohort is not None:
            found += cohort.proofs
            cohort.proofs = []
        return found

    def watch(self, cohort: Cohort, seating: Seating) -> None:
        """A cohort begins."""
        cohort.seating, cohort.said = seating, self.said

    def bury(self, cohort: Cohort) -> None:
        """An attempt has failed; what its members signed is still compared."""
        self._proofs = self.take(cohort)
        self._past.add(cohort.sid)

    def is_past(self, message: object) -> bool:
        """Whether a message belongs to an attempt that has failed."""
        return getattr(message, "sid", b"") in self._past

    def compare(self, sender: PeerId, message: object, frame: bytes) -> None:
        """Keep what a peer signed; evidence if it contradicts what it signed before."""
        found = self.said.contradicted(sender, message, frame)
        if found is not None:
            self._proofs.append(encode(found))
        elif sender in self._committee:
            self.said.keep(sender, message, frame)

    def compare_ballots(self, one: Envelope, other: Envelope) -> None:
        """Two messages of one peer that the agreement found to contradict each other."""
        found = contradiction(one, other)
        if found is not None:
            self._proofs.append(encode(found))

    def compare_roster(self, seating: Seating, reached: int) -> None:
        """Keep a convener's roster of an attempt up to `reached`. Raises ProtocolError for a forged one."""
        envelope = decode_as(Envelope, seating.roster)
        signer, roster = envelope.check(self._run), decode_as(Roster, envelope.body)
        mine = (roster.round, envelope.round, roster.head) == (self._round, self._round, self._head)
        if mine and roster.attempt <= reached and signer == convener(self._head, self._committee, roster.attempt):
            self.compare(signer, roster, seating.roster)

    def disagrees(self, sender: PeerId, message: object, cohort: Cohort | None) -> Seating | None:
        """My seating, for a member of my roster that deals in another sid: its convener may have signed two."""
        sid = getattr(message, "sid", b"")
        if cohort is None or not isinstance(message, Shares) or sid == cohort.sid or self.is_past(message):
            return None
        if sender not in cohort.peers or (sender, sid) in self._answered or len(self._answered) > 4 * MAX_MEMBERS:
            return None
        self._answered.add((sender, sid))
        return cohort.seating
