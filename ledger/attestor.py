"""An attestor: what one peer does for the ledger, as a state machine over its own records and the hub's head.

It works on one epoch, the one after the hub's head: epochs that were missed while no RPC answered follow one after the
other, since each checkpoint names its parent. A reorganisation that takes a checkpoint away makes its epoch the next
one again; the signatures are still known and still good. A rollback does so under a new fork nonce: a new place. It
wants one for what is not active on the hub and not what its records give (`ledger.rollbacks`); what is active is final.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from averaging.actions import Note, TimerKey
from averaging.chain import Chain
from dht.errors import ProtocolError, Refusal, StorageError
from dht.identity import Identity, PeerId
from ledger.attestation_log import AttestationLog
from ledger.attestor_guard import AttestorGuard
from ledger.books import Books
from ledger.chain_view import Head
from ledger.checkpoint import Checkpoint
from ledger.eip712 import Domain
from ledger.evidence import SignedCheckpoint, equivocation
from ledger.messages import Attestations, CheckpointStatus, RollbackSignatures, RollbackStatus
from ledger.quorum import EpochQuorum, QuorumAction, check_place
from ledger.rollbacks import Alarm, RollbackQuorum, first_wrong
from ledger.signatures import key_address, recover

REMEMBERED = 64
"""Epochs behind the head of which a second signature is still found out: as many as the hub's ring has slots."""
_NONCES = 2
"""Fork nonces, the present one included, of which signatures are taken."""


@dataclass(frozen=True, slots=True)
class Expose:
    """Keep this evidence (a frame, `ledger.evidence`): the key of this address signed two headers for one place."""

    evidence: bytes
    accused: bytes


@dataclass(frozen=True, slots=True)
class Finalize:
    """No fork choice may roll back this round any more: its checkpoint is active and is what my records give."""

    round: int


AttestorAction: TypeAlias = QuorumAction | Expose | Finalize


