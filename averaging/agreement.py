"""Agreement on one round's record: single-shot Tendermint (Buchman, Kwon, Milosevic 2018, arXiv 1807.04938).

The committee goes through views. In each, one member proposes a record; members prevote it, precommit what a
quorum prevoted, and a quorum of precommits of one view is the certificate. A member that precommitted is
*locked*: it prevotes another record only against a proof that a quorum prevoted that one in a later view. No two
records of a round can be certified while fewer than a third of the committee lie, whatever the network does;
one is, once the network delivers.

The machine does no I/O: inputs return actions. What departs from the paper, and why, is in
`docs/decisions/0004-agreement.md`: messages may be lost, so an undecided member repeats what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from averaging.actions import Action, CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.ballot_box import BallotBox, Pair
from averaging.ballots import (
    KIND_NAMES,
    NIL,
    PRECOMMIT,
    PREVOTE,
    Ballot,
    Certificate,
    Decision,
    DecisionRequest,
    Gossip,
    Memory,
    ProofOfLock,
    Proposal,
)
from averaging.certificate import open_record
from averaging.committee import Committee
from averaging.guard import Guard, GuardRefusedError
from averaging.record import Record
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, digest, encode, message_type

PROPOSE_TIMER, PREVOTE_TIMER, PRECOMMIT_TIMER = "agree-propose", "agree-prevote", "agree-precommit"
RESEND_TIMER = "agree-resend"
_STEP_PROPOSE, _STEP_PREVOTE, _STEP_PRECOMMIT = 0, 1, 2
_ASKED_PER_TICK = 2
_TOLD_PER_TICK = 8


def lock_key(run: bytes, beacon: bytes) -> bytes:
    """Under which name, 32 bytes, the guard keeps the locks of agreements on the round after one head."""
    return digest("lock", run, beacon)


class Verdict(Enum):
    """What the caller thinks of a proposed record. UNKNOWN_YET is asked again after `revalidate`."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN_YET = "unknown yet"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. A view's timeouts grow by `growth` times its number, up to `ceiling`, until views are long enough
    for the network as it is; `resend` is how often an undecided member repeats itself.
    """

    propose: float = 3.0
    prevote: float = 1.0
    precommit: float = 1.0
    growth: float = 0.5
    ceiling: float = 60.0
    resend: float = 1.0

    def of(self, timer: str, view: int) -> float:
        """Length of one of the three view timers."""
        base = {PROPOSE_TIMER: self.propose, PREVOTE_TIMER: self.prevote, PRECOMMIT_TIMER: self.precommit}[timer]
        return min(base + self.growth * view, self.ceiling)


class Agreement:
    """One member's (or observer's) part in deciding one round.

    `committee` are the members in the order in which certificates index them; `me` need not be one of them: an
    observer follows and learns the decision. `beacon` (32 bytes) ranks the proposers. `validate` judges somebody's
    record, `propose` returns mine or None while I have none. Call `start` once; messages may arrive before.
    """

    def __init__(
        self,
        run: bytes,
        round_: int,
        committee: Sequence[PeerId],
        me: Identity,
        beacon: bytes,
        guard: Guard,
        timeouts: Timeouts | None = None,
        *,
        validate: Callable[[Record], Verdict],
        propose: Callable[[], Record | None],
    ) -> None:
        self.run, self.round = run, round_
        self.committee = Committee(run, round_, committee, beacon)
        self.decision: tuple[Record, Certificate] | None = None
        self._me, self._guard, self._timeouts = me, guard, timeouts or Timeouts()
        # A lock is on a successor of this head: on another branch the same round is another agreement.
        self._lock_key = lock_key(run, beacon)
        self._validate, self._propose_mine = validate, propose
        self._is_member = self.committee.index(me.peer_id) is not None
        self._box = BallotBox(round_, len(committee))
        self._memory = Memory(round_, 0, _STEP_PROPOSE, (), (), 0, NIL, ())
        self._verdicts: dict[bytes, Verdict] = {}
        self._timers: set[TimerKey] = set()
        self._actions: list[Action] = []
        self._started = self._may_propose = False
        self._asked = committee.index(me.peer_id) if self._is_member else 0

    @property
    def view(self) -> int:
        """The view that this member is in."""
        return self._memory.view

    @property
    def contradictions(self) -> tuple[Pair, ...]:
        """Messages by which a member contradicted itself, at most two per member and kind."""
        return tuple(self._box.contradictions.values())

    # Inputs

    def start(self) -> list[Action]:
        """Begin, or go on where this member stood before a restart. Raises StorageError from the guard."""
        blob = self._guard.load_lock(self._lock_key, self.round)
        if blob is not None and self._is_member:
            self._restore(decode_as(Memory, blob))
        self._started = self._may_propose = True
        if self.decision is None:
            self._set_timer(RESEND_TIMER, 0, self._timeouts.resend)
            self._begin_view()
            if blob is not None:
                self._repeat()
        return self._finish()

    def receive(self, envelope: Envelope) -> list[Action]:
        """Take a message from anybody, relayed by anybody.

        Raises ProtocolError when it is forged, malformed, foreign or of another round. Of a gossip, what came before
        the bad part is kept, since each part proves itself.
        StorageError from the guard leaves the machine as it was before the vote that could not be written.
        """
        if self._box.holds(envelope) or (self.decision is not None and envelope.body[0] in _VOTING_TAGS):
            return []
        sender = envelope.check(self.run)
        if envelope.round != self.round:
            raise ProtocolError(Refusal.STALE, f"round {envelope.round} in the agreement on round {self.round}")
        body = envelope.message()
        if getattr(body, "round", self.round) != self.round:
            raise ProtocolError(Refusal.STALE, f"{type(body).__name__} of round {body.round} in another envelope")
        if isinstance(body, DecisionRequest):
            return self._answer(sender)
        if isinstance(body, Decision):
            record, certificate = self.committee.check_decision(body)
            if self.decision is None:
                self._conclude(record, certificate)
        elif self.committee.index(sender) is None:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{sender.short} is not in the committee")
        elif isinstance(body, Gossip):
            if self.decision is not None:
                return self._answer(sender)
            self._take_gossip(body)
        elif isinstance(body, Ballot | Proposal):
            self._take(envelope)
        else:
            raise ProtocolError(Refusal.UNEXPECTED, f"{type(body).__name__} in the agreement")
        return self._finish()

    def timeout(self, key: TimerKey) -> list[Action]:
        """A timer that was set here ran out. Stale ones do nothing."""
        what, round_, view = key
        if self.decision is not None or round_ != self.round or key not in self._timers:
            return []
        self._timers.discard(key)
        if what == RESEND_TIMER:
            self._set_timer(RESEND_TIMER, 0, self._timeouts.resend)
            self._repeat()
        elif view == self.view:
            if what == PROPOSE_TIMER and self._memory.step == _STEP_PROPOSE:
                self._cast(PREVOTE, NIL)
            elif what == PREVOTE_TIMER and self._memory.step == _STEP_PREVOTE:
                self._cast(PRECOMMIT, NIL)
            elif what == PRECOMMIT_TIMER:
                precommits = self._box.log(view).cast[PRECOMMIT]
                self._enter(view + 1, tuple(precommits.values()))
        return self._finish()

    def revalidate(self) -> list[Action]:
        """More is known now: ask again about records that were UNKNOWN_YET, and for mine if I had none."""
        self._verdicts = {v: verdict for v, verdict in self._verdicts.items() if verdict is not Verdict.UNKNOWN_YET}
        self._may_propose = True
        return self._finish()

    def reconsider(self) -> list[Action]:
        """What I know has changed so much that all verdicts are asked for again; votes that were cast stay."""
        self._verdicts.clear()
        return self.revalidate()

    def decision_message(self) -> Envelope:
        """The decision, signed as relayed by me, for anybody who needs it. Raises RuntimeError before there is one."""
        if self.decision is None:
            raise RuntimeError("nothing is decided yet")
        record, certificate = self.decision
        return self._seal(Decision(encode(record), encode(certificate)))

    # Rules of the paper, by its line numbers; each returns whether it fired

    def _decide(self) -> bool:
        """L49: a quorum of precommits of one view. It binds even who could not validate the record."""
        found = self._box.certificate()
        if found is not None:
            self._conclude(found[1], found[0])
        return found is not None

    def _skip(self) -> bool:
        """L55: one honest member at least is in a later view."""
        reached = self._box.reached(self.committee.faulty + 1)
        if reached is None or reached[0] <= self.view:
            return False
        self._enter(*reached)
        return True

    def _learn_proof(self) -> bool:
        """L42: a quorum prevoted a record; it is what I propose when my turn comes."""
        found = self._box.proof(self._proof_view())
        return found is not None and self._keep_proof(*found)

    def _propose(self) -> bool:
        """L14: my turn; the newest proven record, else my own."""
        memory = self._memory
        if (
            memory.step != _STEP_PROPOSE
            or not self._may_propose
            or self.committee.proposer(self.view) != self._me.peer_id
        ):
            return False
        if self._box.log(self.view).proposal is not None or self._proof_view() >= self.view:
            return False
        self._may_propose = False
        proposal = self._my_proposal()
        if proposal is None or not self._promised("proposal", proposal.value):
            return False
        envelope = self._seal(proposal)
        self._remember(replace(memory, own=(envelope,)))
        self._take(envelope)
        self._broadcast(envelope)
        return True

    def _my_proposal(self) -> Proposal | None:
        for proof in self._memory.proof:
            return Proposal(
                round=self.round,
                view=self.view,
                value=proof.value,
                valid_view=proof.view + 1,
                record=proof.record,
                signers=proof.signers,
                signatures=proof.signatures,
            )
        record = self._propose_mine()
        if record is None:
            return None
        self._verdicts[record.hash()] = Verdict.VALID
        return Proposal(self.round, self.view, record.hash(), 0, encode(record), (), ())

    def _prevote(self) -> bool:
        """L22 and L28: the proposal, if it is valid and the lock allows it."""
        entry = self._box.log(self.view).proposal
        if self._memory.step != _STEP_PROPOSE or entry is None:
            return False
        proposal = entry[0]
        verdict = self._verdict(proposal.value)
        if not self._lock_allows(proposal.value, proposal.valid_view) or verdict is Verdict.INVALID:
            self._cast(PREVOTE, NIL)
        elif verdict is Verdict.VALID or proposal.valid_view > 0 or self._proven(proposal.value):
            # A quorum's prevotes contain an honest member that did validate it.
            self._cast(PREVOTE, proposal.value)
        else:
            return False
        return True

    def _lock_allows(self, value: bytes, valid_view: int) -> bool:
        """The lock rule: another value than the locked one only with a proof no older than the lock."""
        memory = self._memory
        return memory.locked_view == 0 or memory.locked_value == value or valid_view >= memory.locked_view

    def _precommit(self) -> bool:
        """L36: a quorum prevoted a record in this view: lock it and precommit."""
        memory = self._memory
        if memory.step != _STEP_PREVOTE or self._proof_view() != self.view:
            return False
        self._cast(PRECOMMIT, memory.proof[0].value)
        return True

    def _precommit_nil(self) -> bool:
        """L44: a quorum prevoted nothing."""
        votes = self._box.log(self.view).votes[PREVOTE].get(NIL, {})
        if self._memory.step != _STEP_PREVOTE or len(votes) < self.committee.quorum:
            return False
        self._cast(PRECOMMIT, NIL)
        return True

    def _wait_for_prevotes(self) -> bool:
        """L34: a quorum prevoted, but not alike; give the rest a moment."""
        ready = len(self._box.log(self.view).cast[PREVOTE]) >= self.committee.quorum
        return ready and self._memory.step == _STEP_PREVOTE and self._set_view_timer(PREVOTE_TIMER)

    def _wait_for_precommits(self) -> bool:
        """L47: a quorum precommitted, but not alike."""
        return len(self._box.log(self.view).cast[PRECOMMIT]) >= self.committee.quorum and self._set_view_timer(
            PRECOMMIT_TIMER
        )

    def _finish(self) -> list[Action]:
        """Apply rules until none fires, then hand over the actions."""
        rules: tuple[Callable[[], bool], ...] = (self._decide, self._skip)
        if self._is_member and self._started:
            rules += (self._learn_proof, self._propose, self._prevote, self._precommit, self._precommit_nil)
            rules += (self._wait_for_prevotes, self._wait_for_precommits)
        while self.decision is None and any(rule() for rule in rules):
            pass
        actions, self._actions = self._actions, []
        return actions

    # Steps

    def _enter(self, view: int, entry: tuple[Envelope, ...]) -> None:
        self._memory = replace(self._memory, view=view, step=_STEP_PROPOSE, own=(), entry=entry)
        self._box.move_to(view)
        self._verdicts = {value: verdict for value, verdict in self._verdicts.items() if self._box.record(value)}
        for key in sorted(self._timers):
            if key[0] != RESEND_TIMER:
                self._cancel(key)
        self._may_propose = True
        self._begin_view()

    def _begin_view(self) -> None:
        if self._is_member and self._started and self._memory.step == _STEP_PROPOSE:
            self._set_view_timer(PROPOSE_TIMER)

    def _cast(self, kind: int, value: bytes) -> None:
        """Write the vote (and the lock that it implies) down, then cast it."""
        envelope = self._seal(Ballot(self.round, self.view, kind, value))
        memory = replace(self._memory, step=kind + 1)
        if kind == PRECOMMIT and value != NIL:
            memory = replace(memory, locked_view=self.view + 1, locked_value=value)
        if not self._promised(KIND_NAMES[kind], value):
            self._memory = memory
            return
        self._remember(replace(memory, own=(*memory.own, envelope)))
        self._take(envelope)
        self._broadcast(envelope)

    def _promised(self, kind: str, value: bytes) -> bool:
        """Write down that I say this in this view. False when, in a life that I forgot, I said something else."""
        try:
            self._guard.ballot(self.run, self.round, self.view, kind, value)
        except GuardRefusedError as error:
            self._actions.append(Note(f"abstains in view {self.view}: {error}", self._me.peer_id))
            return False
        return True

    def _conclude(self, record: Record, certificate: Certificate) -> None:
        self.decision = (record, certificate)
        for key in sorted(self._timers):
            self._cancel(key)

    def _remember(self, memory: Memory) -> None:
        self._guard.save_lock(self._lock_key, self.round, encode(memory))
        self._memory = memory

    def _restore(self, memory: Memory) -> None:
        self._memory = memory
        self._box.move_to(memory.view)
        for envelope in (*memory.entry, *memory.own):
            self._take(envelope)
        for proof in memory.proof:
            self._box.add_record(proof.view, proof.value, open_record(proof.record, proof.value))

    # Messages

    def _take(self, envelope: Envelope) -> None:
        """Check and store a ballot or proposal; `envelope` may come from anybody."""
        if self._box.holds(envelope):
            return
        body = envelope.message()
        index = self.committee.index(envelope.sender)
        if index is None:
            raise ProtocolError(Refusal.NOT_A_MEMBER, "a vote from outside the committee")
        if not isinstance(body, Ballot | Proposal):
            raise ProtocolError(Refusal.UNEXPECTED, f"{type(body).__name__} where a ballot or proposal was due")
        self.committee.check_vote(envelope, body)
        if isinstance(body, Ballot):
            accusation = self._box.add_ballot(index, body, envelope)
        else:
            record, proof = self.committee.check_proposal(body, envelope.sender)
            accusation = self._box.add_proposal(index, body, envelope, record)
            if proof is not None:
                self._keep_proof(proof, record)
        if accusation is not None:
            sender = PeerId(envelope.sender)
            self._actions.append(Note(f"{sender.short} contradicts itself in view {body.view}", sender))

    def _take_gossip(self, gossip: Gossip) -> None:
        for proof in gossip.proof:
            if proof not in self._memory.proof:
                self._keep_proof(proof, self.committee.check_proof(proof))
        for envelope in (*gossip.proposal, *gossip.ballots):
            self._take(envelope)

    def _answer(self, to: PeerId) -> list[Action]:
        return [] if self.decision is None else [Send(to, self.decision_message())]

    def _repeat(self) -> None:
        """Send what others may lack; an observer asks two members, others in turn."""
        if not self._is_member:
            for _ in range(_ASKED_PER_TICK):
                member = self.committee.proposers[self._asked % len(self.committee.members)]
                self._actions.append(Send(member, self._seal(DecisionRequest(self.round))))
                self._asked += 1
            return
        proposal = self._box.log(self.view).proposal
        ballots = [envelope for envelope in self._memory.own if envelope.body[0] == message_type(Ballot).tag]
        held = (*self._memory.entry, *ballots)
        proposals = (proposal[1],) if proposal else ()
        envelope = self._seal(Gossip(self.round, held, proposals, self._memory.proof))
        others = [member for member in self.committee.members if member != self._me.peer_id]
        # In a large committee some at a time, in turn: what all hold would come from everybody to everybody.
        told = [others[(self._asked + k) % len(others)] for k in range(min(_TOLD_PER_TICK, len(others)))]
        self._asked += _TOLD_PER_TICK
        self._actions.extend(Send(member, envelope) for member in told)

    def _broadcast(self, envelope: Envelope) -> None:
        self._actions.extend(Send(member, envelope) for member in self.committee.members if member != self._me.peer_id)

    def _seal(self, body: object) -> Envelope:
        return seal(self._me, self.run, self.round, body)

    # What is known

    def _verdict(self, value: bytes) -> Verdict:
        record = self._box.record(value)
        if value not in self._verdicts:
            self._verdicts[value] = Verdict.UNKNOWN_YET if record is None else self._validate(record)
        return self._verdicts[value]

    def _proof_view(self) -> int:
        return self._memory.proof[0].view if self._memory.proof else -1

    def _proven(self, value: bytes) -> bool:
        return any(proof.value == value for proof in self._memory.proof)

    def _keep_proof(self, proof: ProofOfLock, record: Record) -> bool:
        """Keep the newest proof, unless I know that its record is wrong; whether it is kept."""
        self._box.add_record(proof.view, proof.value, record)
        if proof.view <= self._proof_view() or self._verdict(proof.value) is Verdict.INVALID:
            return False
        self._memory = replace(self._memory, proof=(proof,))
        return True

    # Timers

    def _set_view_timer(self, what: str) -> bool:
        """Set a timer of the current view once; whether it was set now."""
        if (what, self.round, self.view) in self._timers:
            return False
        self._set_timer(what, self.view, self._timeouts.of(what, self.view))
        return True

    def _set_timer(self, what: str, view: int, delay: float) -> None:
        key = (what, self.round, view)
        self._timers.add(key)
        self._actions.append(SetTimer(key, delay))

    def _cancel(self, key: TimerKey) -> None:
        self._timers.discard(key)
        self._actions.append(CancelTimer(key))


_VOTING_TAGS = frozenset(message_type(cls).tag for cls in (Ballot, Proposal))
