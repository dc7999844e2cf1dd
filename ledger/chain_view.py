"""What the checkpointer needs of a blockchain: where its hub is, and that what is signed gets there exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from ledger.checkpoint import NOTHING, Checkpoint, Rollback
from ledger.electorate import Electorate
from ledger.signatures import unpack


@dataclass(frozen=True, slots=True)
class Head:
    """The hub in one block. `checkpoint` is its last one (from the event), None before the first.

    Epochs up to `active_epoch` can no longer be rolled back. `fees[e - 1]` are the usage fees that count in epoch e, in
    1e-18 tokens, up to the epoch after the head (`ledger.usage_fees`). Raises ValueError when fewer are given.
    `recent` are the checkpoints before the last one, in order, from the last active one on. `rolled_back` is the epoch
    that the last rollback named, 0 before the first.
    """

    checkpoint: Checkpoint | None
    fork_nonce: int
    active_epoch: int
    electorate: Electorate
    fees: tuple[int, ...]
    recent: tuple[Checkpoint, ...] = ()
    rolled_back: int = 0

    def __post_init__(self) -> None:
        if len(self.fees) <= self.epoch:
            raise ValueError(f"usage fees of {len(self.fees)} epochs where {self.epoch + 1} are due")

    @property
    def epoch(self) -> int:
        """Of the last checkpoint; 0 before the first."""
        return self.checkpoint.epoch if self.checkpoint else 0

    @property
    def hash(self) -> bytes:
        """What the next checkpoint names as its parent."""
        return self.checkpoint.hash() if self.checkpoint else NOTHING

    @property
    def standing(self) -> tuple[Checkpoint, ...]:
        """`recent` and the last one, in order."""
        return self.recent if self.checkpoint is None else (*self.recent, self.checkpoint)

    def hash_of(self, epoch: int) -> bytes:
        """The hash of a standing checkpoint; zeros when there is none of this epoch."""
        return next((each.hash() for each in self.standing if each.epoch == epoch), NOTHING)


@dataclass(frozen=True, slots=True)
class Propose:
    """A transaction that should come to be: this checkpoint on the hub, with the signatures that make a quorum."""

    FUNCTION: ClassVar[str] = "propose"

    header: Checkpoint
    bitmap: int
    rvs: tuple[bytes, ...]

    @property
    def key(self) -> str:
        """Its name in a journal: the same for every set of signatures."""
        return f"checkpoint/{self.header.run.hex()}/{self.header.fork_nonce}/{self.header.epoch}"

    @property
    def about(self) -> str:
        """What it is, for people."""
        return f"the checkpoint of epoch {self.header.epoch}"

    def abi(self) -> tuple[tuple[bytes | int, ...], int, list[bytes]]:
        """Arguments of `CheckpointHub.propose`."""
        return self.header.abi(), self.bitmap, list(self.rvs)

    def signatures(self) -> dict[int, bytes]:
        """Compact signatures by attestor index."""
        return unpack(self.bitmap, self.rvs)

    def fulfilled(self, head: Head) -> bool:
        """Whether nothing is left to send: the hub is at this epoch or further, or its fork nonce has moved on."""
        return head.fork_nonce != self.header.fork_nonce or head.epoch >= self.header.epoch

    def possible(self, head: Head) -> bool:
        """Whether the hub would take it now: it follows the head."""
        place = (self.header.fork_nonce, self.header.epoch, self.header.parent)
        return place == (head.fork_nonce, head.epoch + 1, head.hash)


@dataclass(frozen=True, slots=True)
class RollBack:
    """A transaction that should come to be: this rollback, with the signatures that make a quorum.

    `removes` is the hash of the hub's checkpoint of that epoch, which is not what the records give; zeros when there is
    none and only the fork nonce shall move.
    """

    FUNCTION: ClassVar[str] = "rollback"

    rollback: Rollback
    bitmap: int
    rvs: tuple[bytes, ...]
    removes: bytes

    @property
    def key(self) -> str:
        """Its name in a journal: the same for every set of signatures."""
        place = f"{self.rollback.fork_nonce}/{self.rollback.epoch}/{self.removes.hex()}"
        return f"rollback/{self.rollback.run.hex()}/{place}"

    @property
    def about(self) -> str:
        """What it is, for people."""
        return f"the rollback of epoch {self.rollback.epoch}"

    def abi(self) -> tuple[int, int, list[bytes]]:
        """Arguments of `CheckpointHub.rollback`."""
        return self.rollback.epoch, self.bitmap, list(self.rvs)

    def signatures(self) -> dict[int, bytes]:
        """Compact signatures by attestor index."""
        return unpack(self.bitmap, self.rvs)

    def fulfilled(self, head: Head) -> bool:
        """Whether nothing is left to send: the fork nonce has moved on, the epoch is active, or has another checkpoint.

        The last keeps late signatures from taking away one that landed after all.
        """
        epoch = self.rollback.epoch
        over = head.fork_nonce != self.rollback.fork_nonce or epoch <= head.active_epoch
        return over or head.hash_of(epoch) != self.removes

    def possible(self, head: Head) -> bool:
        """Whether the hub would take it now."""
        return not self.fulfilled(head)


HubIntent: TypeAlias = Propose | RollBack


def is_hub_intent(key: str) -> bool:
    """Whether a journal's key is one of these."""
    return key.startswith(("checkpoint/", "rollback/"))


def journalled(key: str, arguments: Sequence[Any]) -> HubIntent:
    """What a journalled transaction is for, by its key and its decoded arguments."""
    first, bitmap, rvs = arguments
    if key.startswith("checkpoint/"):
        return Propose(Checkpoint(*first.values()), bitmap, tuple(rvs))
    _, run, fork_nonce, epoch, removes = key.split("/")
    rollback = Rollback(bytes.fromhex(run), int(fork_nonce), int(epoch))
    return RollBack(rollback, bitmap, tuple(rvs), bytes.fromhex(removes))


class ChainView(Protocol):
    """One peer's window on the chain."""

    async def head(self) -> Head:
        """Where the hub is now. Raises UnreachableError when no RPC answers."""
        ...

    async def submit(self, intent: HubIntent) -> None:
        """See to it that this lands exactly once, through crashes and outages, until it is `fulfilled`.

        Returns once the intent is journalled, before anything is sent. The same intent again changes nothing.
        Raises StorageError when it could not be journalled.
        """
        ...