class Attestor:
    """One peer's part in all checkpoints of one run. Who is no attestor follows the head, and signs nothing."""

    def __init__(
        self,
        me: Identity,
        domain: Domain,
        books: Books,
        chain: Callable[[], Chain],
        guard: AttestorGuard,
        log: AttestationLog,
    ) -> None:
        """`chain` gives the run's records as they stand now: another branch may have won since the last call."""
        self._me, self._domain, self._books, self._chain = me, domain, books, chain
        self._guard, self._log = guard, log
        self._address = key_address(me.peer_id)
        self._directory: dict[bytes, PeerId] = {}
        self._head: Head | None = None
        self._noted = ""
        self._final = 0
        self._exposed: set[tuple[bytes, int, int]] = set()
        self.current: EpochQuorum | None = None
        self.rollbacks: RollbackQuorum | None = None

    def head(self, head: Head) -> list[AttestorAction]:
        """The hub is there now."""
        before, self._head = self._head, head
        if before is None or _place(before) != _place(head):
            actions = self._begin(head)
        else:
            actions = []
        if before is not None and head.fork_nonce > before.fork_nonce:
            actions.append(Note(f"epoch {head.rolled_back} was rolled back: now under fork nonce {head.fork_nonce}"))
        return [*actions, *self.advanced()]

    def advanced(self) -> list[AttestorAction]:
        """My records may be others than last time: sign what follows from them, if the epoch is over."""
        head, chain = self._head, self._chain()
        if head is None:
            return []
        wrong = first_wrong(head, chain, self._books)
        if wrong is not None:
            return self._disagree(head, wrong.epoch)
        actions = self._finalize(head, chain)
        if self.current is None:
            return actions
        epoch = head.epoch + 1
        if chain.head.round < self._books.constants.last_round(epoch):
            return [*actions, *self.current.withdraw(), *self._wish(head, None)]
        header = self._books.contents(chain, epoch, head.fees).checkpoint(head.fork_nonce, head.hash)
        actions += self.current.adopt(header)
        if self.current.signed is not None:
            self._first(self._address, self.current.signed)
        return [*actions, *self._wish(head, epoch if self.current.blocked else None)]

    def receive(self, sender: PeerId, message: object) -> list[AttestorAction]:
        """A message from an authenticated peer. Raises ProtocolError when it is refused."""
        if self._head is None or self.current is None:
            raise ProtocolError(Refusal.UNEXPECTED, "no epoch is open here")
        address = key_address(sender)
        index = self._head.electorate.index(address)
        if index is None:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{sender.short} is no attestor")
        self._directory[address] = sender
        if isinstance(message, CheckpointStatus):
            check_place(message, self.current)
            return [*self.current.status(sender, index, message)]
        if isinstance(message, Attestations):
            return self._receive(Checkpoint.decode(message.header), message.signatures, self._head, self.current)
        if isinstance(message, RollbackStatus) and self.rollbacks is not None:
            return [*self.rollbacks.status(sender, index, message)]
        if isinstance(message, RollbackSignatures) and self.rollbacks is not None:
            return [*self.rollbacks.signatures(message)]
        raise ProtocolError(Refusal.UNEXPECTED, f"{type(message).__name__} is none of the ledger's messages")

    def timeout(self, key: TimerKey) -> list[AttestorAction]:
        """A timer is due."""
        parts = (part for part in (self.current, self.rollbacks) if part is not None)
        return [action for part in parts for action in part.timeout(key)]

    def _begin(self, head: Head) -> list[AttestorAction]:
        """Turn to the epoch after the head, with the signatures for it that were seen before."""
        actions: list[AttestorAction] = [] if self.current is None else [*self.current.stop()]
        self.current = None
        actions += self._count_rollbacks(head)
        if self.rollbacks is None:
            return actions
        self._look_up(head)
        place = (head.fork_nonce, head.epoch + 1)
        self.current = EpochQuorum(self._me, self._domain, head.electorate, place, self._guard, self._directory)
        try:
            self._log.forget(self._domain, max(0, head.epoch + 1 - REMEMBERED))
            seen = self._log.at(self._domain, self._chain().run, *place)
        except StorageError as error:
            return [*actions, Note(str(error))]
        for signer, signed in seen:
            index = head.electorate.index(signer)
            if index is not None:
                actions += self.current.collect(index, signed)
        return actions

    def _count_rollbacks(self, head: Head) -> list[AttestorAction]:
        """Begin with no rollbacks where the fork nonce or the attestors are others."""
        actions: list[AttestorAction] = []
        old = self.rollbacks
        if old is not None and (old.fork_nonce, old.electorate) != (head.fork_nonce, head.electorate):
            actions, self.rollbacks = [*old.stop()], None
        if self.rollbacks is None and head.electorate.index(self._address) is not None:
            run = self._chain().run
            self.rollbacks = RollbackQuorum(self._me, self._domain, run, head, self._guard, self._directory)
        return actions

    def _wish(self, head: Head, epoch: int | None) -> list[AttestorAction]:
        return [] if self.rollbacks is None else [*self.rollbacks.wish(head, epoch)]

    def _disagree(self, head: Head, epoch: int) -> list[AttestorAction]:
        """The hub's checkpoint of this epoch is not what my records give: sign nothing on top of it."""
        final = epoch <= head.active_epoch
        text = f"the ledger's checkpoint of epoch {epoch} is not what my records give"
        actions = self._note(f"{text}, and it is final: no more is signed here", Alarm) if final else self._note(text)
        actions += self.current.withdraw() if self.current else []
        return [*actions, *self._wish(head, None if final else epoch)]

    def _look_up(self, head: Head) -> None:
        """Find attestors among all who ever had a part in the run."""
        missing = set(head.electorate.addresses) - self._directory.keys()
        chain = self._chain()
        known = (*chain.committee(), *map(PeerId, chain.tally.shares)) if missing else ()
        self._directory |= {key_address(peer): peer for peer in known if key_address(peer) in missing}

    def _receive(
        self, header: Checkpoint, signatures: tuple[bytes, ...], head: Head, current: EpochQuorum
    ) -> list[AttestorAction]:
        self._check_place(header, head)
        digest = header.digest(self._domain)
        actions: list[AttestorAction] = []
        # All are checked before one is taken: a bad one at the end must not lose what the others lead to.
        for signer, index, signature in [self._check_signature(digest, each, head) for each in signatures]:
            signed = SignedCheckpoint(header, signature)
            first = self._first(signer, signed)
            if first.header != header:
                actions += self._expose(signer, first, signed)
            elif header.place == (current.fork_nonce, current.epoch):
                actions += current.collect(index, signed)
        return actions

    def _check_signature(self, digest: bytes, signature: bytes, head: Head) -> tuple[bytes, int, bytes]:
        """(signer, its index, signature). Raises ProtocolError unless an attestor made it."""
        signer = recover(digest, signature)
        if signer is None:
            raise ProtocolError(Refusal.BAD_SIGNATURE, "a signature over a checkpoint is none")
        index = head.electorate.index(signer)
        if index is None:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"0x{signer.hex()} signed a checkpoint, but is no attestor")
        return signer, index, signature

    def _first(self, signer: bytes, signed: SignedCheckpoint) -> SignedCheckpoint:
        """What an attestor signed first for a place; this very one when the log is out of order."""
        try:
            return self._log.keep(self._domain, signer, signed)
        except StorageError:
            return signed

    def _expose(self, signer: bytes, first: SignedCheckpoint, signed: SignedCheckpoint) -> list[AttestorAction]:
        place = (signer, *first.header.place)
        evidence = equivocation(self._domain, first, signed)
        if evidence is None or place in self._exposed:
            return []
        self._exposed.add(place)
        return [Expose(evidence, signer)]

    def _check_place(self, header: Checkpoint, head: Head) -> None:
        """Raises ProtocolError unless a header is of the present epoch, or of one of which two are still evidence."""
        if header.run != self._chain().run:
            raise ProtocolError(Refusal.WRONG_RUN, "a checkpoint of another run")
        if header.epoch > head.epoch + 1 or header.fork_nonce > head.fork_nonce:
            raise ProtocolError(Refusal.UNEXPECTED, f"a checkpoint of epoch {header.epoch} after {head.epoch}")
        if header.epoch <= max(0, head.epoch + 1 - REMEMBERED) or header.fork_nonce + _NONCES <= head.fork_nonce:
            raise ProtocolError(Refusal.STALE, f"a checkpoint of epoch {header.epoch}, fork nonce {header.fork_nonce}")

    def _finalize(self, head: Head, chain: Chain) -> list[AttestorAction]:
        last = self._books.constants.last_round(head.active_epoch)
        if head.checkpoint is None or chain.head.round < head.checkpoint.last_round or last <= self._final:
            return []
        self._final = last
        return [Finalize(last)]

    def _note(self, text: str, kind: type[Note] = Note) -> list[AttestorAction]:
        if text == self._noted:
            return []
        self._noted = text
        return [kind(text)]


def _place(head: Head) -> tuple[object, ...]:
    return head.fork_nonce, head.epoch, head.hash, head.electorate
