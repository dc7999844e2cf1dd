"""One epoch's checkpoint at one attestor: sign the header that its own records give, collect the others' signatures,
and, when it is its turn, submit. A state machine: it touches no chain, no network, no clock.

A signature binds for ever, a status does not: attestors first say which header their records give, and sign when those
of more than two thirds of the weight give the same. While the network is split, and two branches of records grow,
nobody signs; else the halves would have spent the place on two headers, and no quorum could ever come of either.

Everybody sends its status and its signature to everybody; who lacks some says so again. A signed header that differs
from one's own is passed on once for each signer, so that two of them by one key meet somewhere. The first of
`Electorate.leaders` submits as soon as it has a quorum, each next one `TAKE_OVER` seconds later, until the hub shows
the checkpoint. Signatures over another header than one's own are counted, but never submitted. Who signed another one
before its records changed abstains, and shows that signature: when that leaves no quorum, the place is `blocked`, and
the way out is a rollback (`ledger.rollbacks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from averaging.actions import Action, CancelTimer, Note, Send, SetTimer, TimerKey
from dht.errors import ProtocolError, Refusal, StorageError
from dht.identity import Identity, PeerId
from ledger.attestor_guard import AlreadySignedError, AttestorGuard
from ledger.chain_view import HubIntent, Propose
from ledger.checkpoint import Checkpoint
from ledger.eip712 import Domain
from ledger.electorate import Electorate
from ledger.evidence import SignedCheckpoint
from ledger.messages import Attestations, CheckpointStatus
from ledger.signatures import key_address, pack, sign

TAKE_OVER = 30.0
"""Seconds after which the next attestor submits, too."""
ASK_EVERY = 5.0
"""Seconds after which a status is sent again."""
ASKED = 2
"""Attestors that get it then, once I have signed (or what I signed instead); before, all do."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Bring this to the chain, exactly once."""

    intent: HubIntent


QuorumAction: TypeAlias = Action | Submit


