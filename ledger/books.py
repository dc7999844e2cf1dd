"""From a chain of certified records to what a checkpoint says: anybody with the records computes the same.

The contents of an epoch are a pure function of the records up to its last round, the constants, and the usage fees of
the epochs. A void round and the founding give nothing, whatever they name; neither does a recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from averaging.chain import Chain
from averaging.record import Record
from dht import merkle
from ledger.checkpoint import Checkpoint
from ledger.points import Row
from ledger.rewards import Constants
from ledger.tally import EpochTally


def rows(record: Record) -> tuple[Row, ...]:
    """The rows of points in a record: none in a void one, a recovery, or the founding."""
    if record.void or record.round == 0:
        return ()
    return tuple(Row(bytes(survivor.peer), survivor.tokens, survivor.chunks) for survivor in record.survivors)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint says but for its place in the hub's chain: the same on every branch of the hub."""

    run: bytes
    tally: EpochTally
    first_round: int
    last_round: int
    model_root: bytes
    data_root: bytes

    def checkpoint(self, fork_nonce: int, parent: bytes) -> Checkpoint:
        """The checkpoint with these contents behind `parent` (a hash, or zeros)."""
        tally = self.tally
        return Checkpoint(
            self.run,
            fork_nonce,
            tally.epoch,
            parent,
            self.first_round,
            self.last_round,
            self.model_root,
            self.data_root,
            tally.tree.root,
            tally.cumulative_reward,
            len(tally.tree),
            tally.tokens,
        )

    def agrees(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint, wherever it is in the hub's chain, has these contents."""
        return self.checkpoint(checkpoint.fork_nonce, checkpoint.parent) == checkpoint


class Books:
    """Contents of epochs, each computed once. A branch that replaces records is noticed and computed anew."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self._kept: list[tuple[bytes, int, EpochTally]] = []
        """Of each epoch: the hash of its last record, which stands for all before it, its fees, and its tally."""

    def tally(self, chain: Chain, epoch: int, fees: Sequence[int]) -> EpochTally:
        """The tally after an epoch. `fees[e - 1]` are the usage fees that count in epoch e; what is missing is zero.

        Raises KeyError when the chain does not reach the epoch's last round.
        """
        tally = EpochTally()
        for each in range(1, epoch + 1):
            last = chain.record(self.constants.last_round(each)).hash()
            fee = fees[each - 1] if each <= len(fees) else 0
            if each <= len(self._kept) and self._kept[each - 1][:2] == (last, fee):
                tally = self._kept[each - 1][2]
                continue
            del self._kept[each - 1 :]
            tally = tally.following(map(rows, self._records(chain, each)), fee, self.constants)
            self._kept.append((last, fee, tally))
        return tally

    def contents(self, chain: Chain, epoch: int, fees: Sequence[int]) -> Contents:
        """What the checkpoint of an epoch (from 1) says. Raises KeyError when the chain does not reach its end."""
        tally = self.tally(chain, epoch, fees)
        records = self._records(chain, epoch)
        data_root = merkle.root([merkle.leaf_hash(record.hash()) for record in records])
        return Contents(chain.run, tally, records[0].round, records[-1].round, records[-1].state_root, data_root)

    def _records(self, chain: Chain, epoch: int) -> list[Record]:
        first, last = self.constants.first_round(epoch), self.constants.last_round(epoch)
        return [chain.record(round_) for round_ in range(first, last + 1)]
