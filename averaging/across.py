"""Summing across cohorts as a state machine: one per member and roster, beside the member's own `Cohort`.

It reports the cohort's result, learns which cohorts are included (`averaging.coordinating`), sends the sums that this
member owns to the heads, adds up what it is the head of, and passes totals on (`averaging.totals`). Members of a cohort
that aborted end with the same totals as everybody else. Timers come in as `timeout(key)`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from averaging.actions import Note, Send, SetTimer, TimerKey
from averaging.aggregate import Aggregate, domains_of, result_of, survivors_of
from averaging.bulk import BulkKind, Chunk
from averaging.chain import Tip
from averaging.cohort import Cohort
from averaging.collecting import Failed
from averaging.coordinating import Coordinating
from averaging.evidence import WrongTotal
from averaging.guard import Guard
from averaging.messages import Included, Inclusion, InclusionVote, Ping, Result, TotalHash, Wanted
from averaging.params import TOTAL_TURNS, RunParams
from averaging.parts import make_part, make_total, open_part
from averaging.roster import CheckedRoster
from averaging.totals import Owners, Totals
from averaging.work import AddUp, CohortAction, Transfer
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.transport import Part
from dht.wire import encode

_REQUESTS = 16
"""Wanted messages that one peer may send in one roster."""


class Across(Coordinating):
    """One member's part in summing one roster's cohorts."""

    TIMERS = ("result", "turn", "closing", "include", "totals", "probe", "across", "recount")

    def __init__(
        self,
        params: RunParams,
        identity: Identity,
        roster: CheckedRoster,
        committee: tuple[PeerId, ...],
        guard: Guard,
        cohort: Cohort,
        tip: Tip,
        urandom: Callable[[int], bytes],
    ) -> None:
        """`tip`: the chain's, from which roster and committee follow. `urandom` picks the totals that I recount."""
        super().__init__(params, identity, roster, committee, guard)
        self._tip, self._urandom = tip, urandom
        self.cohort, self._index = cohort, roster.index
        self.owners = Owners(params.layout, roster)
        self.totals = Totals(params.layout, params.run, roster, self.owners)
        self._mine = frozenset(self.owners.of(roster.index, self.me))
        self._turn = 0
        self._shipped: set[tuple[int, PeerId]] = set()
        self._added: dict[int, tuple[bytes, Part]] = {}
        self._early: dict[tuple[PeerId, BulkKind, int, int], Chunk] = {}
        self._wanting: dict[int, set[PeerId]] = defaultdict(set)
        self._asked: dict[PeerId, int] = defaultdict(int)
        self._wanted: dict[PeerId, int] = defaultdict(int)
        self._for_mates: set[int] = set()
        self._recounts: set[int] = set()
        """Chunks whose total, made by another head, I shall add up myself. Nobody else knows which."""

    # --- inputs -------------------------------------------------------------------------------------------------

    def start(self) -> list[CohortAction]:
        """Set the clocks of this attempt."""
        return [*self._begin(), SetTimer(self._key("across"), self.params.deadlines.across(self.roster.largest))]

    def advance(self) -> list[CohortAction]:
        """Take what follows from my cohort's progress."""
        if self.failed is not None:
            return []
        actions: list[CohortAction] = []
        if self.cohort.failed is not None:
            actions += self.report(self._failure())
        elif self.cohort.finished and self.cohort.audited:
            actions += self.report(result_of(self.cohort, self.cohort.sums.bound_root()))
        return [*actions, *self._after_inclusion(), *self._ship()]

    def receive(self, sender: PeerId, message: object, envelope: Envelope) -> list[CohortAction]:
        """Take a signed message of this roster. Raises ProtocolError when it is refused."""
        if sender not in self.roster.present:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{sender.short} is not in this roster")
        actions: list[CohortAction]
        match message:
            case Result():
                actions = [*self.on_result(sender, message, envelope)]
            case Inclusion():
                actions = [*self.on_inclusion(sender, message)]
            case InclusionVote():
                actions = [*self.on_vote(sender, message, envelope)]
            case Included():
                actions = [*self.on_included(sender, message)]
            case Ping():
                actions = []  # I am here
            case Wanted():
                actions = self._on_wanted(sender, message)
            case _:
                raise ProtocolError(Refusal.UNEXPECTED, f"{type(message).__name__} across cohorts")
        return [*actions, *self.advance()]

    def receive_chunk(self, sender: PeerId, chunk: Chunk) -> list[CohortAction]:
        """Take a part or a total. Raises ProtocolError when it is refused."""
        if sender not in self.roster.present or not 0 <= chunk.index < self.params.layout.total_chunks:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"chunk {chunk.index} from {sender.short}")
        if not self.owners.included:
            self._keep_early(sender, chunk)
            return []
        if chunk.kind is BulkKind.PART:
            return self._on_part(sender, chunk)
        return self._on_total(chunk)

    def timeout(self, key: TimerKey) -> list[CohortAction]:
        """A timer of this roster fired."""
        if self.failed is not None or key[2] >> 8 != self.roster.attempt:
            return []
        if key[0] == "across":
            return self._fail("the sums of the cohorts were not added up in time") if not self.complete else []
        if key[0] == "probe":
            return self._probe(key)
        if key[0] == "totals":
            return self._late_totals(key[2] & 0xFF)
        if key[0] == "recount":
            self._recounts.clear()  # what nobody shows in time cannot be checked, and proves nothing
            return []
        return [*self._coordinate_timeout(key), *self.advance()]

    def suspect(self, peer: PeerId) -> list[CohortAction]:
        """The driver cannot reach a peer: whoever is next in line takes its place."""
        known = peer in self._suspects  # said again at every attempt to reach it: there is nothing new to ask for
        self._suspects.add(peer)
        if self.me in self.coordinators:
            self._collected.gone(peer)
        if known or self.failed is not None or self.complete:
            return []
        actions: list[CohortAction] = [*self._propose(), *self._after_inclusion(), *self._replace(peer)]
        if self.owners.included:
            lost = [c for c in self.totals.missing if self.owners.owner(self._index, c) == peer]
            actions += [*self._ask(lost), *self._complain({peer})]
        return [*actions, *self.advance()]

    def trust(self, peer: PeerId) -> None:
        """The peer was heard again."""
        self._suspects.discard(peer)

    def add_up(self, chunk: int) -> None:
        """Add up the included cohorts' sums of a chunk. Any thread."""
        self._added[chunk] = self.totals.add_up(chunk)

    def added_up(self, chunks: tuple[int, ...]) -> list[CohortAction]:
        """The work of an `AddUp` is done: sign the totals and send them to the owner in every cohort."""
        actions: list[CohortAction] = []
        for c in chunks:
            digest, words = self._added.pop(c)
            if self.totals.holds(c):
                self._recounted(c, digest)
                continue
            payload = make_total(self._seal(TotalHash(self.sid, c, digest)), words)
            self.totals.drop_parts(c)
            if self.totals.add(self._index, c, payload):
                owners = tuple(peer for peer in self.owners.everywhere(c) if peer != self.me)
                self._wanting[c] -= set(owners)
                actions += [Transfer(self.sid, BulkKind.TOTAL, (c,), owners), *self._pass_on(c)]
        return actions

    def payload(self, kind: BulkKind, chunk: int) -> Chunk:
        """The frame of a `Transfer`."""
        if kind is BulkKind.PART:
            _, data = self.cohort.sums.get(chunk)
            return Chunk(kind, self.sid, self._index, chunk, make_part(data, self.cohort.sums.leaves(), chunk))
        cohort, payload = self.totals.frame(chunk)
        return Chunk(kind, self.sid, cohort, chunk, payload)

    # --- results ------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every total is here or lost."""
        return bool(self.results) and not self.totals.missing

    def aggregate(self) -> Aggregate:
        """What the round came to, once `complete`."""
        assert self.results is not None
        roster = self.roster
        return Aggregate(
            roster.round,
            roster.attempt,
            roster.digest,
            self.sid,
            roster.largest,
            survivors_of(roster, self.owners.duties, self.results),
            tuple(k for k in range(len(roster.cohorts)) if k not in self.owners.included),
            self.totals.lost,
            self.totals.root(),
            tuple(self.totals.sums()),
            domains_of(roster, self.results),
        )

    # --- parts and totals ---------------------------------------------------------------------------------------

    def _after_inclusion(self) -> list[CohortAction]:
        """Once, when I learn which cohorts are included."""
        if self.results is None or self.owners.included or self.failed is not None:
            return []
        if not self.results:
            return self._fail("no cohort came to a sum")
        self.owners.included = tuple(result.cohort for result in self.results)
        actions: list[CohortAction] = [SetTimer(self._key("totals"), self.params.deadlines.sums)]
        actions += [SetTimer(self._key("probe"), self.params.deadlines.survivors)]
        actions += self._ask(c for c in self.totals.missing if self.owners.owner(self._index, c) in self._suspects)
        self._pick_recounts()
        early, self._early = self._early, {}
        for key, chunk in early.items():
            try:
                actions += self.receive_chunk(key[0], chunk)
            except ProtocolError as error:
                actions.append(Note(str(error), key[0]))
        return actions

    def _keep_early(self, sender: PeerId, chunk: Chunk) -> None:
        """Bulk may overtake the inclusion: one frame for each that an owner or my cohort could send me."""
        known = chunk.member < len(self.roster.cohorts)
        wanted = chunk.kind is BulkKind.TOTAL or chunk.index in self._mine
        if known and wanted and (sender in self.roster.peers or sender in self.owners.everywhere(chunk.index)):
            self._early.setdefault((sender, chunk.kind, chunk.member, chunk.index), chunk)

    def _ship(self) -> list[CohortAction]:
        """Send the sums that I made to who adds them up, to the next in line where that one is gone."""
        # As soon as my cohort's result is signed, whether others' are or not: what has left cannot be lost with me.
        early = self.results is None and self._insists and self.cohort.failed is None
        if not early and self._index not in self.owners.included:
            return []
        to: dict[PeerId, list[int]] = defaultdict(list)
        for c in (*self.cohort.sums.authored(self.cohort.me), *self._inherited()):
            head = self._head(c)
            if not self.totals.holds(c) and (c, head) not in self._shipped:
                self._shipped.add((c, head))
                to[head].append(c)
        actions: list[CohortAction] = []
        for head, chunks in to.items():
            if head == self.me:
                for c in chunks:
                    try:
                        actions += self.receive_chunk(self.me, self.payload(BulkKind.PART, c))
                    except ProtocolError as error:  # my cohort's result names what a liar signed to some, not to me
                        actions.append(Note(str(error)))
            else:
                actions.append(Transfer(self.sid, BulkKind.PART, tuple(chunks), (head,)))
        return actions

    def _head(self, chunk: int) -> PeerId:
        heads, skipped = self.owners.heads(chunk), self._turn // 2  # it may only lack a part whose owner is gone
        able = (head for head in heads if head not in self._suspects)
        return next(islice(able, skipped, None), heads[skipped % len(heads)])

    def _replace(self, peer: PeerId) -> list[CohortAction]:
        """A reducer of my cohort died after it had signed its sums. If I would inherit them but hold no copy, I make
        them anew, while the other cohorts are not ready yet.
        """
        cohort = self.cohort
        if peer not in cohort.peers or not cohort.finished or self.results is not None:
            return []
        chunks = self.owners.of(self._index, peer)
        if cohort.heir(peer) != self.me or all(cohort.sums.provable(c) for c in chunks):
            return []
        ask = [action for mate in cohort.peers if mate != self.me for action in self._want(mate, (), chunks)]
        return [*cohort.replace_reducer(peer), *ask]

    def _inherited(self) -> list[int]:
        """Sums of owners that are gone, of which I keep a copy."""
        gone = {c for c in self.totals.missing if self.owners.owner(self._index, c) in self._suspects}
        return [c for c in sorted(gone) if self.cohort.sums.provable(c)]

    def _on_part(self, sender: PeerId, chunk: Chunk) -> list[CohortAction]:
        result = next((r for r in self.results or () if r.cohort == chunk.member), None)
        if result is None or sender not in self.roster.cohort(chunk.member):
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"a part of cohort {chunk.member} from {sender.short}")
        if chunk.index not in self._mine:
            raise ProtocolError(Refusal.UNEXPECTED, f"chunk {chunk.index} is not mine to add up")
        if self._index not in self.owners.included:
            return []  # it was sent before anybody knew that my cohort would be left out
        if self.totals.holds(chunk.index) and chunk.index not in self._recounts:
            return []
        data = open_part(result, chunk.index, chunk.data)
        if len(data) != self.params.layout.chunk_bytes(chunk.index):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a sum of chunk {chunk.index} with {len(data)} bytes")
        whole = self.totals.add_part(chunk.member, chunk.index, data, chunk.data)
        return [AddUp(self.sid, (chunk.index,))] if whole else []

    def _on_total(self, chunk: Chunk) -> list[CohortAction]:
        if not self.totals.add(chunk.member, chunk.index, chunk.data):
            return []
        if chunk.index in self._recounts:
            return [*self._pass_on(chunk.index), *self._recount(chunk.index)]
        self.totals.drop_parts(chunk.index)
        return self._pass_on(chunk.index)

    def _pass_on(self, chunk: int) -> list[CohortAction]:
        """A new total goes to my cohort, if I am its owner there, and to whoever asked for it."""
        to = self._wanting.pop(chunk, set())
        if chunk in self._mine:
            to |= set(self.roster.peers)
        others = tuple(peer for peer in sorted(to) if peer != self.me)
        return [Transfer(self.sid, BulkKind.TOTAL, (chunk,), others)] if others else []

    # --- when somebody is gone ----------------------------------------------------------------------------------

    def _late_totals(self, turn: int) -> list[CohortAction]:
        """Ask for what is missing, and let the next head add it up."""
        if self.complete:
            return []
        if turn >= TOTAL_TURNS:
            if len(self.totals.missing) == self.params.layout.total_chunks:
                return self._fail("no total arrived in time")
            self.totals.give_up()
            return []
        self._turn = turn + 1
        again = SetTimer(self._key("totals", turn + 1), self.params.deadlines.sums)
        return [again, *self._ship(), *self._ask(self.totals.missing), *self._complain(self.roster.present)]

    def _probe(self, key: TimerKey) -> list[CohortAction]:
        """See whether those I wait for are still there: who has its sums sends them nothing any more."""
        if self.complete or not self.owners.included:
            return []
        awaited = {self.owners.owner(k, c) for c in self.totals.begun for k in self.totals.lacking(c)}
        for c in self.totals.missing:
            source = self._source(c)
            awaited.add(source if source != self.me else self._head(c))
        ping = self._seal(Ping(self._turn, self.sid))
        again = SetTimer(key, self.params.deadlines.survivors)
        awaited -= {self.me} | self._suspects
        self._pinged |= awaited
        return [again, *[Send(peer, ping) for peer in sorted(awaited)]]

    def asked(self, peer: PeerId) -> bool:
        """Whether I asked this peer for its part in this roster, so that it knocks because it has none."""
        return peer in self._wanted or peer in self._pinged

    def _ask(self, chunks: Iterable[int], *, heads: bool = False) -> list[CohortAction]:
        """Ask for totals; who has not got one yet sends it when it has.

        The owner in my cohort is asked, or who comes after it if it is gone; only these ask the head, lest a head
        serves thousands. In the last turn, or with `heads`, all do.
        """
        to: dict[PeerId, list[int]] = defaultdict(list)
        for c in chunks:
            source = self._source(c)
            if heads or source == self.me or self._turn >= TOTAL_TURNS:
                source = self._head(c)
            if source != self.me:
                to[source].append(c)
        return [action for peer, wanted in sorted(to.items()) for action in self._want(peer, tuple(wanted), ())]

    def _ask_for_mates(self, chunks: Collection[int]) -> list[CohortAction]:
        """A mate found the owner of these totals gone, and me next after it: I ask the head, whatever I think of it."""
        fresh = {c for c in chunks if self.owners.included and self._source(c) != self.me} - self._for_mates
        self._for_mates |= fresh
        return self._ask(sorted(fresh), heads=True)

    def _source(self, chunk: int) -> PeerId:
        """Whom of my cohort to ask for a total: its owner, or the first one after it that is not gone."""
        peers = self.roster.peers
        first = peers.index(self.owners.owner(self._index, chunk))
        return next(peer for peer in peers[first:] + peers[:first] if peer == self.me or peer not in self._suspects)

    def _want(self, peer: PeerId, totals: tuple[int, ...], parts: tuple[int, ...]) -> list[CohortAction]:
        self._wanted[peer] += 1
        if self._wanted[peer] > _REQUESTS:
            return []
        return [Send(peer, self._seal(Wanted(self.sid, totals, parts)))]

    def _complain(self, owners: Collection[PeerId]) -> list[CohortAction]:
        """As a head: tell the cohorts of these owners that their sums of my chunks did not come."""
        lacking: dict[int, list[int]] = defaultdict(list)
        for c in self.totals.begun:
            for k in self.totals.lacking(c):
                if self.owners.owner(k, c) in owners:
                    lacking[k].append(c)
        return [
            action
            for k, chunks in sorted(lacking.items())
            for peer in self.roster.cohort(k)
            if peer != self.me
            for action in self._want(peer, (), tuple(chunks))
        ]

    def _on_wanted(self, sender: PeerId, message: Wanted) -> list[CohortAction]:
        self._asked[sender] += 1
        if self._asked[sender] > _REQUESTS:
            raise ProtocolError(Refusal.RATE_LIMITED, "asked for totals too often")
        every = self.params.layout.total_chunks
        chunks = [c for c in message.totals if c < every]
        have = tuple(c for c in chunks if self.totals.holds(c))
        for c in set(chunks) - set(have):
            self._wanting[c].add(sender)
        actions: list[CohortAction] = [Transfer(self.sid, BulkKind.TOTAL, have, (sender,))] if have else []
        actions += self._ask_for_mates(set(chunks) - set(have)) if sender in self.roster.peers else []
        if self.results is not None and self._index not in self.owners.included:
            return actions
        heirs = {c: self.cohort.heir(self.owners.owner(self._index, c)) for c in message.parts if c < every}
        parts = [c for c, heir in heirs.items() if sender == heir or sender in self.owners.heads(c)]
        made = {*self.cohort.sums.authored(self.cohort.me), *self._inherited()}
        mine = tuple(c for c in parts if c in made)
        actions += [Transfer(self.sid, BulkKind.PART, mine, (sender,))] if mine else []
        gone = {self.owners.owner(self._index, c) for c in parts if c not in made} - {self.me}
        for owner in sorted(gone):
            actions += self.cohort.replace_reducer(owner)
        return actions

    # --- recounting what other heads added up -------------------------------------------------------------------

    @property
    def audited(self) -> bool:
        """Whether the totals that I recount were found right, or could not be checked in time."""
        return self.failed is None and not self._recounts

    def names(self, sid: bytes) -> bool:
        """Whether this sid is the round's or an included cohort's."""
        return sid == self.sid or any(self.roster.cohort_sid(k) == sid for k in self.owners.included)

    def _pick_recounts(self) -> None:
        """Of the chunks that I own, each with such a chance that `audit_share` of all totals are recounted.

        By members of the committee: only they are waited for before anything is certified.
        """
        committee = set(self.committee)
        for c in sorted(self._mine):
            able = [peer for peer in self.owners.heads(c)[1:] if peer in committee]
            if self.me in able:
                chance = 1 - (1 - self.params.audit_share) ** (1 / len(able))
                if int.from_bytes(self._urandom(4), "big") < chance * 2**32:
                    self._recounts.add(c)

    def _recount(self, chunk: int) -> list[CohortAction]:
        """Ask the owners of a chunk in the included cohorts for their sums: only who may be its head gets them."""
        wanted = self._seal(Wanted(self.sid, (), (chunk,)))
        owners = [peer for peer in self.owners.heads(chunk) if peer != self.me]
        timer = SetTimer(self._key("recount"), 3 * self.params.deadlines.unmask)
        asked: list[CohortAction] = [timer, *[Send(peer, wanted) for peer in owners]]
        if chunk in self.cohort.sums.authored(self.cohort.me):
            asked += self._on_part(self.me, self.payload(BulkKind.PART, chunk))
        return asked

    def _recounted(self, chunk: int, digest: bytes) -> None:
        """Compare a total that I added up myself with the signed one; a difference is evidence."""
        self._recounts.discard(chunk)
        signed, envelope = self.totals.said(chunk)
        if digest != signed and self._message is not None and self.cohort.seating is not None:
            tip = self._tip
            evidence = WrongTotal(
                self.cohort.seating.roster,
                len(self.roster.cohorts),
                encode(tip.electors),
                tip.head.round - tip.electors.round,
                self._message,
                envelope,
                tuple(bytes(payload) for payload in self.totals.payloads(chunk)),
            )
            self.cohort.proofs.append(encode(evidence))
        self.totals.drop_parts(chunk)

    def give_up(self, reason: str) -> list[CohortAction]:
        """Somebody is proven to have lied so that nothing good can come of these totals."""
        return [] if self.failed is not None else self._fail(reason)

    def abandon(self) -> list[CohortAction]:
        """Too many of the committee never saw this roster: no set of cohorts can get a quorum of votes."""
        return self._fail("the roster reached too few") if self.results is None and self.failed is None else []

    def _fail(self, reason: str) -> list[CohortAction]:
        self.failed = Failed(reason, self.cohort.certified is not None, ())
        return [Note(reason)]
