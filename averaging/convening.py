"""How an attempt finds its members: everybody joins with the attempt's convener, who signs one roster.

Conveners are ranked by the last record's hash, so nobody chooses one; each next attempt belongs to the next in
line. A convener that has too few joins keeps its window open and says so, and a joiner that hears nothing goes on
to the next attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from averaging.actions import Action, CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.capacity import DEFAULT_CAPACITY
from averaging.certificate import quorum
from averaging.guard import Guard
from averaging.keys import MemberSecrets
from averaging.messages import Closed, Join, Seating
from averaging.params import MAX_MEMBERS, MAX_PEERS, RELAYS, RunParams, honest_witness
from averaging.roster import CheckedRoster, check_join, check_roster, convener, decisive, make_roster, make_seatings
from averaging.spreading import onward, spread
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, digest, encode

WAITING, SIGNED, ANOTHER_HEAD, NOT_CONVENER, LAGGARD, MOVED, FOLLOWS = 0, 1, 2, 3, 4, 5, 6
_PATIENCE = 3
"""Times that a Join is sent before the next convener's turn."""
_INDULGENCE = 8
"""Times that a convener is believed that it still waits for others; more in later attempts."""
_EARLY_STRANGERS = MAX_MEMBERS
"""Joins kept for a later attempt from peers outside the committee and the last sum."""
_MAX_AHEAD = 64
"""Joins for attempts further ahead than this are not kept."""
_FORMER = 2
"""Attempts that I left unseated, of which I remember my keys: their rosters may still be on the way."""


