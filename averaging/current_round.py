"""One round at one peer: its search for a roster, its cohort, its record, and the committee's decision."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from averaging import aggregate as aggregates
from averaging.across import Across
from averaging.actions import Action, Note, Send, SetTimer, TimerKey
from averaging.aggregate import Aggregate
from averaging.agreement import Agreement, Timeouts
from averaging.attempt import Attempt
from averaging.attesting import Attestations
from averaging.ballots import Ballot, Certificate, Decision, DecisionRequest, Gossip, Proposal
from averaging.capacity import DEFAULT_CAPACITY
from averaging.chain import Chain
from averaging.cohort import Cohort
from averaging.committee import audience
from averaging.convening import FOLLOWS, MOVED, Convening
from averaging.evidence import TWO_ROSTERS, WRONG_SUM, WRONG_TOTAL, Proof
from averaging.guard import Guard
from averaging.messages import ATTESTED_CAP, Attest, Closed, Join, Knock, Ping, Seating, Shares, Wanted
from averaging.params import MAX_MEMBERS, RunParams, honest_witness
from averaging.record import Record
from averaging.recovery import Present, Recover, Recovery
from averaging.roster import convener
from averaging.witness import Witness
from averaging.work import Apply, Decided, Joined, ParticipantAction, Train
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError
from dht.identity import Identity, PeerId
from dht.wire import encode

_AGREEMENT = (Ballot, Proposal, Gossip, Decision, DecisionRequest)
_EARLY_SIDS = 4
"""Sids whose roster has not reached me yet and of which a sender's shares are kept."""


