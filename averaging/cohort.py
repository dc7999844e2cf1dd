"""Secure aggregation in one cohort as a state machine: shares, upload, survivors, unmask, sum (DESIGN section 5).

Messages are collected whenever they arrive; `_advance` takes every step whose conditions hold. Time comes in as
`timeout(key)`. Nothing here touches a socket, a clock or a thread, and the guard is asked before anything is
signed or released that must not be contradicted later. Bonawitz et al. 2017 (eprint 2017/281) with the server's
role spread over the members.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from averaging.actions import CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.auditing import Audited, Unshown
from averaging.bulk import BulkKind, Chunk
from averaging.dealing import MisdealtError, Seed
from averaging.encoding import signed
from averaging.layout import RingArray
from averaging.messages import Manifest, Missing, Ping, Ready, Receipt, SumHashes, Unmask
from averaging.params import tolerated
from averaging.plausible import ImplausibleSumError, check_range, check_totals
from averaging.reducing import Opening
from averaging.scales import levels
from averaging.standing_in import StandingIn
from averaging.survivors import bitmap, vote_digest
from averaging.trailer import unpack
from averaging.work import CohortAction, Reduce, Transfer, Upload
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.transport import Part


class Cohort(StandingIn):
    """One member's part in one sid."""

    # --- inputs -------------------------------------------------------------------------------------------------

    def start(self) -> list[CohortAction]:
        """Deal the shares (R1) and start the clocks of sharing and upload."""
        limits = self.params.deadlines
        actions: list[CohortAction] = [
            SetTimer(self._key("shares"), limits.shares),
            SetTimer(self._key("upload"), limits.train + limits.upload),
        ]
        for j, peer in enumerate(self.peers):
            if j != self.me:
                actions.append(Send(peer, self._seal(self._dealing.deal(j))))
        return actions + self._advance()

    def update_ready(self, tokens: int) -> list[CohortAction]:
        """Local training is over and its update can be encoded; `tokens` is the public weight (capped)."""
        if self.tokens is None:
            self.tokens = max(1, min(tokens, self.params.weight_cap))
        return self._advance()

    def mask(self, chunk: int, ring: npt.NDArray[np.unsignedinteger]) -> Part:
        """Mask an encoded chunk in place and keep it; returns its bytes. Any thread; once per chunk."""
        if chunk in self._masked:  # an update is masked once per sid: a second one under the same masks would leak
            raise ProtocolError(Refusal.UNEXPECTED, f"chunk {chunk} is masked already")
        self._masker.apply(chunk, ring)
        data = memoryview(ring).cast("B")
        self._masked[chunk] = (data, self.sums.hash(data))
        return data

    def uploaded(self) -> list[CohortAction]:
        """All chunks are masked and handed over: sign their hashes for everybody."""
        hashes = tuple(self._masked[c][1] for c in range(self.layout.total_chunks))
        for chunk in self.inputs.owed(self.me):
            self.inputs.add(self.me, chunk, self._masked[chunk][0])
        assert self.tokens is not None
        watch = SetTimer(self._key("present"), self.params.deadlines.survivors)
        return [watch, *self._broadcast(Manifest(self.sid, self.tokens, hashes)), *self._advance()]

    def reduce(self, chunk: int) -> None:
        """Sum the survivors' masked chunk and take the masks off. Any thread."""
        assert self.certified is not None
        assert self.opening is not None
        ring = self.inputs.sum(chunk, self.certified.survivors)
        self.opening.unmask(chunk, ring)
        if not self.roster.alone:  # among others nobody but a chunk's reducer sees its cohort's sum
            self._check_plausible(chunk, ring)
        self.sums.computed(chunk, self.me, ring)

    def _check_plausible(self, chunk: int, ring: RingArray) -> None:
        assert self.certified is not None
        survivors = self.certified.survivors
        try:
            if chunk == self.layout.trailer:
                tokens = sum(self.r3.manifests[i][0].tokens for i in survivors)
                check_totals(unpack(ring, len(survivors)), tokens)
            else:
                top = levels(self.layout, self.roster.largest)
                check_range([signed(self.layout, chunk, ring, len(survivors), top)], top, len(survivors))
        except ImplausibleSumError as error:
            self._implausible = error.message

    def reduced(self, chunks: tuple[int, ...]) -> list[CohortAction]:
        """The chunks of a `Reduce` are done: sign their hashes for everybody.

        Sums that honest members cannot have made are not signed: the cohort fails, and the others go on without it.
        """
        if self._implausible is not None:
            return self._fail(self._implausible)
        message = SumHashes(self.sid, chunks, tuple(self.sums.digest_of(c) for c in chunks))
        self._done.add("reduced")
        return self._broadcast(message) + self._advance()

    def payload(self, kind: BulkKind, chunk: int) -> Chunk:
        """The frame of a `Transfer`."""
        if kind is BulkKind.MASKED:
            return Chunk(kind, self.sid, self.me, chunk, self._masked[chunk][0])
        author, data = self.sums.get(chunk)
        return Chunk(kind, self.sid, author, chunk, data)

    def suspect(self, peer: PeerId) -> list[CohortAction]:
        """The driver cannot reach a peer: do not wait for it as long as for the others."""
        if peer not in self.peers or peer == self._identity.peer_id:
            return []
        member = self.peers.index(peer)
        self._suspects.add(member)
        if self.failed is not None:
            return []
        # Once it said that it holds all shares, its part in this step is done.
        if "shares" not in self._done and (member in self._dealing.missing or member not in self._ready):
            return self._fail(f"{peer.short} is gone before everybody held shares")
        actions = [*self._doubt(), *self._advance()]
        if self.certified and not self._over and not self.finished:
            actions += self._stand_in((member,)) + self._ask_for_hashes() + self._advance()
        return actions

    def _doubt(self) -> list[CohortAction]:
        """Fewer than t can be reached, so nothing comes of this sid unless somebody is heard again soon.

        Suspicions are repeated at every attempt to reach somebody: that puts nothing off.
        """
        if not self._doubtful or "doubt" in self._done:
            return []
        self._done.add("doubt")
        return [SetTimer(self._key("few"), self.params.deadlines.survivors)]

    @property
    def _doubtful(self) -> bool:
        # Among several cohorts t members must live to open the audit and to sign what this one came to; alone, others
        # may still have sums.
        several = not self.roster.alone and not (self.finished and self.audited)
        return (self.certified is None or several) and self.failed is None and self._few

    def _look_round(self, key: TimerKey) -> list[CohortAction]:
        """See whether those I wait for are still there: whoever has nothing to send them would not notice."""
        if self.finished and self.roster.alone:  # among others, until their sums are added up
            return []
        ping = self._seal(Ping(0, self.sid))
        there = [peer for i, peer in enumerate(self.peers) if i != self.me and i not in self._suspects | self._left]
        return [SetTimer(key, self.params.deadlines.survivors), *[Send(peer, ping) for peer in there]]

    @property
    def _few(self) -> bool:
        return len(self.peers) - len(self._suspects | self._left) < self.threshold

    def trust(self, peer: PeerId) -> None:
        """The peer was heard again."""
        if peer in self.peers and self.peers.index(peer) not in self._left:
            self._suspects.discard(self.peers.index(peer))
            if not self._few:
                self._done.discard("doubt")  # the next one has all its time

    def left(self, peer: PeerId) -> list[CohortAction]:
        """A member went on to another attempt: it adds nothing to this one any more, however well it is."""
        if peer not in self.peers or peer == self._identity.peer_id or self.certified or self.failed:
            return []
        self._left.add(self.peers.index(peer))
        if "shares" not in self._done:
            return []  # that time is short, and when it ends I see myself who stalls
        return self._too_few_left() or self.suspect(peer)

    def _too_few_left(self) -> list[CohortAction]:
        few = len(self.peers) - len(self._left) < self.threshold
        return self._fail("too few members are left in this attempt") if few else []

    def receive(self, sender: PeerId, message: object, frame: bytes) -> list[CohortAction]:
        """Take a signed message of this sid; `frame` is its envelope. Raises ProtocolError when it is refused."""
        if sender not in self.peers:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{sender.short} is not in this cohort")
        if self.failed is not None and not isinstance(message, Missing):
            return []
        self._collect(self.peers.index(sender), message, frame)
        return self._answer_to(sender, message) + self._advance()

    def _answer_to(self, sender: PeerId, message: object) -> list[CohortAction]:
        if isinstance(message, Missing):
            return self._answer(message, sender)
        if isinstance(message, Unshown):
            return self._show_all(self.peers.index(sender), message)
        if isinstance(message, Receipt):
            return self._show_manifests(self.peers.index(sender), message)
        return self._compare(self.peers.index(sender), message) if isinstance(message, Audited) else []

    def checked(self, chunks: tuple[int, ...]) -> list[CohortAction]:
        """The chunks of a `Check` are recomputed."""
        return self._advance()

    def receive_chunk(self, sender: PeerId, chunk: Chunk) -> list[CohortAction]:
        """Take a bulk chunk of this sid. Raises ProtocolError when it is refused."""
        if sender not in self.peers:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{sender.short} is not in this cohort")
        member = self.peers.index(sender)
        self._collect_chunk(member, chunk)
        return self._advance() if self._completes(member, chunk) else []

    def _completes(self, member: int, chunk: Chunk) -> bool:
        """Whether a step may follow from this chunk: most of thousands only fill a gap."""
        if self._stood_in:
            return True
        if chunk.kind is BulkKind.AUDIT:
            survivors = self.certified.survivors if self.certified else ()
            return len(self._inputs(chunk.index, survivors)) == len(survivors)
        return chunk.kind is BulkKind.MASKED and ("receipt" in self._done or self.inputs.full(member))

    def timeout(self, key: TimerKey) -> list[CohortAction]:
        """A timer of this sid fired."""
        if self.failed is not None or key[2] >> 8 != self.roster.attempt:
            return []
        name, turn = key[0], key[2] & 0xFF
        if name == "shares" and "shares" not in self._done:
            return self._fail("not everybody held everybody's shares in time")
        if name == "present":
            return self._look_round(key)
        if name == "few":
            self._done.discard("doubt")
            return self._fail("too few members can be reached") if self._doubtful else []
        if name == "upload" and self.certified is None:
            self._done.add("upload-over")
            return [*self._advance(), *self._start_turns()]
        if name == "survivors" and self.certified is None:
            return self._next_leader(turn)
        if name == "sums" and self.certified and not self.finished:
            return self._late_sums(turn)
        if name == "audit":
            return self._audit_timeout(turn) + self._advance()
        return []

    # --- steps --------------------------------------------------------------------------------------------------

    def _advance(self) -> list[CohortAction]:
        actions: list[CohortAction] = []
        if self.failed is not None:
            return actions
        self.sums.settle()
        try:
            for step in (
                self._step_ready,
                self._step_shared,
                self._step_upload,
                self._step_receipt,
                self._step_turns,
                self._step_lead,
                self._step_vote,
                self._step_certify,
                self._step_open,
                self._step_stand_in,
                self._step_publish,
                self._step_audit,
            ):
                actions += step()
                if self._over:
                    break  # nothing more leaves an attempt that has failed
        except ProtocolError as error:
            # Only a fault that ends the attempt for everybody surfaces here (a dealer whose seed does not open).
            if isinstance(error, MisdealtError):
                self._misdealt(error)
            actions += self._fail(str(error))
        return actions

    @property
    def _over(self) -> bool:
        return self.failed is not None

    def _step_ready(self) -> list[CohortAction]:
        if "ready" in self._done or not self._once("ready", not self._dealing.missing):
            return []
        return self._broadcast(Ready(self.sid, self._dealing.digests()))

    def _step_shared(self) -> list[CohortAction]:
        if "shares" in self._done or "ready" not in self._done or len(self._ready) < len(self.peers):
            return []
        if len(set(self._ready.values())) > 1:
            apart = self._tell_apart()
            return [*apart, *self._fail("a dealer showed different hash lists to different members", self._disputing())]
        self._done.add("shares")
        return [CancelTimer(self._key("shares")), *self._too_few_left()]

    def _disputing(self) -> set[int]:
        """Between whom there is a dispute about a dealer's hash list. One of them lies, so all of them are named; if
        more than `delta` contradict the most, they are the dealer's victims rather than liars."""
        named: set[int] = set()
        for dealer in range(len(self.peers)):
            claims = Counter(digests[dealer] for digests in self._ready.values())
            (most, _), *others = claims.most_common()
            if others:
                odd = {i for i, digests in self._ready.items() if digests[dealer] != most}
                named |= {dealer} | (odd if len(odd) <= max(1, tolerated(len(self.peers))) else set())
        return named

    def _step_upload(self) -> list[CohortAction]:
        if not self._once("upload", "shares" in self._done and self.tokens is not None):
            return []
        self._promise_upload()
        return [Upload(self.sid, self._plan())]

    def _plan(self) -> tuple[tuple[int, tuple[PeerId, ...]], ...]:
        """Chunks with receivers, spread so that all reducers receive at once and none is everybody's first."""
        count = len(self.peers)
        position: dict[int, int] = {}
        order: list[tuple[int, int, int]] = []
        for chunk, reducer in enumerate(self.duties.reducers):
            place = position[reducer] = position.get(reducer, -1) + 1
            order.append((place, (reducer - self.me) % count, chunk))
        plan: list[tuple[int, tuple[PeerId, ...]]] = []
        for _, _, chunk in sorted(order):
            reducer = self.duties.reducers[chunk]
            receivers = self.duties.copy_holders(self.me) if reducer == self.me else (reducer,)
            plan.append((chunk, tuple(self.peers[i] for i in receivers)))
        return tuple(plan)

    def _step_receipt(self) -> list[CohortAction]:
        if "receipt" in self._done or "shares" not in self._done:
            return []
        complete = {
            i for i, (manifest, _) in self.r3.manifests.items() if self.inputs.holds(i, self.inputs.owed(i), manifest)
        }
        # A receipt is final: with too few in it nothing could come of this sid, even if the others are back soon.
        all_here = complete | self._suspects >= set(range(len(self.peers))) and not self._few
        if not self._once("receipt", all_here or "upload-over" in self._done):
            return []
        return self._broadcast(self.r3.receipt(complete))

    @property
    def _all_receipts(self) -> bool:
        return set(self.r3.receipts) | self._suspects >= set(range(len(self.peers)))

    def _step_turns(self) -> list[CohortAction]:
        if not self._once("turns", "receipt" in self._done and self._all_receipts):
            return []
        return self._start_turns()

    def _start_turns(self) -> list[CohortAction]:
        """Leaders take turns once I wait for nobody. Others may wait for somebody whom only they miss, up to the end
        of the upload's time; so the turns begin again then, and only then they can run out."""
        if self.certified is not None or self.failed is not None:
            return []
        stop, self._turn = CancelTimer(self._key("survivors", self._turn)), 0
        return [stop, SetTimer(self._key("survivors", 0), self._slot())]

    def _slot(self) -> float:
        return self.params.deadlines.survivors / (tolerated(len(self.peers)) + 2)

    def _step_lead(self) -> list[CohortAction]:
        """The first leader proposes as soon as every live member's receipt is in; later ones when their turn comes."""
        if "receipt" not in self._done or "lead" in self._done or self.certified or not self._all_receipts:
            return []
        mine = self.r3.view_of(self.me)
        dead_before_me = {i for i in range(len(self.peers)) if self.r3.view_of(i) < mine} <= self._suspects
        return self._propose() if dead_before_me else []

    def _next_leader(self, turn: int) -> list[CohortAction]:
        if turn > tolerated(len(self.peers)) + 1:
            over = "upload-over" in self._done
            return self._fail("no survivor set got enough votes in time") if over else []
        self._turn = turn + 1
        actions: list[CohortAction] = [SetTimer(self._key("survivors", self._turn), self._slot())]
        if turn == self.r3.view_of(self.me):
            actions += self._propose()
        return actions + self._advance()

    def _propose(self) -> list[CohortAction]:
        proposal = self.r3.propose(self.r3.view_of(self.me)) if "lead" not in self._done else None
        return self._broadcast(proposal) if proposal is not None and self._once("lead", True) else []

    def _step_vote(self) -> list[CohortAction]:
        if "receipt" not in self._done or "vote" in self._done:
            return []
        vote = self.r3.vote()
        if vote is None:
            return []
        # One opening per round: whoever released shares in this round votes for no other sid of it.
        if self._guard.has_opened(self.params.run, self.roster.round) not in (None, self.sid):
            return self._fail("this round was opened in another attempt")
        self._guard.vote(self.sid, vote_digest(vote))
        self._done.add("vote")
        return self._broadcast(vote)

    def _step_certify(self) -> list[CohortAction]:
        certified = self.r3.certified() if "shares" in self._done and self.certified is None else None
        if certified is None or not self._once("certified", True):
            return []
        self.certified = certified
        self._audit.begin(certified.survivors)
        self.opening = Opening(self.roster, self._dealing, certified.survivors, self.threshold)
        limits = self.params.deadlines
        notes: list[CohortAction] = []
        for member, chunk in self._late:
            try:
                self._take_late(member, chunk)
            except ProtocolError as error:
                notes.append(Note(str(error), self.peers[member]))
        self._late.clear()
        timer = SetTimer(self._key("sums", 0), limits.unmask + limits.sums)
        return [*notes, timer, *self._release(certified.reducers), *self._stand_in(())]

    def _release(self, to: tuple[int, ...]) -> list[CohortAction]:
        """Step R4: shares leave only under the certificate, and only after the guard has written it down."""
        assert self.certified is not None
        assert self.opening is not None
        kinds = [self.opening.kind(i) for i in range(len(self.peers))]
        self._guard.open_round(self.params.run, self.roster.round, self.sid)
        self._guard.release(self.sid, {i: "b" if kind is Seed.SELF else "a" for i, kind in enumerate(kinds)})
        shares = tuple(self._dealing.share(kind, i) for i, kind in enumerate(kinds))
        message = self._seal(Unmask(self.sid, bitmap(self.certified.survivors), shares))
        actions: list[CohortAction] = [Send(self.peers[i], message) for i in to if i != self.me]
        self._unmasks.setdefault(self.me, Unmask(self.sid, bitmap(self.certified.survivors), shares))
        return actions

    def _step_open(self) -> list[CohortAction]:
        if self.certified is None or self.opening is None or "opened" in self._done:
            return []
        expected = bitmap(self.certified.survivors)
        notes: list[CohortAction] = []
        for holder, message in list(self._unmasks.items()):
            del self._unmasks[holder]
            if message.survivors != expected:
                continue
            try:
                self.opening.add(holder, message.shares)
            except ProtocolError as error:
                notes.append(Note(str(error), self.peers[holder]))
        mine = self.duties.of(self.me) if self.me in self.certified.reducers else ()
        if self.opening.try_open() and self._once("opened", True):
            return [*notes, Reduce(self.sid, mine)]
        return notes

    def _step_publish(self) -> list[CohortAction]:
        """Sums leave only when every live reducer's hashes are signed, so that none can fit its own to another's."""
        if self.certified is None or "reduced" not in self._done or self.sums.published:
            return []
        signed = {i for i in self.certified.reducers if self.sums.signed_by(i)}
        if not signed | self._suspects >= set(self.certified.reducers) and "sums-late" not in self._done:
            return []
        mine = self.sums.take_unpublished(self.me)
        others = [i for i in range(len(self.peers)) if i != self.me]
        if not self.roster.alone:  # only totals are for everybody; my sums are for them, and must not be lost with me
            others = self.duties.heirs(self.me, self.certified.reducers, self._suspects)
        return [Transfer(self.sid, BulkKind.SUM, mine, tuple(self.peers[i] for i in others))] if mine and others else []
