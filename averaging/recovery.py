"""Recovery: the survivors of a committee go on when more than a third of it is gone for good.

Without a quorum nothing is certified, and a round lasts for ever. Members of its committee say once in a while that
they are still in it (`Present`). Who has heard too few for a quorum during `recovery_after` seconds signs a *recovery*
(`Recover`): a subset S of the committee, itself included, that goes on alone. When all of S signed it, it is a link of
the chain like any other: a void record that names S, which is the committee from the next round on.

At least half of the committee must sign (`fewest`). While fewer than a third lie, no quorum of S consists of liars
only, so that nothing certified later in the branch is theirs alone; and two branches from one link take two halves,
or somebody who signed both. `docs/decisions/0010-recovery-branches.md` says what else follows.

The machine has no clock: it counts the beats of its own timer, of which `recovery_after` has ten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from averaging.actions import Action, Note, Send, SetTimer, TimerKey
from averaging.ballots import Certificate, Decision
from averaging.certificate import check_signatures, quorum
from averaging.record import Record, Survivor, check_sorted, void_record
from averaging.survivors import bitmap, bits
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import U64, Bytes32, decode_as, digest, encode, message

BEATS = 10
"""Beats in `recovery_after`."""
_RECENT = 2
"""Who was heard in so many beats is there."""
_PATIENCE = 2
"""Beats that one subset may take to be signed by all of it."""


@message(tag=0x56, cap=128)
@dataclass(frozen=True, slots=True)
class Present:
    """A member of the round's committee is there and has no decision yet; `parent` is its head's hash."""

    round: U64
    parent: Bytes32


@message(tag=0x57, cap=128)
@dataclass(frozen=True, slots=True)
class Recover:
    """The signer wants to go on after `parent` with these members of the committee (a bitmap of its indices) only."""

    round: U64
    parent: Bytes32
    members: U64


def fewest(committee: int) -> int:
    """How many members of a committee may go on alone: half of it. Then `quorum(fewest(n)) > faulty(n)`."""
    return (committee + 1) // 2


def recovery_record(head: Record, members: tuple[PeerId, ...]) -> Record:
    """The record that says: nothing changed after `head`, and `members` are the committee from here on."""
    return replace(void_record(head), survivors=tuple(Survivor(peer, 0, 0) for peer in sorted(members)))


def check_recovery(record: Record, certificate: Certificate, head: Record, committee: tuple[PeerId, ...]) -> None:
    """Raises ProtocolError unless `record` is the recovery after `head` that all its members signed.

    Refused: another parent or form (BAD_HASH), members from outside the committee (NOT_A_MEMBER), fewer than half of
    it, or a quorum, which needs no recovery (OUT_OF_BOUNDS), a missing or wrong signature (BAD_CERTIFICATE).
    """
    if record.run != head.run:
        raise ProtocolError(Refusal.WRONG_RUN, "the recovery belongs to another run")
    if record.round != head.round + 1:
        raise ProtocolError(Refusal.STALE, f"a recovery of round {record.round} where {head.round + 1} is due")
    members = record.members()
    check_sorted(members, "members of a recovery")
    if record != recovery_record(head, members):
        raise ProtocolError(Refusal.BAD_HASH, f"the recovery of round {record.round} does not follow from its parent")
    if not set(members) <= set(committee):
        raise ProtocolError(Refusal.NOT_A_MEMBER, "a recovery with members from outside the committee")
    if not fewest(len(committee)) <= len(members) < quorum(len(committee)):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a recovery by {len(members)} of {len(committee)} members")
    chosen = tuple(committee.index(peer) for peer in members)
    if (certificate.round, certificate.view, certificate.value) != (record.round, 0, record.hash()):
        raise ProtocolError(Refusal.BAD_CERTIFICATE, "the certificate is not that of the recovery")
    if certificate.signers != chosen:
        raise ProtocolError(Refusal.BAD_CERTIFICATE, "not all members of a recovery signed it, or others did")
    frame = encode(Recover(record.round, head.hash(), bitmap(chosen)))
    check_signatures(record.run, record.round, frame, committee, chosen, certificate.signatures, len(chosen))


class Recovery:
    """One peer's part in the recovery of one round. `outcome` is set once the recovery is complete here."""

    def __init__(
        self, run: bytes, me: Identity, head: Record, committee: tuple[PeerId, ...], recovery_after: float
    ) -> None:
        """`recovery_after` in seconds; 0 means never."""
        self._run, self._me, self._head, self._committee = run, me, head, committee
        self._parent, self._round = head.hash(), head.round + 1
        member = me.peer_id in committee
        self._index = committee.index(me.peer_id) if member else -1
        self._beat = recovery_after / BEATS if member and len(committee) > 1 else 0.0
        self._now = 0
        self._heard: dict[PeerId, int] = {}
        self._asked: dict[int, tuple[int, bytes]] = {}
        self._mine: tuple[int, int] | None = None
        self._tried: set[int] = set()
        self._silent: set[int] = set()
        self.outcome: tuple[Record, Certificate] | None = None

    @property
    def ready(self) -> bool:
        """Whether more than a third of the committee, for all that I heard, was gone all through `recovery_after`."""
        alive = 1 + sum(self._now - beat < BEATS for beat in self._heard.values())
        return self._now >= BEATS and alive < quorum(len(self._committee))

    def begin(self) -> list[Action]:
        """The round begins; nothing happens for one beat."""
        return [SetTimer(("recover", self._round, 0), self._beat)] if self._beat else []

    def timeout(self, key: TimerKey) -> list[Action]:
        """One beat is over: say that I am there, and if too few others are, try to go on with those who are."""
        if key[0] != "recover" or self.outcome is not None:
            return []
        self._now += 1
        present = seal(self._me, self._run, self._round, Present(self._round, self._parent))
        others = [peer for peer in self._committee if peer != self._me.peer_id]
        return [*self.begin(), *[Send(peer, present) for peer in others], *self._propose()]

    def receive(self, sender: PeerId, envelope: Envelope, body: object) -> list[Action]:
        """A checked envelope of this round with a `Present` or `Recover`. Raises ProtocolError when it is refused."""
        if sender not in self._committee:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{sender.short} is not in the committee")
        assert isinstance(body, Present | Recover)
        if body.round != self._round:
            raise ProtocolError(Refusal.STALE, f"{type(body).__name__} of round {body.round} in another envelope")
        if body.parent != self._parent or self._index < 0:
            return []
        self._heard[sender] = self._now
        if isinstance(body, Present) or self.outcome is not None:
            return []
        index = self._committee.index(sender)
        if not self._possible(body.members) or not body.members >> index & 1:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a recovery that cannot be")
        self._asked[index] = (body.members, envelope.signature)
        waits = self._mine is not None and self._now - self._mine[1] < _PATIENCE
        if self.ready and not waits and body.members not in self._tried:
            return self._sign(body.members)
        return self._complete()

    def decided(self, decision: Decision) -> None:
        """Somebody shows how the round ended; it counts here if it is a recovery. Raises ProtocolError."""
        record = decode_as(Record, decision.record)
        if record.recovery and record.parent == self._parent:
            certificate = decode_as(Certificate, decision.certificate)
            check_recovery(record, certificate, self._head, self._committee)
            self.outcome = (record, certificate)

    def _possible(self, members: int) -> bool:
        """Whether a subset may go on, and I with it."""
        n = len(self._committee)
        return members >> n == 0 and fewest(n) <= members.bit_count() < quorum(n) and bool(members >> self._index & 1)

    def _propose(self) -> list[Action]:
        """Sign again, or what others ask for, or, when it is my turn, a subset of my own."""
        if not self.ready:
            return []
        if self._mine is not None and self._now - self._mine[1] < _PATIENCE:
            return self._say(self._mine[0])
        if self._mine is not None:
            self._tried.add(self._mine[0])
            self._silent |= {i for i in bits(self._mine[0]) if i != self._index and not self._agrees(i, self._mine[0])}
            self._mine = None
        asked = Counter(members for members, _ in self._asked.values() if members not in self._tried)
        if asked:
            return self._sign(max(asked, key=lambda members: (asked[members], -members)))
        present = {self._index} | {
            self._committee.index(peer) for peer, beat in self._heard.items() if self._now - beat <= _RECENT
        }
        chosen = present - self._silent
        if len(chosen) < fewest(len(self._committee)):
            self._silent.clear()
            self._tried.clear()
            chosen = present
        # Whose turn it is changes with time, so that nobody is waited for who cannot lead.
        order = sorted(chosen, key=lambda i: digest("recovery", self._parent, self._committee[i]))
        turn = (self._now - BEATS) // _PATIENCE % len(order)
        return self._sign(bitmap(chosen)) if order[turn] == self._index and self._possible(bitmap(chosen)) else []

    def _agrees(self, index: int, members: int) -> bool:
        return index in self._asked and self._asked[index][0] == members

    def _sign(self, members: int) -> list[Action]:
        self._mine = (members, self._now)
        text = f"{members.bit_count()} of {len(self._committee)} committee members are left: going on without the rest"
        return [Note(text), *self._say(members)]

    def _say(self, members: int) -> list[Action]:
        envelope = seal(self._me, self._run, self._round, Recover(self._round, self._parent, members))
        self._asked[self._index] = (members, envelope.signature)
        others = [i for i in bits(members) if i != self._index]
        return [*[Send(self._committee[i], envelope) for i in others], *self._complete()]

    def _complete(self) -> list[Action]:
        """The recovery is there once I signed it and everybody in it did."""
        members = self._asked[self._index][0] if self._index in self._asked else 0
        if members and all(self._agrees(i, members) for i in bits(members)):
            chosen = bits(members)
            record = recovery_record(self._head, tuple(self._committee[i] for i in chosen))
            signatures = tuple(self._asked[i][1] for i in chosen)
            self.outcome = (record, Certificate(self._round, 0, record.hash(), chosen, signatures))
        return []