class EpochQuorum:
    """The epoch after the hub's head, at one attestor. `directory` says where attestors are; it may grow meanwhile."""

    def __init__(
        self,
        me: Identity,
        domain: Domain,
        electorate: Electorate,
        place: tuple[int, int],
        guard: AttestorGuard,
        directory: Mapping[bytes, PeerId],
    ) -> None:
        """`place`: (fork nonce, epoch)."""
        self._me, self._domain, self._electorate, self._guard = me, domain, electorate, guard
        self.fork_nonce, self.epoch = place
        self._directory = directory
        self._address = key_address(me.peer_id)
        self._index = electorate.index(self._address)
        self._seen: dict[int, SignedCheckpoint] = {}
        self._stated: dict[int, bytes] = {}
        self._answered: dict[int, tuple[CheckpointStatus, CheckpointStatus]] = {}
        self._passed_on: set[int] = set()
        self._asked = self._index or 0
        self._noted: set[str] = set()
        self.own: Checkpoint | None = None
        """The header that follows from my records; I sign no other and submit no other."""
        self.signed: SignedCheckpoint | None = None
        self._spent = False
        self._complete = False

    def adopt(self, header: Checkpoint) -> list[QuorumAction]:
        """My records give this header: say so, and sign it once enough others say the same.

        After another branch of records won, the header may be another one than last time. If one was signed here before
        that differs, I abstain: this place is spent.
        """
        if header == self.own and (self.signed is not None or self._spent):
            return []
        actions: list[QuorumAction] = []
        if header != self.own:
            actions = [*self.withdraw(), SetTimer(self._timer("ask"), ASK_EVERY)]
            self.own = header
        try:
            promised = self._guard.promised(self._domain, header.run, *header.place)
        except StorageError as error:
            return [*actions, *self._note(str(error)), *self._progress()]
        if promised is not None and promised != header:
            self._spend(promised)
            return [*actions, *self._note("I signed another checkpoint than my records give now"), *self._progress()]
        if promised is not None:
            actions += self._sign(header)
        if self._index is not None and self._index not in self._stated:
            self._stated[self._index] = header.hash()
            actions += self._to_all(self._status(header))
        return [*actions, *self._progress()]

    @property
    def blocked(self) -> bool:
        """Whether mine has no quorum, and others' signatures for another header are among what is missing.

        Who is silent is not waited for: it may be gone for good, and a rollback takes as many as a checkpoint.
        """
        if self.own is None or not self._differing():
            return False
        return not self._electorate.enough(self._signers(self.own))

    def withdraw(self) -> list[QuorumAction]:
        """My records no longer give the header that they gave, nor another one yet: submit nothing."""
        if self.own is None:
            return []
        self.own, self.signed, self._spent, self._complete = None, None, False, False
        if self._index is not None:
            self._stated.pop(self._index, None)
        return self.stop()

    def collect(self, signer: int, signed: SignedCheckpoint) -> list[QuorumAction]:
        """An attestor (its index) signed a header of this place: the first one that was seen of it."""
        if signer not in self._seen:
            self._seen[signer] = signed
            return self._progress()
        return []

    def status(self, sender: PeerId, index: int, status: CheckpointStatus) -> list[QuorumAction]:
        """An attestor says what its records give: it counts until it says otherwise. Answer with what it lacks."""
        self._stated[index] = status.hash
        over = {each: signed for each, signed in self._seen.items() if signed.header.hash() == status.hash}
        missing = [over[each] for each in sorted(over) if not status.have >> each & 1]
        actions: list[QuorumAction] = []
        if missing:
            signatures = tuple(signed.signature for signed in missing)
            actions.append(Send(sender, Attestations(missing[0].header.encode(), signatures)))
        if self.own is not None and self._index in self._stated and self.own.hash() == status.hash:
            answer = self._status(self.own)
            unheard = not status.heard >> (self._index or 0) & 1
            # The same again only at the next asking: two who each lack what gets lost would talk without end.
            if (unheard or status.have & ~answer.have) and self._answered.get(index) != (status, answer):
                self._answered[index] = status, answer
                actions.append(Send(sender, answer))
        return [*actions, *self._progress()]

    def timeout(self, key: TimerKey) -> list[QuorumAction]:
        """A timer of this epoch is due."""
        if self.own is None:
            return []
        if key == self._timer("ask") and not self._complete:
            self._answered.clear()
            return [*self._ask(self.own), SetTimer(key, ASK_EVERY)]
        if key == self._timer("turn") and self._complete:
            # The sender is durable; should it have given up after all, it is told again when everybody had a turn.
            return [self._submit(), SetTimer(key, TAKE_OVER * len(self._electorate.addresses))]
        return []

    def stop(self) -> list[QuorumAction]:
        """The hub has moved on."""
        return [CancelTimer(self._timer("ask")), CancelTimer(self._timer("turn"))]

    def _progress(self) -> list[QuorumAction]:
        """What follows from the signatures so far."""
        if self.own is None:
            return []
        actions = self._pass_on()
        if self._complete:
            return actions
        mine = self._signers(self.own)
        if self.signed is None and not self._spent and self._electorate.enough(mine | self._same(self.own)):
            actions += self._sign(self.own)
            mine = self._signers(self.own)
        others = {signed.header for signed in self._seen.values()} - {self.own}
        if any(self._electorate.enough(self._signers(other)) for other in others):
            return [*actions, *self._note("a quorum signed another checkpoint than my records give")]
        if not self._electorate.enough(mine):
            return actions
        self._complete = True
        leaders = self._electorate.leaders(self.own)
        return [
            *actions,
            CancelTimer(self._timer("ask")),
            SetTimer(self._timer("turn"), TAKE_OVER * leaders.index(self._address)),
        ]

    def _signers(self, header: Checkpoint) -> set[int]:
        """Whose signatures over this header I have."""
        return {index for index, signed in self._seen.items() if signed.header == header}

    def _differing(self) -> set[int]:
        """Who signed another header than mine."""
        return {index for index, signed in self._seen.items() if signed.header != self.own}

    def _spend(self, promised: Checkpoint) -> None:
        """I signed another header here before: abstain, and keep that signature at hand, also after a restart."""
        self._spent = True
        if self._index is not None and self._index not in self._seen:
            self._seen[self._index] = SignedCheckpoint(promised, sign(self._me, promised.digest(self._domain)))

    def _same(self, header: Checkpoint) -> set[int]:
        """Whose records give this header, for all that I heard."""
        return {index for index, stated in self._stated.items() if stated == header.hash()}

    def _sign(self, header: Checkpoint) -> list[QuorumAction]:
        """Promise it on disk, then sign it and tell everybody."""
        try:
            digest = self._guard.promise(self._domain, header)
        except (AlreadySignedError, StorageError) as error:
            return self._note(str(error))
        self.signed = SignedCheckpoint(header, sign(self._me, digest))
        if self._index is not None:
            self._seen[self._index] = self.signed
        return self._to_all(Attestations(header.encode(), (self.signed.signature,)))

    def _submit(self) -> Submit:
        assert self.own is not None
        mine = {index: signed.signature for index, signed in self._seen.items() if signed.header == self.own}
        chosen = self._electorate.fewest(mine)
        return Submit(Propose(self.own, *pack({index: mine[index] for index in chosen})))

    def _pass_on(self) -> list[QuorumAction]:
        """Tell the others what each attestor signed that differs from mine, once."""
        actions: list[QuorumAction] = []
        for index, signed in self._seen.items():
            if signed.header == self.own or index in self._passed_on:
                continue
            self._passed_on.add(index)
            if index != self._index:
                who = self._electorate.addresses[index]
                peer = self._directory.get(who)
                actions.append(Note(f"0x{who.hex()} signed another checkpoint of epoch {self.epoch} than mine", peer))
            actions += self._to_all(Attestations(signed.header.encode(), (signed.signature,)))
        return actions

    def _status(self, header: Checkpoint) -> CheckpointStatus:
        heard = sum(1 << index for index in self._same(header))
        have = sum(1 << index for index in self._signers(header))
        return CheckpointStatus(self.fork_nonce, self.epoch, header.hash(), heard, have)

    def _ask(self, header: Checkpoint) -> list[QuorumAction]:
        """Say again where I am; when I abstain, what I signed instead."""
        if self._spent:
            mine = self._seen.get(-1 if self._index is None else self._index)
            return self._in_turn(Attestations(mine.header.encode(), (mine.signature,))) if mine else []
        if self.signed is None:
            return self._to_all(self._status(header))
        return self._in_turn(self._status(header))

    def _in_turn(self, message: object) -> list[QuorumAction]:
        """Send it to the next few of the others."""
        others = self._others()
        start, self._asked = self._asked, self._asked + ASKED
        chosen = {others[(start + step) % len(others)] for step in range(ASKED)} if others else set()
        return [Send(peer, message) for peer in sorted(chosen)]

    def _others(self) -> list[PeerId]:
        addresses = (address for address in self._electorate.addresses if address != self._address)
        return [self._directory[address] for address in addresses if address in self._directory]

    def _to_all(self, message: object) -> list[QuorumAction]:
        return [Send(peer, message) for peer in self._others()]

    def _note(self, text: str) -> list[QuorumAction]:
        """Say something once."""
        if text in self._noted:
            return []
        self._noted.add(text)
        return [Note(f"epoch {self.epoch}: {text}")]

    def _timer(self, what: str) -> TimerKey:
        return f"checkpoint {what}", self.epoch, self.fork_nonce


def check_place(status: CheckpointStatus, current: EpochQuorum) -> None:
    """Raises ProtocolError: STALE for a place that is over, UNEXPECTED for one that is not there yet."""
    place, here = (status.fork_nonce, status.epoch), (current.fork_nonce, current.epoch)
    if place != here:
        late = place < here
        raise ProtocolError(Refusal.STALE if late else Refusal.UNEXPECTED, f"a status of {place} while {here} is due")
