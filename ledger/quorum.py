"""One epoch's checkpoint at one attestor: sign the header that its own records give, collect the others' signatures,
and, when it is its turn, submit. A state machine: it touches no chain, no network, no clock.

Everybody sends its signature to everybody; who lacks some asks two others in turn. A header that differs from one's own
is passed on once for each signer, so that two of them by one key meet somewhere. The first of `Electorate.leaders`
submits as soon as it has a quorum, each next one `TAKE_OVER` seconds later, until the hub shows the checkpoint.
Signatures over another header than one's own are counted, but never submitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from averaging.actions import Action, CancelTimer, Note, Send, SetTimer, TimerKey
from dht.errors import ProtocolError, Refusal, StorageError
from dht.identity import Identity, PeerId
from ledger.attestor_guard import AlreadySignedError, AttestorGuard
from ledger.chain_view import Propose
from ledger.checkpoint import Checkpoint
from ledger.eip712 import Domain
from ledger.electorate import Electorate
from ledger.evidence import SignedCheckpoint
from ledger.messages import AttestationRequest, Attestations
from ledger.signatures import key_address, pack, sign

TAKE_OVER = 30.0
"""Seconds after which the next attestor submits, too."""
ASK_EVERY = 5.0
"""Seconds between requests for signatures that are missing."""
ASKED = 2
"""Attestors that are asked at a time."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Bring this to the chain, exactly once."""

    intent: Propose


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
        self._seen: dict[int, SignedCheckpoint] = {}
        self._passed_on: set[int] = set()
        self._asked = electorate.index(self._address) or 0
        self._noted: set[str] = set()
        self.own: Checkpoint | None = None
        """The header that follows from my records; I sign no other and submit no other."""
        self.signed: SignedCheckpoint | None = None
        self._complete = False

    def adopt(self, header: Checkpoint) -> list[QuorumAction]:
        """My records give this header: sign it, unless another was signed here before (then abstain).

        After another branch of records won, the header may be another one than last time.
        """
        if header == self.own and self.signed is not None:
            return []
        actions: list[QuorumAction] = []
        if header != self.own:
            actions = [*self.withdraw(), SetTimer(self._timer("ask"), ASK_EVERY)]
            self.own = header
        try:
            digest = self._guard.promise(self._domain, header)
        except (AlreadySignedError, StorageError) as error:
            return [*actions, *self._note(str(error)), *self._progress()]
        self.signed = SignedCheckpoint(header, sign(self._me, digest))
        index = self._electorate.index(self._address)
        if index is not None:
            self._seen[index] = self.signed
        mine = Attestations(header.encode(), (self.signed.signature,))
        return [*actions, *self._to_all(mine), *self._progress()]

    def withdraw(self) -> list[QuorumAction]:
        """My records no longer give the header that they gave, nor another one yet: submit nothing."""
        if self.own is None:
            return []
        self.own, self.signed, self._complete = None, None, False
        return self.stop()

    def collect(self, signer: int, signed: SignedCheckpoint) -> list[QuorumAction]:
        """An attestor (its index) signed a header of this place: the first one that was seen of it."""
        if signer not in self._seen:
            self._seen[signer] = signed
            return self._progress()
        return []

    def request(self, sender: PeerId, request: AttestationRequest) -> list[QuorumAction]:
        """Send the signatures over one header that an attestor lacks."""
        over = {index: signed for index, signed in self._seen.items() if signed.header.hash() == request.hash}
        missing = [over[index] for index in sorted(over) if not request.have >> index & 1]
        if not missing:
            return []
        signatures = tuple(signed.signature for signed in missing)
        return [Send(sender, Attestations(missing[0].header.encode(), signatures))]

    def timeout(self, key: TimerKey) -> list[QuorumAction]:
        """A timer of this epoch is due."""
        if self.own is None:
            return []
        if key == self._timer("ask") and not self._complete:
            return [*self._ask(), SetTimer(key, ASK_EVERY)]
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
        by_hash: dict[bytes, list[int]] = {}
        for index, signed in self._seen.items():
            by_hash.setdefault(signed.header.hash(), []).append(index)
        mine = by_hash.pop(self.own.hash(), [])
        if any(self._electorate.enough(indices) for indices in by_hash.values()):
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
            who = self._electorate.addresses[index]
            peer = self._directory.get(who)
            actions.append(Note(f"0x{who.hex()} signed another checkpoint of epoch {self.epoch} than mine", peer))
            actions += self._to_all(Attestations(signed.header.encode(), (signed.signature,)))
        return actions

    def _ask(self) -> list[QuorumAction]:
        assert self.own is not None
        have = sum(1 << index for index, signed in self._seen.items() if signed.header == self.own)
        request = AttestationRequest(self.fork_nonce, self.epoch, self.own.hash(), have)
        others = self._others()
        start, self._asked = self._asked, self._asked + ASKED
        chosen = {others[(start + step) % len(others)] for step in range(ASKED)} if others else set()
        return [Send(peer, request) for peer in sorted(chosen)]

    def _others(self) -> list[PeerId]:
        addresses = (address for address in self._electorate.addresses if address != self._address)
        return [self._directory[address] for address in addresses if address in self._directory]

    def _to_all(self, message: object) -> Iterable[QuorumAction]:
        return [Send(peer, message) for peer in self._others()]

    def _note(self, text: str) -> list[QuorumAction]:
        """Say something once."""
        if text in self._noted:
            return []
        self._noted.add(text)
        return [Note(f"epoch {self.epoch}: {text}")]

    def _timer(self, what: str) -> TimerKey:
        return f"checkpoint {what}", self.epoch, self.fork_nonce


def check_request(request: AttestationRequest, current: EpochQuorum) -> None:
    """Raises ProtocolError: STALE for a place that is over, UNEXPECTED for one that is not there yet."""
    place, here = (request.fork_nonce, request.epoch), (current.fork_nonce, current.epoch)
    if place != here:
        late = place < here
        raise ProtocolError(Refusal.STALE if late else Refusal.UNEXPECTED, f"a request of {place} while {here} is due")