class CurrentRound:
    """The round after the chain's head. `outcome` is set once the committee's decision is known here."""

    def __init__(
        self,
        params: RunParams,
        identity: Identity,
        guard: Guard,
        urandom: Callable[[int], bytes],
        chain: Chain,
        capacity: int = DEFAULT_CAPACITY,
        expected: Collection[PeerId] = (),
        accused: Iterable[PeerId] = (),
    ) -> None:
        """`expected`: who was in the last roster, and will probably be in this one."""
        self._expected = {*expected, *chain.tip.expected}
        self._capacity = capacity
        self.params, self.number = params, chain.head.round + 1
        self._identity, self._guard, self._urandom, self._chain = identity, guard, urandom, chain
        self.committee = chain.committee()
        self.head = chain.head
        self.convening: Convening | None = None
        self.attempt: Attempt | None = None
        self.aggregate: Aggregate | None = None
        self.outcome: tuple[Record, Certificate] | None = None
        self.nonce = b""
        self.domain = 0
        self._tokens: int | None = None
        self._gone: set[PeerId] = set()
        self._attested = Attestations(chain.head, chain.tally, self.committee)
        self._early: dict[PeerId, deque[tuple[Shares, bytes]]] = {}
        self._seen_agreeing: set[PeerId] = set()
        self._agreeing = self._may_agree = False
        self._held: tuple[Record, Certificate] | None = None
        self._awaited = params.layout.total_chunks + 1
        self._computed: Record | None = None
        self._accused = set(accused)
        self._witness = Witness(params.run, self.number, chain.beacon, self.committee)
        self._accusations = 0
        self.timers: dict[TimerKey, None] = {}
        self.recovery = Recovery(params.run, identity, chain.head, self.committee, params.recovery_after)
        commit = params.deadlines.commit
        self.agreement = Agreement(
            params.run,
            self.number,
            self.committee,
            identity,
            chain.beacon,
            guard,
            Timeouts(propose=commit, prevote=commit / 3, precommit=commit / 3, growth=commit / 6, resend=commit / 3),
            validate=self._attested.judge,
            propose=self._attested.propose,
        )

    # --- inputs -------------------------------------------------------------------------------------------------

    def begin(self) -> Sequence[ParticipantAction]:
        """The round begins, whether I take part in its aggregation or not."""
        return self._track(self.recovery.begin())

    def join(self, newcomers: set[PeerId], gone: set[PeerId]) -> Sequence[ParticipantAction]:
        """My state is the head's: start training and look for a roster. Until then I only follow the decision."""
        self._gone |= gone
        if self.convening is not None:
            return []
        opened = self._guard.has_opened(self.params.run, self.number) is not None
        if opened or self.number <= self._guard.forsaken(self.params.run):
            # One opening per round: before a restart, or on a branch that I left, shares were or may be released for a
            # sum with this update. If the others cannot finish without me, the round must not wait for me either.
            limits = self.params.deadlines
            return self._track([SetTimer(("give-up", self.number, 0), limits.unmask + 2 * limits.sums + limits.commit)])
        self.convening = Convening(
            self.params,
            self._identity,
            self.number,
            self._chain.beacon,
            self.committee,
            self._guard,
            self._urandom,
            self._gone,
            self._expected,
            self._capacity,
            accused=self._accused,
            domain=self.domain,
        )
        self.convening.newcomers, self.convening.nonce = set(newcomers), self.nonce
        return self._track([Train(self.number), *self.convening.begin(0, self.params.weight_cap)])

    @property
    def engaged(self) -> bool:
        """Whether I am in a roster of this round."""
        return self.attempt is not None

    @property
    def cohort(self) -> Cohort | None:
        """Mine in the present attempt."""
        return self.attempt.cohort if self.attempt is not None else None

    def receive(self, sender: PeerId, envelope: Envelope, message: object, frame: bytes) -> Sequence[ParticipantAction]:
        """A checked envelope of this round. Raises ProtocolError when its content is refused."""
        if isinstance(message, Present | Recover):
            return self._track(self._after_recovery(self.recovery.receive(sender, envelope, message)))
        if isinstance(message, Decision):
            self.recovery.decided(message)
            self._after_recovery([])
            if self.outcome is not None:
                return []
        if isinstance(message, _AGREEMENT):
            return self._track(self._on_agreement(sender, envelope, message))
        if isinstance(message, Attest):
            self._witness.compare(sender, message, frame)
            self._attested.add(sender, message, envelope)
            waits = self._awaits_attestations()
            agree = self._agree() if self._agreeing or (self._may_agree and self._attested.attested) else []
            return self._track([*([] if waits else self._begin_to_agree()), *agree])
        if isinstance(message, Join):
            return self._track(self.convening.receive_join(sender, envelope, message) if self.convening else [])
        if isinstance(message, Closed):
            closed = self.convening.receive_closed(sender, message) if self.convening else []
            return self._track([*closed, *self._on_moved(sender, message), *self.advance()])
        if isinstance(message, Seating):
            return self._track(self._on_roster(message))
        sid = getattr(message, "sid", b"")
        if self.attempt is None or not self.attempt.has(sid):
            if isinstance(message, Ping | Wanted):
                knock = Knock(self.number, self._chain.beacon, self.nonce)
                return [Send(sender, seal(self._identity, self.params.run, self.number, knock))]
            self._keep_early(sender, message, frame)
            return self._show_seating(sender, message)
        return self._track([*self.attempt.receive(sender, envelope, message, frame), *self.advance()])

    def timeout(self, key: TimerKey) -> Sequence[ParticipantAction]:
        """A timer of this round fired."""
        self.timers.pop(key, None)
        name = key[0]
        if name == "recover":
            return self._track(self._after_recovery(self.recovery.timeout(key)))
        if name.startswith("agree"):
            return self._track([*self.agreement.timeout(key), *self._after_agreement()])
        if name in ("join", "roster", "seated"):
            return self._track(self.convening.timeout(key) if self.convening else [])
        if name == "attests":
            return self._track(self._begin_to_agree())
        if name == "give-up":
            return self._track(self._give_up())
        if name == "fetch" and self._held is not None:
            return self._track(self._wait_for_sums())
        return self._track([*self.attempt.timeout(key), *self.advance()]) if self.attempt is not None else []

    def trained(self, tokens: int) -> Sequence[ParticipantAction]:
        """My update is ready."""
        self._tokens = tokens
        return self._track([*self.cohort.update_ready(tokens), *self.advance()]) if self.cohort else []

    def applied(self, state_root: bytes, loss: float) -> Sequence[ParticipantAction]:
        """The next state's root is known: attest the record that follows from it."""
        attempt = self.attempt
        if self.aggregate is None or attempt is None or attempt.failed is not None or self._computed is not None:
            return []
        record = self._computed = aggregates.record_of(self.aggregate, self._chain.tip, state_root, loss)
        if self._held is not None:
            self._attested.mine = record
            self.outcome = self._held
            return []
        return self._track(self._attest())

    def _attest(self) -> list[ParticipantAction]:
        """Say what I computed, once all sums behind it that are audited were found right."""
        record, attempt = self._computed, self.attempt
        if record is None or attempt is None or self._attested.mine is not None or not attempt.audited:
            return []
        self._attested.mine = record
        frame = encode(record)
        attest = Attest(self.number, record.hash(), frame if len(frame) <= ATTESTED_CAP else b"")
        envelope = seal(self._identity, self.params.run, self.number, attest)
        self._attested.add(self._identity.peer_id, attest, envelope)
        mine = self._identity.peer_id
        sends = [Send(peer, envelope) for peer in self.committee if mine in self.committee and peer != mine]
        timer = SetTimer(("attests", self.number, 0), self.params.deadlines.commit)
        return [*sends, *([timer] if self._awaits_attestations() else self._begin_to_agree())]

    def _begin_to_agree(self) -> list[ParticipantAction]:
        """Once, when I have attested and wait for nobody else's attestation any more."""
        attempt = self.attempt
        if self._may_agree or attempt is None or attempt.failed is not None or self._attested.mine is None:
            return []
        self._may_agree = True
        # Nothing can be decided before a quorum has computed it: no view begins, and nobody votes for nothing.
        agree = self._agree() if self._agreeing or self._attested.attested else []
        return [SetTimer(("give-up", self.number, 0), attempt.patience), *agree]

    def _awaits_attestations(self) -> bool:
        mine = self._identity.peer_id
        if self.attempt is None or mine not in self.committee or self._agreeing:
            return False
        return not self.attempt.recounters(self.committee) - self._gone <= self._attested.by

    def rejected(self) -> Sequence[ParticipantAction]:
        """The cohort's sums are not to be applied: nobody honest attests them, so the round will be void."""
        return self._track(self._give_up())

    def suspect(self, peer: PeerId, *, lost: bool = False) -> Sequence[ParticipantAction]:
        """A peer cannot be reached, or `lost` its part in the present attempt, however well it is now."""
        self._gone.add(peer)
        actions: list[ParticipantAction] = []
        if self.convening is not None:
            actions += self.convening.suspect(peer)
        if self.attempt is not None:
            actions += self.attempt.suspect(peer, lost=lost)
            actions += [*([] if self._awaits_attestations() else self._begin_to_agree()), *self.advance()]
        return self._track(actions)

    def lost_its_part(self, peer: PeerId, nonce: bytes) -> bool:
        """Whether a peer that knocks restarted after it had joined my attempt: its masks went with its memory.

        A Knock from before it was in the cohort may arrive late; it has the nonce of its Join.
        """
        return self.attempt is not None and self.attempt.lost_by(peer, nonce)

    def trust(self, peer: PeerId) -> None:
        """A peer was heard."""
        self._gone.discard(peer)
        if self.convening is not None:
            self.convening.trust(peer)
        if self.attempt is not None:
            self.attempt.trust(peer)

    def _keep_early(self, sender: PeerId, message: object, frame: bytes) -> None:
        """Shares may overtake the roster. Nothing else can: the next step needs the shares that I will deal."""
        if self._witness.is_past(message):
            return self._witness.compare(sender, message, frame)
        crowded = sender not in self._early and sender not in self.committee and len(self._early) >= MAX_MEMBERS
        if isinstance(message, Shares) and crowded:
            return
        if isinstance(message, Shares):
            self._early.setdefault(sender, deque(maxlen=_EARLY_SIDS)).append((message, frame))

    # --- liars ----------------------------------------------------------------------------------------------------

    def take_proofs(self) -> list[bytes]:
        """Evidence found since the last call."""
        for pair in self.agreement.contradictions[self._accusations :]:
            self._accusations += 1
            self._witness.compare_ballots(*pair)
        return self._witness.take(self.cohort)

    def accuse(self, proof: Proof) -> Sequence[ParticipantAction]:
        """A peer is proven a liar: leave it out, and refuse what its lie has spoiled."""
        self._accused.add(proof.accused)
        actions: list[ParticipantAction] = []
        if self.convening is not None:
            actions += self.convening.accuse(proof.accused)
        attempt, cohort = self.attempt, self.cohort
        if proof.round == self.number and proof.kind in (WRONG_SUM, WRONG_TOTAL):
            self._attested.refuted.add(proof.sid)
            if attempt is not None:
                self._attested.refuted |= {attempt.roster.round_sid} if attempt.rests_on(proof.sid) else set()
                actions += attempt.refute(proof)
            actions += [*self.agreement.reconsider(), *self._after_agreement()]
            if attempt is None:
                actions += self._give_up()
        elif cohort is not None and cohort.certified is None and proof.kind == TWO_ROSTERS:
            spoiled = convener(self._chain.beacon, self.committee, cohort.roster.attempt) == proof.accused
            actions += cohort.give_up(proof.text) if spoiled else []
        return self._track([*actions, *self.advance()])

    def _show_seating(self, sender: PeerId, message: object) -> list[ParticipantAction]:
        seating = self._witness.disagrees(sender, message, self.cohort)
        if seating is None:
            return []
        return [Send(sender, seal(self._identity, self.params.run, self.number, seating))]

    # --- roster and cohort --------------------------------------------------------------------------------------

    def _on_roster(self, seating: Seating) -> Sequence[ParticipantAction]:
        convening = self.convening
        self._witness.compare_roster(seating, convening.attempt + 1 if convening else 0)
        seated = self.attempt is not None and convening is not None and convening.roster is not None
        if convening is None or self.aggregate is not None:
            return []
        if seated:
            mine = self.cohort.seating if self.cohort is not None else None
            return self._pass_onward(seating) if mine is not None and mine.roster == seating.roster else []
        roster = convening.receive_roster(seating)
        if roster is None or convening.secrets is None:
            return []
        if self.cohort is not None:
            self._witness.bury(self.cohort)
        params, identity, guard, tip = self.params, self._identity, self._guard, self._chain.tip
        cohort = Cohort(params, identity, roster, convening.secrets, guard, self._urandom)
        self._witness.watch(cohort, replace(seating, onward=b""))
        across = None
        if not roster.alone:
            across = Across(params, identity, roster, self.committee, guard, cohort, tip, self._urandom)
        self.attempt = Attempt(cohort, across, self._witness)
        self._gone -= roster.present  # whoever joined is back, even if I could not reach it earlier
        actions: list[ParticipantAction] = [Joined(self.number, roster.attempt, roster.peers)]
        actions += [SetTimer(("give-up", self.number, 0), self.attempt.longest), *convening.pass_on(seating)]
        actions += self._pass_onward(seating)
        actions += self.attempt.start()
        if self._tokens is not None:
            actions += self.attempt.cohort.update_ready(self._tokens)
        actions += self._take_early(self.attempt.cohort)
        return [*actions, *self.advance()]

    def _pass_onward(self, seating: Seating) -> list[ParticipantAction]:
        """Whoever brought it with Joins that are not those of others' cohorts must not end my own part, too."""
        try:
            return [*self.convening.pass_onward(seating)] if self.convening is not None else []
        except ProtocolError as error:
            return [Note(str(error))]

    def _take_early(self, cohort: Cohort) -> list[ParticipantAction]:
        actions: list[ParticipantAction] = []
        early, self._early = self._early, {}
        for sender, message, frame in [(peer, *kept) for peer, waiting in early.items() for kept in waiting]:
            if message.sid != cohort.sid:
                actions += self._show_seating(sender, message)
                continue
            try:
                actions += cohort.receive(sender, message, frame)
            except ProtocolError as error:
                actions.append(Note(str(error), sender))
        return actions

    def _on_moved(self, sender: PeerId, message: Closed) -> Sequence[ParticipantAction]:
        """Whoever goes on to a later attempt has given up the one that I am in: nobody needs to wait for it there."""
        cohort = self.cohort
        if cohort is None or message.reason not in (MOVED, FOLLOWS) or message.attempt <= cohort.roster.attempt:
            return []
        return cohort.left(sender)

    def advance(self) -> Sequence[ParticipantAction]:
        """Take what follows from the attempt's progress: apply its sums, or try again, or give the round up."""
        attempt, convening = self.attempt, self.convening
        if attempt is None:
            return []
        deserted = convening is not None and convening.deserted(attempt.roster.attempt)
        actions: list[ParticipantAction] = [*attempt.advance(deserted=deserted)]
        failed = attempt.failed
        if failed is None:
            return self._track([*actions, *self._apply(), *self._attest(), *self._join_again()])
        released = attempt.released or self._guard.has_opened(self.params.run, self.number) is not None
        if released or convening is None or convening.attempt + 1 >= self.params.attempts:
            return self._track([*actions, *([] if self._attested.given_up else self._give_up())])
        peers = attempt.roster.peers
        missing = tuple(peer for peer in failed.laggards if peer in peers)
        outside = [peer for peer in peers if peer not in self.committee]  # the committee hears of it anyway
        self._witness.bury(attempt.cohort)
        self.attempt = None
        if convening.roster is None:  # the next attempt has begun already
            return self._track(actions)
        begin = convening.begin(convening.attempt + 1, self.params.weight_cap, missing, follows=False)
        return self._track([*actions, *begin, *convening.tell_where(outside)])

    def _join_again(self) -> Sequence[ParticipantAction]:
        """My cohort failed before anything was uploaded: I follow the others' totals. Should they fail, too, as when
        the roster reached few, the next attempt begins without waiting for the end of this one."""
        cohort, convening = self.cohort, self.convening
        if cohort is None or cohort.failed is None or cohort.uploads or self.aggregate is not None:
            return []
        spent = convening is None or convening.attempt + 1 >= self.params.attempts
        if convening is None or spent or convening.roster is None or convening.roster.sid != cohort.sid:
            return []
        missing = tuple(peer for peer in cohort.failed.laggards if peer in cohort.peers)
        return convening.begin(convening.attempt + 1, self.params.weight_cap, missing, follows=True)

    def _apply(self) -> list[ParticipantAction]:
        if self.aggregate is not None or self.attempt is None:
            return []
        self.aggregate = self.attempt.aggregate()
        return [Apply(self.aggregate.sid)] if self.aggregate is not None else []

    def _after_recovery(self, actions: list[Action]) -> list[Action]:
        if self.outcome is None and self.recovery.outcome is not None:
            self.outcome = self.recovery.outcome
        return actions

    # --- decision -----------------------------------------------------------------------------------------------

    def _on_agreement(self, sender: PeerId, envelope: Envelope, message: object) -> Sequence[ParticipantAction]:
        actions: list[ParticipantAction] = list(self.agreement.receive(envelope))
        if isinstance(message, Gossip) and self.agreement.decision is None:
            shown = self._attested.help(sender, self._identity.peer_id, self.agreement.view)
            actions += [Send(sender, envelope) for envelope in shown]
        if sender in self.committee and not isinstance(message, Decision | DecisionRequest):
            self._seen_agreeing.add(sender)
            if len(self._seen_agreeing) >= honest_witness(len(self.committee)) and not self._agreeing:
                # Others are deciding without me: take part, and give up sooner if I am not aggregating myself.
                actions += self._agree()
                if self.attempt is None:
                    actions.append(SetTimer(("give-up", self.number, 0), 3 * self.params.deadlines.commit))
        return [*actions, *self._after_agreement()]

    def _agree(self) -> list[Action]:
        started = [] if self._agreeing else self.agreement.start()
        self._agreeing = True
        return [*started, *self.agreement.revalidate(), *self._after_agreement()]

    def _give_up(self) -> Sequence[ParticipantAction]:
        self._attested.given_up = True
        return self._agree()

    def _after_agreement(self) -> list[Action]:
        if self.agreement.decision is None or self.outcome is not None or self._held is not None:
            return []
        record, certificate = self.agreement.decision
        attempt = self.attempt
        sums_due = attempt is not None and attempt.roster.round_sid == record.sid and attempt.failed is None
        if not record.void and self._computed is None and sums_due:
            # The others were faster, and my sums are on their way: cheaper than fetching the whole state.
            self._held = (record, certificate)
            return self._wait_for_sums()
        self.outcome = (record, certificate)
        return []

    def _wait_for_sums(self) -> list[Action]:
        """While more of the sums arrive, wait on: on a slow line the whole state would take longer still."""
        attempt, missing = self.attempt, self._awaited
        self._awaited = attempt.missing if attempt is not None else missing
        if attempt is None or attempt.failed is not None or self._awaited >= missing:
            self.outcome = self._held
            return []
        return [SetTimer(("fetch", self.number, 0), self.params.deadlines.sums)]

    def followers(self, knockers: Collection[PeerId]) -> set[PeerId]:
        """Whom I tell the decision."""
        everybody = self.attempt.roster.everybody if self.attempt is not None else ()
        return audience(self._identity.peer_id, self.committee, everybody, knockers)

    def adoptable(self, record: Record) -> bool:
        """Whether the certified record is the one whose state I computed myself."""
        return not record.void and record == self._computed

    def decided(self, record: Record, certificate: Certificate) -> Decided:
        """The report of this round's end."""
        return Decided(record, certificate, not record.void and record.names(self._identity.peer_id))

    def _track(self, actions: Sequence[ParticipantAction]) -> Sequence[ParticipantAction]:
        self.timers.update((action.key, None) for action in actions if isinstance(action, SetTimer))
        return actions
