"""The way back from checkpoints that more than two thirds of the attestors' weight no longer stand by.

An attestor wants a rollback of the first epoch on the hub that is not active and not what its own records give, or of
the epoch after the head when others' signatures keep its header from a quorum (`EpochQuorum.blocked`). A wish has to
last `PATIENCE` before anybody hears of it, so that branches of records that are about to meet lead to nothing.

Then as for checkpoints: a status first, which binds nobody, and a signature when the wishes of more than two thirds of
the weight agree. When they name several epochs, it is the latest one whose rollback takes along what so many want gone.
A new fork nonce counts the places anew, so a rollback contradicts no header: whoever signed one still signs checkpoints
under the old nonce while it has no such wish. Were it to abstain, wishes without a quorum could stop the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from averaging.actions import CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.chain import Chain
from dht.errors import ProtocolError, Refusal, StorageError
from dht.identity import Identity, PeerId
from ledger.attestor_guard import AttestorGuard
from ledger.books import Books
from ledger.chain_view import Head, RollBack
from ledger.checkpoint import Checkpoint, Rollback
from ledger.eip712 import Domain
from ledger.messages import RollbackSignatures, RollbackStatus
from ledger.quorum import ASK_EVERY, TAKE_OVER, QuorumAction, Submit
from ledger.signatures import key_address, pack, recover, sign

PATIENCE = 30.0
"""Seconds that a wish has to last before it is said."""
MOST_DOUBLINGS = 6
"""Of this time, while new places for an epoch do not help: half an hour."""
FRESH = 6
"""A status is forgotten when it was not said again while I asked so many times."""


@dataclass(frozen=True, slots=True)
class Alarm(Note):
    """A note that the peer's owner should see."""


def first_wrong(head: Head, chain: Chain, books: Books) -> Checkpoint | None:
    """The first of the hub's checkpoints, from the last active one on, that is not what my records give.

    None while all are, as far as the records reach.
    """
    for checkpoint in head.standing:
        if chain.head.round < books.constants.last_round(checkpoint.epoch):
            return None
        if not books.contents(chain, checkpoint.epoch, head.fees).agrees(checkpoint):
            return checkpoint
    return None


