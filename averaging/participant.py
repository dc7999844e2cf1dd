"""A peer's part in a run as one state machine: found, catch up, join, aggregate, decide, and on to the next round.

It owns the chain, the current round's convening, cohort and agreement, and routes messages to them. It does no
I/O: the driver carries out the actions (`averaging.work`) and calls back. The same code runs over libp2p and, by
the thousand, in the simulator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from averaging.actions import CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.attempt import Attempt
from averaging.auditing import Audited
from averaging.ballots import Ballot, Decision, DecisionRequest, Gossip, Proposal
from averaging.branches import Branches, BranchRequest, fork_round, locator, newest_shared, still_held
from averaging.bulk import BulkKind, Chunk
from averaging.capacity import DEFAULT_CAPACITY
from averaging.chain import Chain, ChainRequest, ChainSegment
from averaging.cohort import Cohort
from averaging.courtesy import Courtesy, Knocks, Welcome, doors, nearest
from averaging.current_round import CurrentRound
from averaging.docket import EVIDENCE_TIMER, Accusation, Docket, EvidencePiece, EvidenceRequest
from averaging.evidence import Proof
from averaging.forks import forks
from averaging.guard import Guard
from averaging.holdings import Holdings
from averaging.mailbox import Mailbox
from averaging.messages import Attest, Closed, Join, Knock, Manifest, Missing, Ping, Shares, SumHashes, Wanted
from averaging.params import MAX_PEERS, RunParams
from averaging.record import found
from averaging.recovery import Present, Recover
from averaging.spreading import branches
from averaging.work import Commit, FetchState, Joined, ParticipantAction, RolledBack
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, encode, message_type

KNOCK_SECONDS = 1.0
_KNOCK: TimerKey = ("knock", 0, 0)
_FOUND: TimerKey = ("found", 0, 0)
_FOLLOWED_ROUNDS = 3
_KNOWN_PEERS = 4096
_REMEMBERED_ROUNDS = 8
"""Rounds whose promises the guard keeps in full; promises of older rounds are refused, not forgiven."""
_RELAYED = tuple(message_type(cls).tag for cls in (SumHashes, Attest, Manifest, Shares))


class Participant(Holdings):
    """One peer. `chain` is None before the founding is known; `state_round` is the round whose state it holds.

    After `last_round` it joins no roster any more, but still votes and answers. `evidence`: what an earlier life held.
    """

    def __init__(
        self,
        params: RunParams,
        identity: Identity,
        guard: Guard,
        urandom: Callable[[int], bytes],
        genesis_root: bytes,
        chain: Chain | None = None,
        state_round: int | None = None,
        last_round: int | None = None,
        *,
        evidence: Iterable[bytes] = (),
    ) -> None:
        self.params, self.chain, self.state_round = params, chain, state_round
        self._identity, self._guard, self._urandom = identity, guard, urandom
        self._genesis_root, self._last_round = genesis_root, last_round
        self._known: dict[PeerId, None] = {}
        self._knockers: dict[PeerId, int] = {}
        self._gone: set[PeerId] = set()
        self._mailbox = Mailbox()
        self._courtesy, self._welcome = Courtesy(), Welcome()
        self._knocks = Knocks()
        self._fetching: int | None = None
        self._founding = False
        self._branches = Branches()
        self.docket = Docket(self.peer_id, params.run, params.layout, self._seal, evidence)
        self._nonce = urandom(32)
        self.current: CurrentRound | None = None
        self.previous: Attempt | None = None
        self.capacity, self.domain = DEFAULT_CAPACITY, 0
        """What I declare: of my line, relative to others' (0: nobody can dial me), and of my data (0: nothing)."""

    @property
    def peer_id(self) -> PeerId:
        """Who I am."""
        return self._identity.peer_id

    # --- inputs -------------------------------------------------------------------------------------------------

    def start(self) -> list[ParticipantAction]:
        """Begin: catch up if I hold a chain, else knock at the founder's door."""
        founding = self._guard.load_lock(self.params.run, 0) if self.chain is None else None
        if founding is not None:
            self.chain = Chain(self.params.run, self.params.founder, decode_as(Envelope, founding))
            self.state_round = 0 if self.state_round is None else self.state_round
        actions: list[ParticipantAction] = [SetTimer(_KNOCK, KNOCK_SECONDS), *self._knock()]
        if self.chain is not None:
            actions += self._resume()
        elif self.peer_id == self.params.founder:
            self._knockers[self.peer_id] = 0
        return actions + self._maybe_found()

    def learned(self, peers: list[PeerId]) -> list[ParticipantAction]:
        """Addresses of these peers are known now (discovery, address book)."""
        room = _KNOWN_PEERS - len(self._known)
        fresh = [peer for peer in peers if peer != self.peer_id and peer not in self._known][:room]
        self._known.update(dict.fromkeys(fresh))
        return self._knock(fresh) if fresh and not self._busy() else []

    def receive(self, sender: PeerId, frame: bytes | memoryview) -> list[ParticipantAction]:
        """A frame from the transport's authenticated `sender`. Raises ProtocolError when it is refused."""
        envelope = decode_as(Envelope, frame)
        signer = envelope.check(self.params.run)
        # These are passed on to who missed them, or to who may have been told something else: they prove themselves.
        if signer != sender and envelope.body[0] not in _RELAYED:
            raise ProtocolError(Refusal.WRONG_SENDER, f"{sender.short} delivered a message of {signer.short}")
        if signer != sender and envelope.round != self.round:
            return []
        self.trust(sender)
        actions = self._handle(signer, envelope, bytes(frame))
        joined = any(isinstance(action, Joined) for action in actions)
        return [*actions, *(self.docket.tell(self._concerned()) if joined else ()), *self.findings()]

    def receive_chunk(self, sender: PeerId, chunk: Chunk) -> list[ParticipantAction]:
        """A bulk frame. Raises ProtocolError when it is refused."""
        if chunk.kind in (BulkKind.PART, BulkKind.TOTAL):
            attempt = self.current.attempt if self.current else None
            across = attempt.across if attempt is not None else None
            if across is None or across.sid != chunk.sid:
                raise ProtocolError(Refusal.STALE, "a chunk of an unknown round")
            return [*across.receive_chunk(sender, chunk), *self._advance()]
        cohort = self.cohort(chunk.sid)
        if cohort is None:
            raise ProtocolError(Refusal.STALE, "a chunk of an unknown sid")
        self.trust(sender)
        actions = cohort.receive_chunk(sender, chunk)
        if not actions and not cohort.sums.complete and cohort.failed is None:
            return []  # one of hundreds, from which nothing follows yet
        return [*actions, *self._after_cohort(cohort), *self.findings()]

    def timeout(self, key: TimerKey) -> list[ParticipantAction]:
        """A timer fired."""
        if key == _KNOCK:
            self._courtesy.tick()
            engaged = self.current is not None and self.current.engaged
            idle = self._knock() if self._knocks.due() and not engaged else []
            return [SetTimer(_KNOCK, KNOCK_SECONDS), *idle, *self._seek()]
        if key == _FOUND:
            return self._maybe_found(late=True)
        if key == EVIDENCE_TIMER:
            return list(self.docket.timeout())
        if self.current is None or key[1] != self.current.number:
            return []
        return [*self.current.timeout(key), *self._after(), *self.findings()]

    def trained(self, round_: int, tokens: int) -> list[ParticipantAction]:
        """Local training for this round is over; the update is worth `tokens`."""
        if self.current is None or self.current.number != round_:
            return []
        return [*self.current.trained(tokens), *self._after()]

    def uploaded(self, sid: bytes) -> list[ParticipantAction]:
        """The work of an `Upload` is done."""
        cohort = self.cohort(sid)
        return [*cohort.uploaded(), *self._after_cohort(cohort)] if cohort else []

    def reduced(self, sid: bytes, chunks: tuple[int, ...]) -> list[ParticipantAction]:
        """The work of a `Reduce` is done."""
        cohort = self.cohort(sid)
        return [*cohort.reduced(chunks), *self._after_cohort(cohort)] if cohort else []

    def added_up(self, sid: bytes, chunks: tuple[int, ...]) -> list[ParticipantAction]:
        """The work of an `AddUp` is done."""
        across = self.across(sid)
        return [*across.added_up(chunks), *self._advance()] if across else []

    def checked(self, sid: bytes, chunks: tuple[int, ...]) -> list[ParticipantAction]:
        """The work of a `Check` is done."""
        cohort = self.cohort(sid)
        return [*cohort.checked(chunks), *self._after_cohort(cohort), *self.findings()] if cohort else []

    def applied(self, sid: bytes, state_root: bytes, loss: float) -> list[ParticipantAction]:
        """The work of an `Apply` is done: the next state's root and the survivors' public mean training loss."""
        if self.aggregate(sid) is None or self.current is None:
            return []
        return [*self.current.applied(state_root, loss), *self._after()]

    def rejected(self, sid: bytes) -> list[ParticipantAction]:
        """Instead of `applied`: these sums are none that honest members can have made. The round shall be void."""
        if self.aggregate(sid) is None or self.current is None:
            return []
        return [*self.current.rejected(), *self._after()]

    def holds(self, round_: int, root: bytes | None = None) -> list[ParticipantAction]:
        """The state of this round is mine now, on disk (after `Commit` or `FetchState`). `root`: which state that is;
        what was begun on a branch that was left meanwhile counts for nothing.
        """
        if root is not None and self.chain is not None and self.chain.state_root(round_) != root:
            return []
        self.state_round = max(round_, self.state_round or 0)
        if self._fetching == round_:
            self._fetching = None
        return self._resume()

    def fetch_failed(self, round_: int) -> list[ParticipantAction]:
        """No donor gave that state. Ask around for a newer head, and try again."""
        if self._fetching == round_:
            self._fetching = None
        return [*self._knock(), *self._resume()]

    def suspect(self, peer: PeerId) -> list[ParticipantAction]:
        """The driver tried and could not reach this peer."""
        self._gone.add(peer)
        return [*self.current.suspect(peer), *self._after()] if self.current else []

    def trust(self, peer: PeerId) -> None:
        """This peer was heard."""
        self._gone.discard(peer)
        if self.current is not None:
            self.current.trust(peer)

    def ping(self) -> Envelope:
        """A message that asks nothing but to be acknowledged."""
        return self._seal(Ping(int.from_bytes(self._urandom(8), "big")), self.round)

    # --- routing ------------------------------------------------------------------------------------------------

    def _handle(self, sender: PeerId, envelope: Envelope, frame: bytes) -> list[ParticipantAction]:
        message = envelope.message()
        if isinstance(message, Ping) and message.sid == bytes(32):
            return []
        if isinstance(message, Knock):
            return self._on_knock(sender, message)
        if isinstance(message, ChainSegment):
            return self._on_segment(sender, message)
        if isinstance(message, ChainRequest):
            return self._tell(sender, message.after_round)
        if isinstance(message, BranchRequest):
            shared = newest_shared(self.chain, message) if self.chain else None
            return [] if shared is None else self._tell(sender, shared)
        if isinstance(message, Accusation | EvidenceRequest | EvidencePiece):
            return self._blame(*self.docket.receive(sender, message, self._concerned()))
        if self.chain is None:
            self._mailbox.keep(sender, envelope, frame, 0)
            return []
        if envelope.round < self.round:
            return self._on_stale(sender, envelope, message, frame)
        if envelope.round > self.round or self.current is None:
            trusted = sender in (self.current.committee if self.current else self.chain.committee())
            self._mailbox.keep(sender, envelope, frame, self.round, trusted=trusted)
            behind = envelope.round > self.round and not isinstance(message, Closed)
            return [Send(sender, self._seal(ChainRequest(self.round - 1)))] if behind else []
        return [*self.current.receive(sender, envelope, message, frame), *self._after()]

    def _on_stale(self, sender: PeerId, envelope: Envelope, message: object, frame: bytes) -> list[ParticipantAction]:
        """Who still works on a decided round gets its outcome; sums of the last round can still be had."""
        assert self.chain is not None
        round_ = envelope.round
        if isinstance(message, Missing | Wanted) and self.previous is not None and self.previous.has(message.sid):
            return list(self.previous.receive(sender, envelope, message, frame))
        if (
            isinstance(message, Join | Ping | Ballot | Proposal | Gossip | DecisionRequest | Present | Recover)
            and round_ > 0
        ):
            decision = self.chain.decision(round_) if self._courtesy.allows(sender) else None
            return self._answer(sender, decision, round_) if decision else []
        if isinstance(message, Decision | Audited | Attest):  # the last ones often come when all is decided
            return []
        raise ProtocolError(Refusal.STALE, f"{type(message).__name__} of round {round_}")

    def _on_knock(self, sender: PeerId, message: Knock) -> list[ParticipantAction]:
        if self.chain is None:
            if self.peer_id != self.params.founder:
                return []
            if len(self._knockers) < _KNOWN_PEERS:
                self._knockers[sender] = 0
            return self._maybe_found()
        if sender in self._knockers or len(self._knockers) < _KNOWN_PEERS:
            self._knockers[sender] = self.round
            if self.current is not None and self.current.convening is not None and self._welcome.waits:
                self.current.convening.newcomers.add(sender)
        actions: list[ParticipantAction] = []
        if self.current is not None and self.current.lost_its_part(sender, message.nonce):
            actions += [*self.current.suspect(sender, lost=True), *self._after()]
        if self._branches.foreign(self.chain, message):
            actions += [Send(sender, self._seal(locator(self.chain)))] if self._courtesy.allows(sender) else []
        elif message.known < self.round:
            actions += self._tell(sender, max(message.known - 1, 0))
        return actions

    def _tell(self, peer: PeerId, after_round: int) -> list[ParticipantAction]:
        """What I hold of the chain after a round, unless this peer asks too often."""
        if self.chain is None or not self._courtesy.allows(peer):
            return []
        return self._answer(peer, self.chain.segment(after_round))

    def _answer(self, peer: PeerId, message: object, round_: int = 0) -> list[ParticipantAction]:
        envelope = self._seal(message, round_)
        self._courtesy.spent(len(envelope.body))
        return [Send(peer, envelope)]

    def _on_segment(self, sender: PeerId, message: ChainSegment) -> list[ParticipantAction]:
        actions: list[ParticipantAction] = []
        if self.chain is None:
            self.chain = Chain(self.params.run, self.params.founder, message.founding)
            if self.state_round is None and self.chain.head.state_root == self._genesis_root:
                self.state_round = 0
            actions += self._pass_on_founding() if message.head_round == 0 else []
        before = self.chain.head.round
        stands = self.chain
        try:
            stands, replies = self._branches.take(self.chain, sender, message)
            actions += [Send(sender, self._seal(reply)) for reply in replies if self._courtesy.allows(sender)]
        except ProtocolError as error:
            if fork := forks(self.chain, message):
                names = ", ".join(peer.short for peer in fork[1])
                actions.append(Note(f"round {fork[0]} was certified twice; both were signed by {names}", sender))
            elif self.chain.head.round == before:
                raise
            actions.append(Note(str(error), sender))  # the links before the bad one are proven, and stay
        if stands is not self.chain:
            return [*actions, *self._roll_back(stands)]
        if self.current is not None and self.chain.head.round > before:
            actions += self._close()
        actions += self._resume()
        if before < self.chain.head.round < message.head_round:
            actions += self._knock()
        return actions

    # --- branches -----------------------------------------------------------------------------------------------

    def _seek(self) -> list[ParticipantAction]:
        """After a recovery, look now and again for those whom it went on without: their branch may stand."""
        peer = self._branches.sought(self.chain, self.peer_id) if self.chain else None
        return (
            []
            if self.chain is None or peer is None
            else [Send(peer, self._seal(Knock(self.round, self.chain.beacon, self._nonce)))]
        )

    def _roll_back(self, chain: Chain) -> list[ParticipantAction]:
        """Another branch stands: leave the one that I was on, and tell its members."""
        old = self.chain
        assert old is not None
        # On disk first: what I uploaded in a round of this branch must never be uploaded in the same round of another.
        self._guard.forsake(self.params.run, self.round)
        self.state_round = still_held(self.state_round, old, chain)
        actions: list[ParticipantAction] = [RolledBack(fork_round(old, chain), old.head, chain.head)]
        actions += self._close() if self.current is not None else []
        self.chain, self._fetching = chain, None
        knock = self._seal(Knock(self.round, chain.beacon, self._nonce))
        actions += [Send(peer, knock) for peer in old.committee() if peer != self.peer_id]
        return actions + self._resume()

    # --- liars ----------------------------------------------------------------------------------------------------

    def findings(self) -> list[ParticipantAction]:
        """Whatever proves a lie, found in the current round, is kept, acted upon and passed on. To be asked for after a
        refusal: what was refused may have proven one."""
        actions: list[ParticipantAction] = []
        while self.current is not None and (found := self.current.take_proofs()):
            for frame in found:
                actions += self._blame(*self.docket.keep(frame, self._concerned()))
        return actions

    def _blame(self, actions: Sequence[ParticipantAction], proof: Proof | None) -> list[ParticipantAction]:
        if proof is None or self.current is None:
            return list(actions)
        return [*actions, *self.current.accuse(proof), *self._after()]

    # --- founding -----------------------------------------------------------------------------------------------

    def _maybe_found(self, *, late: bool = False) -> list[ParticipantAction]:
        """The founder signs the first committee once enough peers knocked, and does nothing else ever."""
        if self.chain is not None or self.peer_id != self.params.founder:
            return []
        if len(self._knockers) < max(self.params.genesis_peers, self.params.minimum):
            return [Note(f"{len(self._knockers)} of {self.params.genesis_peers} peers are here for the founding")]
        if not late and len(self._knockers) < self.params.target:
            # A short grace, so that peers who start together are founded together.
            grace = [] if self._founding else [SetTimer(_FOUND, KNOCK_SECONDS)]
            self._founding = True
            return list(grace)
        members = tuple(self._knockers)[:MAX_PEERS]
        envelope = found(self._identity, self.params.run, members, self._genesis_root, self._urandom(32))
        # Written down before anybody hears of it: a founder that restarts must not found the run a second time.
        self._guard.save_lock(self.params.run, 0, encode(envelope))
        self._guard.ballot(self.params.run, 0, 0, "founding", envelope.signed_digest())
        self.chain = Chain(self.params.run, self.params.founder, envelope)
        self.state_round = 0
        self._knockers.clear()
        return [*self._pass_on_founding(), *self._resume()]

    def _pass_on_founding(self) -> list[ParticipantAction]:
        """One line does not carry it to a thousand peers in time; whom this misses knocks."""
        assert self.chain is not None
        segment, members = self._seal(self.chain.segment(0)), self.chain.tip.expected
        return [Send(peer, segment) for peer in branches(members, self.params.founder, self.peer_id)]

    def _knock(self, peers: list[PeerId] | None = None) -> list[ParticipantAction]:
        if self.chain is None:
            targets = itertools.chain([self.params.founder], peers or self._known)
        else:
            targets = itertools.chain(nearest(self.chain.committee(), self.peer_id), peers or self._known)
        head = self.chain.beacon if self.chain else bytes(32)
        message = self._seal(Knock(self.round, head, self._nonce))
        return [Send(peer, message) for peer in doors(targets, self.peer_id, self._gone)]

    def _busy(self) -> bool:
        """Whether I am in a roster, or may still hear of one, so that nobody needs to be told about me."""
        current = self.current
        return current is not None and (current.engaged or (current.convening is not None and self._knocks.resting))

    # --- rounds -------------------------------------------------------------------------------------------------

    def _resume(self) -> list[ParticipantAction]:
        """Go on from what I hold: fetch the head's state if it is not mine, else begin the next round."""
        assert self.chain is not None
        head = self.chain.head
        actions: list[ParticipantAction] = []
        if not self.settled and self._fetching != head.round:
            self._fetching = head.round
            source = self._source(head)
            donors = tuple(peer for peer in dict.fromkeys([*source.members(), *self._known]) if peer != self.peer_id)
            actions += [Note(f"fetching the state of round {head.round}"), FetchState(head, donors)]
        if self.current is None:
            return actions + self._begin()
        return actions + self._join()

    def _begin(self) -> list[ParticipantAction]:
        assert self.chain is not None
        self._guard.prune(max(0, self.round - _REMEMBERED_ROUNDS))
        last = self.previous.roster if self.previous is not None else None
        expected = last.everybody if last is not None and last.round + 1 == self.round else ()
        accused = self.docket.accused
        # Who was in the last roster is waited for, and need not knock.
        self._knocks.rest(2 * self.params.deadlines.join / KNOCK_SECONDS if expected else 0)
        self.current = CurrentRound(
            self.params, self._identity, self._guard, self._urandom, self.chain, self.capacity, expected, accused
        )
        self.current.nonce, self.current.domain = self._nonce, self.domain
        self._knockers = {peer: seen for peer, seen in self._knockers.items() if seen + _FOLLOWED_ROUNDS >= self.round}
        actions = [*self.current.begin(), *self._join()]
        for sender, envelope, frame in self._mailbox.take(self.round):
            try:
                actions += self.current.receive(sender, envelope, envelope.message(), frame)
            except ProtocolError as error:
                actions.append(Note(str(error), sender))
        return actions + self._after()

    def _join(self) -> list[ParticipantAction]:
        if not self.settled or self.current is None:
            return []
        if self._last_round is not None and self.round > self._last_round:
            return []  # who leaves after this round must not be missed in the next
        waits = self._welcome.waits
        newcomers = {peer for peer, seen in self._knockers.items() if waits and seen + 1 >= self.round}
        return list(self.current.join(newcomers - set(self.current.committee), self._gone))

    def _after_cohort(self, cohort: Cohort) -> list[ParticipantAction]:
        return self._advance() if self.current is not None and cohort is self.current.cohort else []

    def _advance(self) -> list[ParticipantAction]:
        return [*self.current.advance(), *self._after()] if self.current is not None else []

    def _after(self) -> list[ParticipantAction]:
        """If the committee has decided: extend the chain, tell who follows, adopt or fetch the state, go on."""
        current, chain = self.current, self.chain
        if current is None or chain is None or current.outcome is None:
            return []
        record, certificate = current.outcome
        chain.append(record, certificate)
        decision = chain.decision(record.round)
        assert decision is not None
        actions: list[ParticipantAction] = [current.decided(record, certificate)]
        message = self._seal(decision, record.round)
        actions += [Send(peer, message) for peer in sorted(current.followers(self._knockers))]
        if not record.void and current.convening is not None:
            strangers = current.convening.strangers
            self._welcome.round_over(strangers, record.members() if strangers else ())
        adopt = current.adoptable(record)
        sid = record.sid
        actions += self._close()
        return [*actions, *([Commit(record, certificate, sid)] if adopt else self._resume())]

    def _close(self) -> list[ParticipantAction]:
        assert self.current is not None
        timers = [CancelTimer(key) for key in self.current.timers]
        self.previous = self.current.attempt or self.previous
        self.current = None
        return list(timers)

    def _seal(self, message: object, round_: int = 0) -> Envelope:
        return seal(self._identity, self.params.run, round_, message)
