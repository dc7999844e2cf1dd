"""Step R5's audit in one sid: shares of the seed, inputs shown to the auditors, sums recomputed, wrong ones proven.

Everything here runs while the sums travel and are applied; the record waits for it (`Checking.audited`). An author who
shows nothing is no proof of a lie: the auditor then asks the survivors, who still hold what they uploaded. What cannot
be checked even so makes the round void, or whoever has an accomplice could escape every audit.
"""

from __future__ import annotations

from averaging.actions import Note, Send, SetTimer, TimerKey
from averaging.auditing import Audited, Unshown, auditor, entry
from averaging.bulk import BulkKind, Chunk
from averaging.collecting import Collecting, Failed
from averaging.dealing import MisdealtError, Seed
from averaging.evidence import CohortIndex, HeldShare, WrongSeed, WrongSum
from averaging.messages import AuditShares, Receipt
from averaging.params import tolerated
from averaging.reducing import add_masked
from averaging.survivors import claims
from averaging.work import Check, CohortAction, Show
from dht.envelope import Envelope, frame_of, seal
from dht.errors import ProtocolError, Refusal
from dht.transport import Part
from dht.wire import decode_as, encode


class Checking(Collecting):
    """The part of a cohort that watches the reducers, and writes down what proves a lie."""

    @property
    def audit_seed(self) -> bytes | None:
        """32 bytes that nobody knew before all sums were signed; None until t members opened them."""
        return self._audit.seed

    @property
    def audited(self) -> bool:
        """Whether every sum that I go by, and for which an auditor was picked, was found right.

        Auditors that are gone, or say nothing for three times *unmask*, are not waited for.
        """
        if self.failed is not None:
            return False
        if not self.checks.share:
            return True
        return self._audit.seed is not None and all(
            self.checks.settled(author, chunk)
            or "audit-over" in self._done
            or self.checks.auditor(author, chunk) in self._suspects
            for author, chunk in self._relied_on()
        )

    def _relied_on(self) -> list[tuple[int, int]]:
        """(author, chunk) of the sums that I go by: those here, or, among several cohorts, those that are signed."""
        return self.sums.held() if self.roster.alone else self.sums.bound()

    def shown(self, member: int, chunk: int) -> Chunk:
        """The frame of one input of a `Show`."""
        data = self._input(member, chunk)
        assert data is not None
        return Chunk(BulkKind.AUDIT, self.sid, member, chunk, data)

    def check(self, chunk: int) -> None:
        """Recompute a sum that I audit. Any thread."""
        assert self.certified is not None
        assert self.opening is not None
        ring = add_masked(self._inputs(chunk, self.certified.survivors), self.layout.dtype(chunk))
        self.opening.unmask(chunk, ring)
        self.checks.truth[chunk] = self.sums.hash(memoryview(ring).cast("B"))

    # --- steps --------------------------------------------------------------------------------------------------

    def _step_audit(self) -> list[CohortAction]:
        """Open the seed once all sums are signed; then show, check and report whatever can be."""
        if self.certified is None:
            return []
        limits, actions = self.params.deadlines, list[CohortAction]()
        if "audit" not in self._done and self.sums.all_signed:
            self._done.add("audit")
            shares = tuple(self._dealing.share(Seed.AUDIT, i) for i in self.certified.survivors)
            actions += self._broadcast(AuditShares(self.sid, shares))
            # Others may learn of the last hash as late as a sum may come.
            patience = limits.unmask + (tolerated(len(self.peers)) + 2) * limits.sums
            actions += [SetTimer(self._key("audit", 0), patience)] if self.checks.share else []
        # My own shares wait until I know of all hashes. If enough others know of all, the seed is open, and waiting any
        # longer would only keep my inputs from an auditor.
        self._audit.try_open()
        if self._audit.seed is None or not self.checks.share:
            return actions
        if "audit-open" not in self._done:
            self._done.add("audit-open")
            actions.append(SetTimer(self._key("audit", 1), limits.unmask))
            actions += self._answer_early()
        signed = self.sums.signed()
        if self.checks.is_new((len(signed), len(self._suspects), "sums-late" in self._done)):
            counting = [pair for pair in signed if self._counts(*pair)]
            self.checks.plan(self._audit.seed, self.certified.reducers, counting)
            actions += self._ask(self._suspects)
        return [*actions, *self._show(), *self._start_checks(), *self._report()]

    def _show(self) -> list[CohortAction]:
        assert self.certified is not None
        due, self.checks.to_show = self.checks.to_show, []
        return [
            Show(self.sid, tuple((i, chunk) for i in self.certified.survivors if i != to), self.peers[to])
            for chunk, to in due
        ]

    def _start_checks(self) -> list[CohortAction]:
        assert self.certified is not None
        if "opened" not in self._done:
            return []
        survivors, checks = self.certified.survivors, self.checks
        due = [c for c in checks.mine if c not in checks.working and len(self._inputs(c, survivors)) == len(survivors)]
        checks.working.update(due)
        return [Check(self.sid, tuple(due))] if due else []

    def _report(self) -> list[CohortAction]:
        """Say what I found, once nothing is left to do, and again when more came up."""
        checks = self.checks
        if "opened" not in self._done:
            return []  # that I cannot check is nobody else's fault
        pairs = [(author, chunk) for chunk, authors in checks.mine.items() for author in sorted(authors)]
        right = {entry(a, c) for a, c in pairs if checks.truth.get(c) == self.sums.signed_hash(a, c)}
        wrong = [(a, c) for a, c in pairs if c in checks.truth and entry(a, c) not in right]
        unshown = {entry(a, c) for a, c in pairs if c not in checks.truth and "audit-late" in self._done}
        doubtful = unshown | {entry(a, c) for a, c in wrong}
        actions: list[CohortAction] = []
        if (wrong or len(right) + len(doubtful) == len(pairs)) and checks.said != (right, doubtful):
            checks.said = (right, doubtful)
            message = Audited(self.sid, tuple(sorted(right)), tuple(sorted(doubtful)), self.sums.signed_digest())
            actions = self._broadcast(message)
        if wrong:
            (author, chunk), *_ = wrong
            self.proofs.append(encode(self._wrong_sum(author, chunk)))
            return [*actions, *self._fail(f"{self.peers[author].short} signed a wrong sum of chunk {chunk}")]
        return [*actions, *self._distrust()]

    def _distrust(self) -> list[CohortAction]:
        """A sum of mine that its auditor did not find right cannot stand."""
        for author, chunk in self._relied_on() if self.checks.doubtful else ():
            if entry(author, chunk) in self.checks.doubtful and not self.checks.settled(author, chunk):
                return self._fail(f"the sum of chunk {chunk} by {self.peers[author].short} was not found right")
        return []

    def _audit_timeout(self, turn: int) -> list[CohortAction]:
        if turn == 0:
            return [] if self._audit.seed is not None else self._fail("the audit seed was not opened in time")
        actions: list[CohortAction] = []
        if turn < 3:
            actions.append(SetTimer(self._key("audit", turn + 1), self.params.deadlines.unmask))
        if turn == 1:
            actions += self._ask(set(range(len(self.peers))))
        self._done.add(("", "audit-asked", "audit-late", "audit-over")[turn])
        return actions

    def _ask(self, authors: set[int]) -> list[CohortAction]:
        """Ask all for inputs of chunks that I audit and that these authors do not show."""
        assert self.certified is not None
        survivors, checks = self.certified.survivors, self.checks
        silent = [c for c, signers in checks.mine.items() if signers & authors and c not in checks.working]
        lacking = tuple(sorted(c for c in silent if len(self._inputs(c, survivors)) < len(survivors)))
        return self._broadcast(Unshown(self.sid, lacking)) if lacking else []

    def _show_all(self, sender: int, message: Unshown) -> list[CohortAction]:
        """Show an auditor what I hold of chunks that it audits. Raises ProtocolError (UNEXPECTED, RATE_LIMITED)."""
        asked = self.checks.asked[sender] = self.checks.asked.get(sender, 0) + 1
        if self.certified is None or asked > len(self.peers):
            raise ProtocolError(Refusal.RATE_LIMITED, "asks for inputs too often, or too early")
        if self._audit.seed is None and self.checks.share:
            self.checks.too_early[sender] = message  # it had the seed's shares before me: answered when I have them
            return []
        if not all(self._may_check(sender, chunk) for chunk in message.chunks):
            raise ProtocolError(Refusal.UNEXPECTED, "asks for inputs of chunks that it does not audit")
        held = tuple((i, c) for c in message.chunks for i in self.certified.survivors if self._input(i, c) is not None)
        return [Show(self.sid, held, self.peers[sender])] if held else []

    def _answer_early(self) -> list[CohortAction]:
        actions: list[CohortAction] = []
        early, self.checks.too_early = self.checks.too_early, {}
        for sender, message in early.items():
            try:
                actions += self._show_all(sender, message)
            except ProtocolError as error:
                actions.append(Note(str(error), self.peers[sender]))
        return actions

    def _may_check(self, member: int, chunk: int) -> bool:
        """Whether a member audits a sum of a chunk by its reducer or by who may stand in for it.

        It may know of a signed hash, or of a death, that I have not heard of, so what I know must not decide.
        """
        if self._audit.seed is None or self.certified is None or not 0 <= chunk < self.layout.total_chunks:
            return False
        reducers, reducer = self.certified.reducers, self.duties.reducers[chunk]
        turns = range(tolerated(len(self.peers)) + 1)
        authors = {reducer, *(self.duties.stand_in(reducer, reducers, set(), turn) for turn in turns)}
        return any(
            author is not None and auditor(self._audit.seed, self.checks.share, reducers, author, chunk) == member
            for author in authors
        )

    def _compare(self, sender: int, message: Audited) -> list[CohortAction]:
        """Who holds other hashes of sums than I gets those that I hold: two stories of one author meet there."""
        if message.hashes == self.sums.signed_digest() or sender in self.checks.compared:
            return []
        self.checks.compared.add(sender)
        return [Send(self.peers[sender], decode_as(Envelope, frame)) for frame in self.sums.frames()]

    def _show_manifests(self, sender: int, receipt: Receipt) -> list[CohortAction]:
        """Who confirms another manifest of a member than I hold gets mine: so two of one author meet."""
        if sender in self.checks.receipts:
            return []
        self.checks.receipts.add(sender)
        named, held = claims(receipt), self.r3.manifests
        other = [m for m, name in named.items() if m in held and self.r3.name(m) != name]
        return [Send(self.peers[sender], decode_as(Envelope, held[m][1])) for m in other]

    # --- inputs and evidence ------------------------------------------------------------------------------------

    def _collect_shown(self, sender: int, chunk: Chunk) -> None:
        """Keep a masked input that somebody shows me for an audit. Raises ProtocolError."""
        survivors = self.certified.survivors if self.certified else ()
        if chunk.member not in survivors or not 0 <= chunk.index < self.layout.total_chunks:
            raise ProtocolError(Refusal.UNEXPECTED, "an input of a member that is no survivor")
        if self._audit.seed is None:
            early = self.checks.early[sender] = self.checks.early.get(sender, 0) + 1
            likely = 2 + 2 * self.checks.share * len(self.duties.of(sender)) / max(1, len(self.peers) - 1)
            wanted = early <= likely * len(self.peers)
        else:
            wanted = chunk.index in self.checks.mine
        if not wanted:
            raise ProtocolError(Refusal.UNEXPECTED, f"chunk {chunk.index} is not mine to audit")
        if self.sums.hash(chunk.data) != self.r3.manifests[chunk.member][0].hashes[chunk.index]:
            raise ProtocolError(Refusal.BAD_HASH, f"an input of chunk {chunk.index} differs from its manifest")
        self.checks.shown.setdefault((chunk.member, chunk.index), chunk.data)

    def _input(self, member: int, chunk: int) -> Part | None:
        """A survivor's masked chunk, if I hold it as its manifest says."""
        if member == self.me and chunk in self._masked:
            return self._masked[chunk][0]
        own = self.inputs.get(member, chunk, self.r3.manifests[member][0])
        return self.checks.shown.get((member, chunk)) if own is None else own

    def _inputs(self, chunk: int, survivors: tuple[int, ...]) -> list[Part]:
        found = (self._input(i, chunk) for i in survivors)
        return [data for data in found if data is not None]

    def _wrong_sum(self, author: int, chunk: int) -> WrongSum:
        """The evidence against an author whose sum I recomputed."""
        assert self.certified is not None
        assert self.opening is not None
        assert self.seating is not None
        survivors = self.certified.survivors
        votes = [self.said.find(self.peers[i], "Vote", self.sid) for i in self.certified.voters[: self.threshold]]
        frames = [self.r3.manifests[i][1] for i in survivors]
        return WrongSum(
            self.seating,
            CohortIndex(self.roster.index, len(self.roster.cohorts)),
            tuple(decode_as(Envelope, frame) for frame in votes if frame is not None),
            tuple(decode_as(Envelope, frame) for frame in frames),
            tuple(self.opening.seeds[i] for i in range(len(self.peers))),
            decode_as(Envelope, self.sums.frame_of(author, chunk)),
            chunk,
            tuple(bytes(data) for data in self._inputs(chunk, survivors)),
        )

    def _misdealt(self, error: MisdealtError) -> None:
        """Write down the proof against a dealer whose shares open another seed than it published."""
        frame = self.said.find(self.peers[error.dealer], "Shares", self.sid)
        if frame is not None and self.seating is not None:
            held = tuple(HeldShare(holder, share) for holder, share in sorted(error.shares.items()))
            place = CohortIndex(self.roster.index, len(self.roster.cohorts))
            self.proofs.append(encode(WrongSeed(self.seating, place, decode_as(Envelope, frame), error.seed, held)))

    def _tell_apart(self) -> list[CohortAction]:
        """Members hold different lists of one dealer: show mine to two that differ, so that the two meet somewhere."""
        others = [(self.me + k) % len(self.peers) for k in range(1, len(self.peers))]
        differing = [i for i in others if self._ready[i] != self._ready[self.me]][:2]
        frames = [self.said.find(peer, "Shares", self.sid) for i, peer in enumerate(self.peers) if i != self.me]
        envelopes = [decode_as(Envelope, frame) for frame in frames if frame is not None]
        return [Send(self.peers[i], envelope) for i in differing for envelope in envelopes]

    def give_up(self, reason: str) -> list[CohortAction]:
        """Somebody is proven to have lied so that nothing good can come of this sid."""
        return [] if self.failed is not None else self._fail(reason, set())

    # --- small change -------------------------------------------------------------------------------------------

    def _key(self, name: str, turn: int = 0) -> TimerKey:
        return (name, self.roster.round, self.roster.attempt << 8 | turn)

    def _seal(self, message: object) -> Envelope:
        return seal(self._identity, self.params.run, self.roster.round, message)

    def _broadcast(self, message: object) -> list[CohortAction]:
        """Sign once, send to all others, and take it as my own, too."""
        envelope = self._seal(message)
        self._collect(self.me, message, frame_of(envelope))
        return [Send(peer, envelope) for i, peer in enumerate(self.peers) if i != self.me]

    def _fail(self, reason: str, named: set[int] | None = None) -> list[CohortAction]:
        """End the attempt; `named` are at fault, else whoever I still waited for."""
        # Who is not ready may itself wait for one whose shares I miss, too: name the cause, not all who suffer from it.
        unready = set(range(len(self.peers))) - set(self._ready) - {self.me}
        gone = self._suspects - self._left
        early = set() if "shares" in self._done or gone else set(self._dealing.missing) or unready
        laggards = tuple(self.peers[i] for i in sorted(early | gone if named is None else named))
        self.failed = Failed(reason, "certified" in self._done, laggards)
        return [Note(reason)]