class RollbackQuorum:
    """All rollbacks under one fork nonce, at one attestor. A state machine, as `EpochQuorum` is."""

    def __init__(
        self,
        me: Identity,
        domain: Domain,
        run: bytes,
        head: Head,
        guard: AttestorGuard,
        directory: Mapping[bytes, PeerId],
    ) -> None:
        """`head` gives fork nonce and electorate, which stay; `wish` tells of later heads."""
        self._me, self._domain, self._run, self._guard = me, domain, run, guard
        self._head, self._directory = head, directory
        self.fork_nonce = head.fork_nonce
        self.electorate = head.electorate
        self._address = key_address(me.peer_id)
        self._index = self.electorate.index(self._address)
        self._seen: dict[int, dict[int, bytes]] = {}
        """By epoch, signatures by attestor."""
        self._stated: dict[int, tuple[int, int]] = {}
        """By attestor, what it wants and how often I had asked when it said so."""
        self._asked = 0
        self.wanted: int | None = None
        """The first epoch that I want gone."""
        self.declared = False
        """Whether I said so."""
        self._turn_of: tuple[int, bytes] | None = None
        """The epoch that I wait to submit, and the hash of what it removes."""

    def wish(self, head: Head, epoch: int | None) -> list[QuorumAction]:
        """What my records want of the hub as it is now: this epoch and later ones gone, or nothing."""
        self._head = head
        self._seen = {each: signed for each, signed in self._seen.items() if each > head.active_epoch}
        if epoch == self.wanted:
            return self._progress()
        actions = self.stop()
        self._stated.clear()
        self.wanted, self.declared = epoch, False
        if epoch is None or self._index is None:
            return actions
        try:
            promised = epoch in self._guard.rollbacks(self._domain, self._run, self.fork_nonce)
        except StorageError as error:
            return [*actions, Note(str(error)), SetTimer(self._timer("patience"), self._patience(epoch))]
        if promised:  # before a restart: it had waited then
            return [*actions, *self._declare(epoch)]
        return [*actions, SetTimer(self._timer("patience"), self._patience(epoch))]

    def status(self, sender: PeerId, index: int, status: RollbackStatus) -> list[QuorumAction]:
        """An attestor wants a rollback: answer with the signatures it lacks.

        Raises ProtocolError: STALE for what is over, UNEXPECTED for what is not there yet.
        """
        self._check_place(status.fork_nonce, status.epoch)
        self._stated[index] = (status.epoch, self._asked)
        actions = self._progress()
        chosen = self._chosen()
        if chosen is None:
            return actions
        have = status.have if status.chosen == chosen else 0
        missing = tuple(each for who, each in sorted(self._signers(chosen).items()) if not have >> who & 1)
        if missing:
            actions.append(Send(sender, RollbackSignatures(self.fork_nonce, chosen, missing)))
        return actions

    def signatures(self, message: RollbackSignatures) -> list[QuorumAction]:
        """Attestors signed a rollback. Raises ProtocolError: STALE, UNEXPECTED, BAD_SIGNATURE, NOT_A_MEMBER."""
        self._check_place(message.fork_nonce, message.epoch)
        digest = Rollback(self._run, message.fork_nonce, message.epoch).digest(self._domain)
        # All are checked before one is taken: a bad one at the end must not lose what the others lead to.
        found = {self._signer(digest, each): each for each in message.signatures}
        known = self._seen.setdefault(message.epoch, {})
        self._seen[message.epoch] = found | known
        return self._progress()

    def timeout(self, key: TimerKey) -> list[QuorumAction]:
        """A timer is due, perhaps one of somebody else's."""
        if self.wanted is None:
            return []
        if key == self._timer("patience"):
            return self._declare(self.wanted)
        if key == self._timer("ask"):
            self._asked += 1
            said = [] if self._complete() else self._to_all(self._status(self.wanted))
            return [*said, SetTimer(key, ASK_EVERY), *self._progress()]
        if key == self._timer("turn") and (epoch := self._complete()) is not None:
            # The sender is durable; should it have given up after all, it is told again when everybody had a turn.
            return [self._submit(epoch), SetTimer(key, TAKE_OVER * len(self.electorate.addresses))]
        return []

    def stop(self) -> list[QuorumAction]:
        """The wish is gone, or the fork nonce has moved on."""
        self._turn_of = None
        return [CancelTimer(self._timer(what)) for what in ("patience", "ask", "turn")] if self.wanted else []

    def _patience(self, epoch: int) -> float:
        """Seconds: for a new place, twice as many for each one since the last checkpoint that did not help."""
        last = self._head.checkpoint
        tried = self.fork_nonce - (last.fork_nonce if last else 0)
        return PATIENCE * 2.0 ** (min(tried, MOST_DOUBLINGS) if epoch > self._head.epoch else 0)

    def _declare(self, epoch: int) -> list[QuorumAction]:
        """Let the others know, from now on."""
        self.declared = True
        text = f"epoch {epoch} should be rolled back: its checkpoint is not what my records give"
        if epoch > self._head.epoch:
            text = f"epoch {epoch} should get another fork nonce: too many signed another checkpoint than mine"
        said = [Note(text), *self._to_all(self._status(epoch)), SetTimer(self._timer("ask"), ASK_EVERY)]
        return [*said, *self._progress()]

    def _progress(self) -> list[QuorumAction]:
        """What follows from the statuses and signatures so far."""
        chosen = self._chosen()
        if chosen is None:
            return []
        actions = [] if self._index in self._signers(chosen) else self._sign(chosen)
        turn = (chosen, self._head.hash_of(chosen))
        if self._complete() != chosen or self._turn_of == turn:
            return actions
        self._turn_of = turn
        place = self.electorate.rollback_leaders(self._rollback(chosen)).index(self._address)
        return [*actions, SetTimer(self._timer("turn"), TAKE_OVER * place)]

    def _chosen(self) -> int | None:
        """The epoch to sign: one with a quorum of signatures, else the latest that more than two thirds want gone."""
        if self.wanted is None or not self.declared:
            return None
        if (complete := self._complete()) is not None:
            return complete
        epochs = {self.wanted, *self._seen, *(epoch for epoch, _ in self._stated.values())}
        removable = (each for each in sorted(epochs, reverse=True) if each > self._head.active_epoch)
        agreed = next((each for each in removable if self.electorate.enough(self._consenting(each))), None)
        return agreed if agreed is not None and self._fits(agreed) and self._credible(agreed) else None

    def _complete(self) -> int | None:
        """The latest epoch that I want gone and whose rollback has a quorum of signatures."""
        epochs = (epoch for epoch in sorted(self._seen, reverse=True) if self._fits(epoch))
        return next((epoch for epoch in epochs if self.electorate.enough(self._seen[epoch])), None)

    def _fits(self, epoch: int) -> bool:
        """Whether it takes away what I want gone, and may still be rolled back."""
        return self.declared and self.wanted is not None and self._head.active_epoch < epoch <= self.wanted

    def _credible(self, epoch: int) -> bool:
        """Whether somebody honest wants it, not only liars that would take along good epochs before mine."""
        wanting = {who for who, wanted in self._newest().items() if wanted <= epoch} | self._signers(epoch).keys()
        return epoch == self.wanted or self.electorate.needed(wanting)

    def _consenting(self, epoch: int) -> Set[int]:
        """Who wants this epoch gone, or a later one that it takes along."""
        return {who for who, wanted in self._newest().items() if wanted >= epoch} | self._signers(epoch).keys()

    def _newest(self) -> dict[int, int]:
        """What each attestor wants, of what was said lately."""
        newest = {who: wanted for who, (wanted, when) in self._stated.items() if self._asked - when <= FRESH}
        if self._index is not None and self.wanted is not None:
            newest[self._index] = self.wanted
        return newest

    def _signers(self, epoch: int) -> Mapping[int, bytes]:
        return self._seen.get(epoch, {})

    def _sign(self, epoch: int) -> list[QuorumAction]:
        """Promise it on disk, then sign it and tell everybody."""
        rollback = self._rollback(epoch)
        try:
            digest = self._guard.promise_rollback(self._domain, rollback)
        except StorageError as error:
            return [Note(str(error))]
        signature = sign(self._me, digest)
        if self._index is not None:
            self._seen.setdefault(epoch, {})[self._index] = signature
        return self._to_all(RollbackSignatures(self.fork_nonce, epoch, (signature,)))

    def _submit(self, epoch: int) -> Submit:
        chosen = self.electorate.fewest(self._signers(epoch))
        bitmap, rvs = pack({index: self._seen[epoch][index] for index in chosen})
        return Submit(RollBack(self._rollback(epoch), bitmap, rvs, self._head.hash_of(epoch)))

    def _status(self, epoch: int) -> RollbackStatus:
        chosen = self._chosen() or 0
        return RollbackStatus(self.fork_nonce, epoch, chosen, sum(1 << index for index in self._signers(chosen)))

    def _signer(self, digest: bytes, signature: bytes) -> int:
        signer = recover(digest, signature)
        if signer is None:
            raise ProtocolError(Refusal.BAD_SIGNATURE, "a signature over a rollback is none")
        index = self.electorate.index(signer)
        if index is None:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"0x{signer.hex()} signed a rollback, but is no attestor")
        return index

    def _check_place(self, fork_nonce: int, epoch: int) -> None:
        """Bounds what is kept: epochs that are not active, up to the next one."""
        here = f"fork nonce {self.fork_nonce}, epochs {self._head.active_epoch + 1} to {self._head.epoch + 1}"
        if fork_nonce < self.fork_nonce or epoch <= self._head.active_epoch:
            raise ProtocolError(Refusal.STALE, f"a rollback of epoch {epoch}, fork nonce {fork_nonce}; {here}")
        if fork_nonce > self.fork_nonce or epoch > self._head.epoch + 1:
            raise ProtocolError(Refusal.UNEXPECTED, f"a rollback of epoch {epoch}, fork nonce {fork_nonce}; {here}")

    def _rollback(self, epoch: int) -> Rollback:
        return Rollback(self._run, self.fork_nonce, epoch)

    def _to_all(self, message: object) -> list[QuorumAction]:
        others = (address for address in self.electorate.addresses if address != self._address)
        return [Send(self._directory[each], message) for each in others if each in self._directory]

    def _timer(self, what: str) -> TimerKey:
        return f"rollback {what}", self.fork_nonce, 0