class Convening:
    """One peer's search for a roster in one round; as convener, its collection of Joins."""

    def __init__(
        self,
        params: RunParams,
        identity: Identity,
        round_: int,
        head: bytes,
        committee: tuple[PeerId, ...],
        guard: Guard,
        urandom: Callable[[int], bytes],
        gone: Iterable[PeerId] = (),
        expected: Collection[PeerId] = (),
        capacity: int = DEFAULT_CAPACITY,
        accused: Iterable[PeerId] = (),
        domain: int = 0,
    ) -> None:
        """`gone`: peers that cannot be reached; nobody waits for them. `expected`: who was in the last sum, and is
        waited for besides the committee. `capacity` is what I declare of my connection (see `Join`). `accused`: proven
        liars, who are left out. `domain`: the kind of data that I train on.
        """
        self.params, self.round, self.head, self.committee = params, round_, head, committee
        self._identity, self._guard, self._urandom = identity, guard, urandom
        self._expected, self._capacity, self._domain = {*committee, *expected}, capacity, domain
        self.attempt = -1
        self.secrets: MemberSecrets | None = None
        self.roster: CheckedRoster | None = None
        self._join: Envelope | None = None
        self._former: dict[int, tuple[MemberSecrets, Envelope]] = {}
        self._patience = _PATIENCE
        self._indulgence = 0
        self._joins: dict[int, dict[PeerId, Envelope]] = {}
        self._strangers: Counter[int] = Counter()  # by attempt
        self._keys: dict[tuple[int, bytes], PeerId] = {}
        self._missing: dict[PeerId, set[PeerId]] = {}
        self._signed: set[int] = set()
        self._seatings: dict[PeerId, Seating] = {}  # of the last roster that I signed
        self._spreading = False  # others pass it on: who asks again will have it soon
        self._passed = b""  # the roster of which I passed other cohorts' parts on
        self._gone = set(gone)
        self.accused = set(accused)
        self._at: dict[PeerId, int] = {}
        self._left: dict[PeerId, int] = {}  # who reached an attempt and follows no earlier one
        self._follows = False
        self.nonce = b""
        """One for all Joins and Knocks of a process, so that a restart can be told from an old Knock."""
        self.newcomers: set[PeerId] = set()
        """Peers that knocked and are catching up: the window stays open for them until its deadline."""

    def begin(
        self, attempt: int, tokens: int, missing: tuple[PeerId, ...] = (), *, follows: bool | None = None
    ) -> list[Action]:
        """Join an attempt, or the next one whose convener is not gone, with fresh keys.

        `missing`: who stalled the last one. The committee hears of it, so that nobody waits alone in another attempt.
        `follows`: I still take part in deciding what the other cohorts of my last roster come to.
        """
        self._follows = self._follows if follows is None else follows
        attempt = max(attempt, self._reached())
        turns = range(attempt, attempt + len(self.committee))
        skipped = self._gone | self.accused
        able = (turn for turn in turns if convener(self.head, self.committee, turn) not in skipped)
        self._remember()
        self.attempt, self.roster = next(able, attempt), None
        self.secrets = MemberSecrets.generate(self._urandom)
        public = self.secrets.public()
        join = Join(
            self.round,
            self.attempt,
            self.head,
            public.mask_key,
            public.share_key,
            public.self_commitment,
            public.audit_commitment,
            self.nonce or self._urandom(32),
            tokens,
            self._capacity,
            missing,
            self._domain,
        )
        self._join = self._seal(join)
        # Longer and longer, until all are in one attempt at the same time.
        self._patience = _PATIENCE + self.attempt // len(self.committee)
        self._indulgence = _INDULGENCE * (1 + self.attempt // len(self.committee))
        actions: list[Action] = [SetTimer(self._key("roster"), self.params.deadlines.join)]
        to = self.convener()
        if self.attempt > 0:
            mine = self._identity.peer_id
            others = [peer for peer in self.committee if peer not in (to, mine)]
            moved = self._closed(FOLLOWS if self._follows else MOVED)
            actions += [Send(peer, moved) for peer in others if mine in self.committee]  # only its word counts
        if to == self._identity.peer_id:
            window = SetTimer(self._key("join"), self.params.deadlines.join)
            return [*actions, window, *self._collect(to, self._join, join)]
        return [*actions, Send(to, self._join)]

    def _remember(self) -> None:
        """A roster may reach me when I have lost patience: the others in it would wait for my shares in vain."""
        if self.roster is None and self.secrets is not None and self._join is not None:
            self._former[self.attempt] = (self.secrets, self._join)
            while len(self._former) > _FORMER:
                del self._former[min(self._former)]

    @property
    def strangers(self) -> set[PeerId]:
        """Newcomers that were not in the last sum."""
        return self.newcomers - self._expected

    def tell_where(self, peers: Iterable[PeerId]) -> list[Action]:
        """Say to these which attempt I went on to."""
        moved = self._closed(FOLLOWS if self._follows else MOVED)
        return [Send(peer, moved) for peer in peers if peer != self._identity.peer_id]

    def convener(self) -> PeerId:
        """Who signs the roster of the current attempt."""
        return convener(self.head, self.committee, self.attempt)

    def suspect(self, peer: PeerId) -> list[Action]:
        """A peer cannot be reached: do not wait for its Join, and not for its roster."""
        self._gone.add(peer)
        if self.roster is not None:
            return []
        if self.attempt >= 0 and peer == self.convener():
            return self.begin(self.attempt + 1, self._tokens(), ())
        return self._maybe_sign(deadline=False)

    def accuse(self, peer: PeerId) -> list[Action]:
        """A peer is proven a liar: its Join goes into no roster of mine, and its turn as convener is skipped."""
        self.accused.add(peer)
        if self.roster is not None:
            return []
        if self.attempt >= 0 and peer == self.convener():
            return self.begin(self.attempt + 1, self._tokens(), ())
        return self._maybe_sign(deadline=False)

    def trust(self, peer: PeerId) -> None:
        """The peer was heard again."""
        self._gone.discard(peer)

    def receive_join(self, sender: PeerId, envelope: Envelope, join: Join) -> list[Action]:
        """A peer asks me to put it into a roster. Raises ProtocolError when the Join is not of this round."""
        if join.head != self.head or join.round != self.round:
            return [Send(sender, self._closed(ANOTHER_HEAD))]
        if convener(self.head, self.committee, join.attempt) != self._identity.peer_id:
            return [Send(sender, self._closed(NOT_CONVENER))]
        if self._joins.get(join.attempt, {}).get(sender) == envelope:
            known = join.attempt in self._signed and sender in self._seatings and not self._spreading
            return [Send(sender, self._seal(self._seatings[sender]))] if known else []
        if sender in self.accused:
            return [Send(sender, self._closed(LAGGARD))]
        if join.attempt in self._signed or (join.attempt < self.attempt and self.roster is not None):
            return [Send(sender, self._closed(SIGNED))]
        if join.attempt < self.attempt:
            return [Send(sender, self._closed(FOLLOWS if self._follows else MOVED))]
        if join.attempt > self.attempt + _MAX_AHEAD:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a Join for attempt {join.attempt}")
        if join.domain > self.params.layout.domains:
            # All members would refuse a roster with it.
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a Join with data domain {join.domain}")
        check_join(envelope, self.params.run, self.round, join.attempt, self.head)
        if sender in self.committee:
            self._at[sender] = join.attempt
        return [*self._collect(sender, envelope, join), *self._follow()]

    def receive_roster(self, seating: Seating) -> CheckedRoster | None:
        """A convener's roster, of my attempt or of one that I left while it was on its way: that one I go back to.

        Raises ProtocolError when it is refused; None when I am in one already.
        """
        if self._join is None or self.roster is not None or self.secrets is None:
            return None
        sender = PeerId(decode_as(Envelope, seating.roster).sender)
        if sender in self.accused:
            raise ProtocolError(Refusal.UNEXPECTED, "a roster by a proven liar")
        attempt = self._attempt_of(sender)
        secrets, join = self._former.get(attempt, (self.secrets, self._join))
        self.roster = check_roster(seating, self.params, self.round, self.head, self.committee, join)
        self.attempt, self.secrets, self._join = attempt, secrets, join
        self._former.clear()
        return self.roster

    def _attempt_of(self, sender: PeerId) -> int:
        """Which of my attempts a roster by this convener is for. Who joined with me I do not leave behind."""
        present = self.convener()
        if present in (sender, self._identity.peer_id):
            return self.attempt
        of = (turn for turn in self._former if convener(self.head, self.committee, turn) == sender)
        return max(of, default=self.attempt)

    def receive_closed(self, sender: PeerId, message: Closed) -> list[Action]:
        """The convener's answer to my Join: keep waiting, or try a later attempt. Or where another member is."""
        if message.reason in (MOVED, FOLLOWS) and message.round == self.round and sender in self.committee:
            if message.reason == MOVED:
                self._left[sender] = max(message.attempt, self._left.get(sender, 0))
            return self._moved(sender, message.attempt)
        if self.roster is not None or sender != self.convener() or message.round != self.round:
            return []
        if message.reason == WAITING:
            if self._indulgence > 0:
                self._indulgence -= 1
                self._patience = max(self._patience, _PATIENCE)
            return []
        later = min(message.attempt, self.attempt + len(self.committee))
        if later <= self.attempt:
            return []
        # That attempt runs without me: be there for the next one, which comes only if it fails.
        actions = self.begin(later, self._tokens())
        return [*actions, SetTimer(self._key("roster"), self.params.deadlines.total(MAX_MEMBERS))]

    def _moved(self, sender: PeerId, attempt: int) -> list[Action]:
        self._at[sender] = attempt
        if self.roster is None and 0 <= self.attempt < attempt and sender == self.convener():
            return self.begin(min(attempt, self.attempt + len(self.committee)), self._tokens())
        return self._follow()

    def deserted(self, attempt: int) -> bool:
        """Whether so many of the committee have left an attempt of several cohorts that nothing can come of it."""
        gone = sum(reached > attempt for reached in self._left.values())
        return gone > len(self.committee) - quorum(len(self.committee))

    def _reached(self) -> int:
        """The latest attempt that one honest member at least has reached."""
        reached = sorted(self._at.values(), reverse=True)
        witness = honest_witness(len(self.committee))
        return reached[witness - 1] if len(reached) >= witness else 0

    def _follow(self) -> list[Action]:
        """Whoever waits behind goes where the others are; else they could miss each other for ever."""
        free = self.roster is None and self.attempt not in self._signed
        behind = free and 0 <= self.attempt < self._reached()
        return self.begin(self._reached(), self._tokens()) if behind else []

    def timeout(self, key: TimerKey) -> list[Action]:
        """The window of the convener, or the patience of a joiner, is over."""
        if key[0] == "seated":
            self._spreading = False
        if key[2] != self.attempt or self.roster is not None:
            return []
        if key[0] == "join":
            return self._maybe_sign(deadline=True)
        self._patience -= 1
        if self._patience <= 0:
            return self.begin(self.attempt + 1, self._tokens())
        # The convener may have started after me, or lost my Join with its memory: ask again.
        assert self._join is not None
        again = SetTimer(self._key("roster"), self.params.deadlines.join)
        to = self.convener()
        return [again] if to == self._identity.peer_id else [again, Send(to, self._join)]

    def _tokens(self) -> int:
        return self.params.weight_cap

    def _collect(self, sender: PeerId, envelope: Envelope, join: Join) -> list[Action]:
        joins = self._joins.setdefault(join.attempt, {})
        if not self._room(sender, join.attempt, joins):
            return [Send(sender, self._closed(SIGNED))]
        keys = [(join.attempt, key) for key in (join.mask_key, join.share_key)]
        if any(self._keys.setdefault(key, sender) != sender for key in keys):
            # All members would refuse a roster with both.
            raise ProtocolError(Refusal.EQUIVOCATION, f"{sender.short} joins with another peer's key")
        self._strangers[join.attempt] += sender not in joins and sender not in self._expected
        joins[sender] = envelope
        self._missing[sender] = {PeerId(peer) for peer in join.missing}
        return self._maybe_sign(deadline=False) if join.attempt == self.attempt else []

    def _room(self, sender: PeerId, attempt: int, joins: Collection[PeerId]) -> bool:
        """Whether there is a place for this Join. Identities are free: strangers never take the committee's places."""
        if sender in joins or sender in self._expected:
            return True
        most = MAX_PEERS - len(self._expected) if attempt == self.attempt else _EARLY_STRANGERS
        return self._strangers[attempt] < most

    def _eligible(self) -> dict[PeerId, Envelope]:
        """Joins of this attempt, without the laggards of the last one: the most named first, and only as many as can
        be spared.

        A laggard is whom most of the committee's Joins name (of strangers there can be any number). So is the one peer
        that a laggard itself names: it may have waited for that peer's shares, and one of the two is at fault.
        """
        present = self._joins.get(self.attempt, {})
        here = {peer: join for peer, join in present.items() if self._at.get(peer, 0) <= self.attempt}
        joins = {peer: join for peer, join in here.items() if peer not in self.accused}
        voices = [peer for peer in joins if peer in self.committee]
        named = Counter(peer for other in voices for peer in self._missing[other])
        laggards = [peer for peer in joins if 2 * named[peer] > len(voices)]
        blamed = {other for peer in laggards if len(self._missing[peer]) == 1 for other in self._missing[peer]}
        laggards += [peer for peer in joins if peer in blamed - {*laggards, self._identity.peer_id}]
        for peer in sorted(laggards, key=lambda peer: (peer not in blamed, -named[peer], peer)):
            rest = {other: join for other, join in joins.items() if other != peer}
            if self._enough(rest):
                joins = rest
        return joins

    def _enough(self, joins: Collection[PeerId]) -> bool:
        return len(joins) >= self.params.minimum and decisive(joins, self.committee)

    def _maybe_sign(self, *, deadline: bool) -> list[Action]:
        mine = self._identity.peer_id
        present = self._joins.get(self.attempt, {})
        if mine not in present or self.attempt in self._signed or self.convener() != mine:
            return []
        # First what is cheap: this is asked for each of a thousand Joins.
        if not deadline and any(self._awaited(peer, present) for peer in (*self._expected, *self.newcomers)):
            return []
        joins = self._eligible()
        waiting_for = (self._expected | self.newcomers) - self._gone - self.accused - set(joins)
        if mine not in joins or (not deadline and (waiting_for or not self._enough(joins))):
            return []
        if not self._enough(joins):
            needed = max(self.params.minimum, quorum(len(self.committee)))
            text = f"{len(joins)} of {needed} peers joined; the round waits"
            again = SetTimer(self._key("join"), self.params.deadlines.join)
            hints = [Send(peer, self._closed(WAITING)) for peer in joins if peer != mine]
            return [again, Note(text), *hints]
        return self._sign(joins)

    def _awaited(self, peer: PeerId, present: Collection[PeerId]) -> bool:
        return peer not in present and peer not in self._gone and peer not in self.accused

    def _sign(self, joins: dict[PeerId, Envelope]) -> list[Action]:
        roster = make_roster(self.round, self.attempt, self.head, joins)
        frame = encode(roster)
        self._signed.add(self.attempt)
        try:
            # One roster per attempt, also after a restart: a second one would be evidence against me.
            self._guard.ballot(self.params.run, self.round, self.attempt, "roster", digest("roster", frame))
        except ProtocolError as error:
            others = [peer for peer in joins if peer != self._identity.peer_id]
            closed = [Send(peer, self._closed(SIGNED)) for peer in others]
            return [Note(str(error)), *closed, *self.begin(self.attempt + 1, self._tokens())]
        dropped = [peer for peer in self._joins[self.attempt] if peer not in joins]
        actions: list[Action] = [CancelTimer(self._key("join")), *self._seat(self._seal(roster), joins)]
        return actions + [Send(peer, self._closed(LAGGARD)) for peer in dropped]

    def _seat(self, roster: Envelope, joins: dict[PeerId, Envelope]) -> list[Action]:
        """Send the roster to my cohort, or to the only one, and to the first of some others, who pass it on."""
        seatings = make_seatings(self.params, roster, joins)
        self._seatings = {member: seating for members, seating in seatings for member in members}
        direct = [members for members, _ in seatings if len(seatings) == 1 or self._identity.peer_id in members]
        others = [(members, seating.joins) for members, seating in seatings if members not in direct]
        to = [(peer, self._seatings[peer]) for members in direct for peer in members]
        to += [(peer, seating) for members, seating in spread(encode(roster), others) for peer in members[:RELAYS]]
        self._spreading = bool(others)
        wait = [SetTimer(self._key("seated"), self.params.deadlines.join)] if others else []
        return [*wait, *self._send_seatings(to)]

    def pass_on(self, seating: Seating) -> list[Action]:
        """What the first members of a cohort do with the seating that reached them first: the others get it."""
        assert self.roster is not None
        peers, mine = self.roster.peers, self._identity.peer_id
        if self.roster.alone or mine not in peers[:RELAYS]:
            return []
        own = replace(seating, onward=b"")
        return self._send_seatings([(peer, own) for peer in peers if peer not in (mine, self.convener())])

    def pass_onward(self, seating: Seating) -> list[Action]:
        """And once with the Joins of other cohorts that came with it. Raises ProtocolError if these are not theirs."""
        roster = self.roster
        if roster is None or not seating.onward or self._passed == roster.digest:
            return []
        mine = self._identity.peer_id
        cohorts = onward(seating, roster) if mine in roster.peers[:RELAYS] else []
        self._passed = roster.digest
        turn = roster.peers.index(mine)  # each to its counterpart
        return self._send_seatings([(to[turn], part) for to, part in spread(seating.roster, cohorts) if turn < len(to)])

    def _send_seatings(self, seatings: Iterable[tuple[PeerId, Seating]]) -> list[Action]:
        actions: list[Action] = []
        sealed: dict[int, Envelope] = {}
        for peer, seating in seatings:
            if id(seating) not in sealed:  # it is long, and several get the same
                sealed[id(seating)] = self._seal(seating)
            actions.append(Send(peer, sealed[id(seating)]))
        return actions

    def _closed(self, reason: int) -> Envelope:
        later = self.attempt + 1 if reason in (SIGNED, LAGGARD) else max(self.attempt, 0)
        return self._seal(Closed(self.round, later, reason, self.round, self.head))

    def _key(self, name: str) -> TimerKey:
        return (name, self.round, self.attempt)

    def _seal(self, message: object) -> Envelope:
        return seal(self._identity, self.params.run, self.round, message)
