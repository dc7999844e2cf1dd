"""What the checkpointer needs of a blockchain: where its hub is, and that a proposal gets there exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ledger.checkpoint import NOTHING, Checkpoint
from ledger.electorate import Electorate
from ledger.signatures import unpack


@dataclass(frozen=True, slots=True)
class Head:
    """The hub in one block. `checkpoint` is its last one (from the event), None before the first.

    Epochs up to `active_epoch` can no longer be rolled back. `fees[e - 1]` are the usage fees that count in epoch e, in
    1e-18 tokens, up to the epoch after the head (`ledger.usage_fees`). Raises ValueError when fewer are given.
    """

    checkpoint: Checkpoint | None
    fork_nonce: int
    active_epoch: int
    electorate: Electorate
    fees: tuple[int, ...]

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


@dataclass(frozen=True, slots=True)
class Propose:
    """A transaction that should come to be: this checkpoint on the hub, with the signatures that make a quorum."""

    header: Checkpoint
    bitmap: int
    rvs: tuple[bytes, ...]

    def abi(self) -> tuple[tuple[bytes | int, ...], int, list[bytes]]:
        """Arguments of `CheckpointHub.propose`."""
        return self.header.abi(), self.bitmap, list(self.rvs)

    def signatures(self) -> dict[int, bytes]:
        """Compact signatures by attestor index."""
        return unpack(self.bitmap, self.rvs)

    def fulfilled(self, head: Head) -> bool:
        """Whether nothing is left to send: the hub is at this epoch or further, or its fork nonce has moved on."""
        return head.fork_nonce != self.header.fork_nonce or head.epoch >= self.header.epoch


class ChainView(Protocol):
    """One peer's window on the chain."""

    async def head(self) -> Head:
        """Where the hub is now. Raises UnreachableError when no RPC answers."""
        ...

    async def submit(self, intent: Propose) -> None:
        """See to it that this lands exactly once, through crashes and outages, until it is `fulfilled`.

        Returns once the intent is journalled, before anything is sent. The same intent again changes nothing.
        Raises StorageError when it could not be journalled.
        """
        ...
