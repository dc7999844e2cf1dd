"""A member's part in settling which cohorts are in the sum: results, proposals, votes (see `averaging.inclusion`)."""

from __future__ import annotations

from dataclasses import replace

from averaging.actions import Action, Note, Send, SetTimer, TimerKey
from averaging.collecting import Failed
from averaging.guard import Guard
from averaging.inclusion import Results, Votes, check_included, check_inclusion, failed_result, inclusion_value
from averaging.messages import Included, Inclusion, InclusionVote, Ping, Result
from averaging.params import COORDINATORS, RELAYS, RunParams
from averaging.roster import CheckedRoster, ranking
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId


class Coordinating:
    """One member's view of one roster with several cohorts, until it knows which of them are included."""

    def __init__(
        self,
        params: RunParams,
        identity: Identity,
        roster: CheckedRoster,
        committee: tuple[PeerId, ...],
        guard: Guard,
    ) -> None:
        self.params, self.roster, self.sid, self.committee = params, roster, roster.round_sid, committee
        self._identity, self._guard, self.me = identity, guard, identity.peer_id
        order, present = ranking(roster.head, committee), roster.present
        turn = roster.attempt % len(order)
        self.coordinators = tuple(peer for peer in order[turn:] + order[:turn] if peer in present)[:COORDINATORS]
        self._collected = Results(roster)
        self._votes = Votes(roster, committee)
        self._proposed: dict[PeerId, bytes] = {}  # coordinator -> the value that it proposed
        self._result: Envelope | None = None
        self._voted: bytes | None = None
        self._suspects: set[PeerId] = set()
        self._pinged: set[PeerId] = set()
        self._late = self._told = self._due = False
        self._mine_proposed = self._waiting = self._closing = self._insists = False
        self._message: Included | None = None
        self.results: tuple[Result, ...] | None = None
        """The included cohorts' results, once a quorum's votes for them are here."""
        self.failed: Failed | None = None

    # --- my cohort's result -------------------------------------------------------------------------------------

    def report(self, result: Result) -> list[Action]:
        """My cohort has come to this: tell the coordinators, and again until they answer."""
        if self._result is not None:
            return []
        self._result = self._seal(result)
        self._insists = bool(result.survivors) and not self._closing
        if self.me in self.coordinators:
            self._collected.add(self.me, result, self._result.signature)
            for peer in self._suspects:
                self._collected.gone(peer)
        return [*self._tell(), SetTimer(self._key("result"), self.params.deadlines.survivors), *self._vote()]

    def _tell(self) -> list[Action]:
        return [Send(peer, self._result) for peer in self.coordinators if peer != self.me and self._result is not None]

    def on_result(self, sender: PeerId, result: Result, envelope: Envelope) -> list[Action]:
        """A member's result, at a coordinator. Raises ProtocolError."""
        if self._message is not None:
            return [Send(sender, self._seal(self._message))]
        self._collected.add(sender, result, envelope.signature)
        return self._propose()

    # --- coordinators -------------------------------------------------------------------------------------------

    def _listen(self) -> list[Action]:
        """Whoever is silent while others of its cohort speak may be gone: see whether it is there."""
        ping = self._seal(Ping(0, self.sid))
        silent = set(self._collected.silent()) - {self.me}
        self._pinged |= silent
        return [*self._tell(), *[Send(peer, ping) for peer in sorted(silent)]]

    def _place(self) -> int:
        return self.coordinators.index(self.me) if self.me in self.coordinators else -1

    def _propose(self) -> list[Action]:
        place = self._place()
        if place < 0 or self._mine_proposed or self._message is not None:
            return []
        settled = self._collected.settled
        my_turn = set(self.coordinators[:place]) <= self._suspects
        if not (self._due or (settled and my_turn)):
            if not settled or self._waiting:
                return []
            self._waiting = True  # all is there, but the coordinators before me come first
            return [SetTimer(self._key("turn"), place * self.params.deadlines.survivors)]
        self._mine_proposed = True
        inclusion = self._choice(place)
        envelope = self._seal(inclusion)
        voters = [peer for peer in self.committee if peer != self.me]
        return [*[Send(peer, envelope) for peer in voters], *self.on_inclusion(self.me, inclusion)]

    def _choice(self, view: int) -> Inclusion:
        """What some member has voted for, if I know of it, so that its votes are not lost; but never less than what is
        proven to me.
        """
        mine = self._collected.inclusion(view)
        known = self._votes.known.get(self._voted or b"") or next(iter(self._votes.known.values()), None)
        return replace(known, view=view) if known is not None and set(mine.results) <= set(known.results) else mine

    def on_inclusion(self, sender: PeerId, inclusion: Inclusion) -> list[Action]:
        """A coordinator's proposal, or what another member voted for. Raises ProtocolError."""
        if self._message is not None:
            return [Send(sender, self._seal(self._message))] if sender != self.me else []
        value = inclusion_value(self.sid, inclusion.results)
        proposer = inclusion.view < len(self.coordinators) and self.coordinators[inclusion.view] == sender
        if proposer and self._proposed.get(sender, value) != value:
            raise ProtocolError(Refusal.EQUIVOCATION, "two inclusions by one coordinator")
        if not proposer and self._place() < 0:
            raise ProtocolError(Refusal.WRONG_SENDER, f"{sender.short} does not coordinate view {inclusion.view}")
        if value not in self._votes.known:
            if len(self._votes.known) >= 2 * COORDINATORS:
                raise ProtocolError(Refusal.RATE_LIMITED, "too many different inclusions")
            check_inclusion(inclusion, self.roster, self.params.run)
            self._votes.learn(inclusion)
        if not proposer:
            return self._certify()
        self._proposed[sender] = value
        return [*self._vote(), *self._show(sender, value), *self._certify()]

    def _vote(self) -> list[Action]:
        """My one vote: for the first coordinator's proposal that does my own cohort right."""
        if self.me not in self.committee or self._voted is not None or self._message is not None:
            return []
        for coordinator in self.coordinators:
            value = self._proposed.get(coordinator)
            if value is None or not self._fair(value):
                continue
            try:
                # One inclusion per roster, also after a restart.
                self._guard.ballot(self.params.run, self.roster.round, self.roster.attempt, "inclusion", value)
            except ProtocolError as error:
                return [Note(str(error), self.me)]
            self._voted = value
            return self._cast(self.coordinators)
        return []

    def _fair(self, value: bytes) -> bool:
        """Whether an inclusion has my cohort in it, if that came to a sum in good time; or all coordinators should know
        of its result, and a second one says the same: too few of its members may have lived to sign it.
        """
        if self._result is not None and self._result.body in self._votes.known[value].results:
            return True
        if self._result is not None and not self._insists:
            return True
        agreed = sum(proposed == value for proposed in self._proposed.values())
        return (self._told and agreed > 1) or (self._late and self._result is None)

    def _cast(self, to: tuple[PeerId, ...]) -> list[Action]:
        assert self._voted is not None
        vote = InclusionVote(self.sid, self._voted)
        envelope = self._seal(vote)
        if self.me in to:
            self._votes.add(self.me, vote, envelope.signature)
        return [*[Send(peer, envelope) for peer in to if peer != self.me], *self._certify()]

    def _show(self, coordinator: PeerId, value: bytes) -> list[Action]:
        """Who proposes something else than what I voted for gets my vote and what it is for."""
        if self._voted is None or self._voted == value or coordinator == self.me:
            return []
        return [Send(coordinator, self._seal(self._votes.known[self._voted])), *self._cast((coordinator,))]

    def on_vote(self, sender: PeerId, vote: InclusionVote, envelope: Envelope) -> list[Action]:
        """A committee member's vote, at a coordinator. Raises ProtocolError."""
        if self._message is not None:
            return [Send(sender, self._seal(self._message))]
        self._votes.add(sender, vote, envelope.signature)
        return self._certify()

    def _certify(self) -> list[Action]:
        if self._place() < 0 or self._message is not None or not (self._mine_proposed or self._due):
            return []
        included = self._votes.included()
        if included is None:
            return []
        self._accept(included)
        envelope = self._seal(included)
        to = set(self.roster.peers)
        for index in range(len(self.roster.cohorts)):
            to |= set([p for p in self.roster.cohort(index) if p not in self._suspects][:RELAYS])
        return [Send(peer, envelope) for peer in sorted(to - {self.me})]

    # --- the outcome --------------------------------------------------------------------------------------------

    def on_included(self, sender: PeerId, message: Included) -> list[Action]:
        """A quorum's votes for the included cohorts. Raises ProtocolError."""
        if self._message is not None:
            return []
        self._accept(message)
        peers = self.roster.peers
        if self.me not in peers[:RELAYS] and sender in peers:
            return []
        envelope = self._seal(message)
        return [Send(peer, envelope) for peer in peers if peer not in (self.me, sender)]

    def _accept(self, message: Included) -> None:
        results = check_included(message, self.roster, self.params.run, self.committee)
        self._message, self.results = message, results

    def _begin(self) -> list[Action]:
        """Start the clock of the whole attempt."""
        limits, place = self.params.deadlines, max(0, self._place())
        due = limits.included(self.roster.largest)
        closing = SetTimer(self._key("closing"), due - limits.survivors)
        return [closing, SetTimer(self._key("include"), due + place * limits.survivors)]

    def _coordinate_timeout(self, key: TimerKey) -> list[Action]:
        name, turn = key[0], key[2] & 0xFF
        if self._message is not None:
            return []
        if name == "result":
            self._told = True
            if self._place() >= 0:
                return [*self._listen(), SetTimer(key, self.params.deadlines.survivors)]
            pause = self.params.deadlines.survivors * 2 ** min(turn + 1, 4)  # the slowest cohort may take long
            return [*self._tell(), SetTimer(self._key("result", min(turn + 1, 4)), pause)]
        if name == "closing":
            self._closing = True
            return []
        self._due = True
        self._late |= name == "include"
        return [*self._vote(), *self._propose(), *self._certify()]

    def _key(self, name: str, turn: int = 0) -> TimerKey:
        return (name, self.roster.round, self.roster.attempt << 8 | turn)

    def _seal(self, message: object) -> Envelope:
        return seal(self._identity, self.params.run, self.roster.round, message)

    def _failure(self) -> Result:
        return failed_result(self.sid, self.roster.index)
